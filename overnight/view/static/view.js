"use strict";

/* The page over a home's jobs. All that comes from a dataset, a model or a provider is put in as text, never as HTML. */

const $ = (id) => document.getElementById(id);
const LIVE_MS = 5000;
const QUIET = ["custom_id", "batch_id", "finish_reason", "cached_tokens", "reasoning_tokens", "attempts", "error_message", "answer_reasoning"];
const whole = new Intl.NumberFormat("en");
let about = null;
let table = null;
let jobsTable = null;
let shownRows = [];
let opened = -1;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

async function asked(path) {
  const reply = await fetch(path);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error || reply.statusText);
  return found;
}

function say(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

const usd = (amount) => (amount === null || amount === undefined ? "unknown" : `$${amount < 1 ? amount.toPrecision(3) : amount.toFixed(2)}`);
const asText = (cell) => (cell.getValue() === null || cell.getValue() === undefined ? "" : String(cell.getValue()));
const textCell = (cell) => document.createTextNode(asText(cell));

function age(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([one]) => past >= one) || [1, "s"];
  return `${Math.floor(past / size)} ${unit} ago`;
}

/* Jobs */

async function showJobs() {
  const jobs = await asked("/api/jobs");
  const chosen = decodeURIComponent(location.hash.slice(1)).split("/")[0];
  $("job").replaceChildren(element("option", { value: "" }, "all jobs"), ...jobs.map((one) => element("option", { value: one.job }, one.job)));
  $("job").value = jobs.some((one) => one.job === chosen) ? chosen : "";
  const rows = jobs.map((one) => ({ ...one, progress: one.requests ? (100 * one.answered) / one.requests : 0, cost: usd(one.cost_usd), built: age(one.built_at) }));
  if (jobsTable) {
    jobsTable.replaceData(rows);
  } else {
    jobsTable = new Tabulator("#jobs-table", {
      data: rows, layout: "fitDataStretch", placeholder: "No job was built in this home yet: overnight run JOB.yaml",
      columns: [
        { title: "job", field: "job", formatter: textCell }, { title: "state", field: "state", formatter: textCell },
        { title: "rows", field: "rows", hozAlign: "right", formatter: (cell) => whole.format(cell.getValue()) },
        { title: "answered", field: "progress", width: 140, formatter: "progress", formatterParams: { legend: (value) => `${Math.round(value)} %`, color: "#7aa7d9", legendColor: "inherit" } },
        { title: "open batches", field: "batches", hozAlign: "right" }, { title: "cost", field: "cost", hozAlign: "right" },
        { title: "built", field: "built" }, { title: "waits for", field: "waits_for", formatter: textCell },
      ],
    });
    jobsTable.on("rowClick", (_, row) => { location.hash = encodeURIComponent(row.getData().job); });
  }
  const now = jobs.find((one) => one.job === chosen);
  if (now && about) say(`${now.state}: ${whole.format(now.answered)} of ${whole.format(now.requests)} requests answered, cost ${usd(now.cost_usd)}${now.waits_for ? `; ${now.waits_for}` : ""}`);
  return now;
}

/* Rows */

function question(parameters) {
  const filters = [];
  const prefix = about.prefix;
  if ($("status").value) filters.push({ column: `${prefix}status`, operator: "=", value: $("status").value });
  if ($("filter-value").value) filters.push({ column: $("filter-column").value, operator: $("filter-operator").value, value: $("filter-value").value });
  const sort = (parameters.sort || [])[0];
  return {
    offset: ((parameters.page || 1) - 1) * parameters.size, limit: parameters.size, search: $("search").value, filters,
    sort: sort && sort.field !== "row" ? about.fields[sort.field] : null, descending: Boolean(sort) && sort.dir === "desc",
  };
}

function buildRows() {
  if (table) table.destroy();
  const names = Object.keys(about.columns);
  about.fields = Object.fromEntries(names.map((name, at) => [`c${at}`, name]));
  const quiet = QUIET.map((name) => about.prefix + name);
  const columns = [{ title: "row", field: "row", width: 80, hozAlign: "right", formatter: (cell) => whole.format(cell.getValue() + 1), headerSort: false }];
  names.forEach((name, at) => {
    const number = about.columns[name] === "number";
    columns.push({
      title: name, titleFormatter: (cell) => document.createTextNode(cell.getValue()), field: `c${at}`, visible: !quiet.includes(name), formatter: textCell,
      hozAlign: number ? "right" : "left", maxInitialWidth: 420,
    });
  });
  table = new Tabulator("#rows-table", {
    ajaxURL: `/api/jobs/${encodeURIComponent(about.job)}/rows`, pagination: true, paginationMode: "remote", sortMode: "remote",
    paginationSize: 50, paginationSizeSelector: [20, 50, 100, 200], layout: "fitDataFill", columns, height: "70vh", placeholder: "No row is like that",
    ajaxRequestFunc: async (url, _, parameters) => {
      const found = await asked(`${url}?ask=${encodeURIComponent(JSON.stringify(question(parameters)))}`);
      $("count").textContent = found.found === found.total ? `${whole.format(found.total)} rows` : `${whole.format(found.found)} of ${whole.format(found.total)} rows`;
      shownRows = found.rows.map((one) => one.row);
      const data = found.rows.map((one) => ({ row: one.row, ...Object.fromEntries(names.map((name, at) => [`c${at}`, one[name]])) }));
      return { data, last_page: Math.max(1, Math.ceil(found.found / parameters.size)) };
    },
    ajaxResponse: (_, __, found) => found,
    rowFormatter: (row) => row.getElement().setAttribute("tabindex", "0"),
  });
  table.on("rowClick", (_, row) => openRow(row.getData().row));
  table.on("dataLoadError", (error) => say(error.message, true));
}

/* One row */

function messageOf(one) {
  const made = element("div", { class: "message" }, element("b", {}, one.role || one.type || "input"));
  const content = Array.isArray(one.content) ? one.content : [one.content ?? one];
  for (const part of content) {
    const image = part && part.image_url ? part.image_url.url || part.image_url : null;
    if (typeof part === "string") made.append(element("pre", {}, part));
    else if (image && String(image).startsWith("data:image/")) made.append(element("img", { src: image, alt: "the image that was sent" }));
    else if (part && typeof part.text === "string") made.append(element("pre", {}, part.text));
    else made.append(element("pre", {}, JSON.stringify(part, null, 2)));
  }
  return made;
}

function plainTable(pairs) {
  return element("table", { class: "plain" }, element("tbody", {}, ...pairs.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value === null || value === undefined ? "–" : String(value))))));
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

async function openRow(row) {
  try {
    const found = await asked(`/api/jobs/${encodeURIComponent(about.job)}/rows/${row}`);
    opened = row;
    const body = $("row-body");
    $("row-title").textContent = `Row ${whole.format(row + 1)}`;
    const cells = Object.entries(found.cells);
    const own = cells.filter(([name]) => !isAdded(name));
    body.replaceChildren(element("h3", {}, "Answer"), plainTable(cells.filter(([name]) => isAdded(name))));
    if (found.advice) body.append(element("p", { class: "bad" }, found.advice));
    body.append(element("h3", {}, "Row"), plainTable(own));
    if (found.request) {
      const { messages, input, prompt, ...others } = found.request;
      const said = messages || (Array.isArray(input) ? input : [{ role: "input", content: input ?? prompt ?? "" }]);
      body.append(element("h3", {}, "Request"), ...said.map(messageOf), element("pre", {}, JSON.stringify(others, null, 2)));
    }
    found.attempts.forEach((one) => {
      const { raw, ...told } = one;
      body.append(element("h3", {}, `Attempt ${one.attempt}`), plainTable(Object.entries(told)));
      if (raw) body.append(element("details", {}, element("summary", {}, "raw reply"), element("pre", {}, pretty(raw))));
    });
    if (!$("row").open) $("row").showModal();
    body.parentElement.scrollTop = 0;
  } catch (error) { say(error.message, true); }
}

const added = ["custom_id", "status", "answer", "embedding", "answers", "finish_reason", "error_code", "error_message", "model", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_usd", "batch_id", "attempts"];
const isAdded = (name) => added.some((one) => name === about.prefix + one) || name.startsWith(`${about.prefix}answer_`);

function step(by) {
  const at = shownRows.indexOf(opened) + by;
  if (at >= 0 && at < shownRows.length) openRow(shownRows[at]);
}

/* Charts */

function figure(title, chart, note) {
  return element("figure", {}, element("figcaption", {}, title), chart, note ? element("p", {}, note) : null);
}

const style = { background: "none", color: "currentColor", fontSize: "12px" };
const WIDTH = 400;

function bars(values, name) {
  return Plot.plot({
    style, width: WIDTH, marginLeft: 120, height: 40 + 26 * values.length, ariaLabel: name, x: { grid: true, label: "rows" }, y: { label: null, domain: values.map((one) => one.value) },
    marks: [Plot.barX(values, { x: "rows", y: "value", fill: "#5b8fc7", title: (one) => `${one.value}: ${whole.format(one.rows)}` }),
      Plot.text(values, { x: "rows", y: "value", text: (one) => whole.format(one.rows), dx: 4, textAnchor: "start" }), Plot.ruleX([0])],
    marginRight: 50,
  });
}

function histogram(bins, name) {
  if (bins.length === 1) return element("p", {}, `${whole.format(bins[0].rows)} rows, all ${bins[0].from}`);
  return Plot.plot({
    style, width: WIDTH, height: 200, marginLeft: 50, ariaLabel: name, x: { label: null }, y: { grid: true, label: "rows" },
    marks: [Plot.rectY(bins, { x1: "from", x2: "to", y: "rows", fill: "#5b8fc7", inset: 0.5, title: (one) => `${one.from} – ${one.to}: ${whole.format(one.rows)}` }), Plot.ruleY([0])],
  });
}

function confusion(pairs) {
  return Plot.plot({
    style, width: WIDTH, marginLeft: 100, marginBottom: 60, padding: 0.02, ariaLabel: "expected and given answers", x: { label: "answer", tickRotate: -20 }, y: { label: "expected" }, color: { scheme: "blues", type: "sqrt" },
    marks: [Plot.cell(pairs, { x: "answer", y: "expected", fill: "rows" }), Plot.text(pairs, { x: "answer", y: "expected", text: (one) => whole.format(one.rows), fill: "black", stroke: "white", strokeWidth: 3 })],
  });
}

async function showCharts() {
  const found = await asked(`/api/jobs/${encodeURIComponent(about.job)}/charts`);
  const made = [figure("Rows by status", bars(found.statuses, "rows by status"))];
  if (found.answers.length) made.push(figure("Answers", bars(found.answers, "answers")));
  if (found.confusion.length) {
    const agreed = found.confusion.filter((one) => one.expected === one.answer).reduce((sum, one) => sum + one.rows, 0);
    const all = found.confusion.reduce((sum, one) => sum + one.rows, 0);
    made.push(figure(`${about.compare} beside the answer`, confusion(found.confusion), `${whole.format(agreed)} of ${whole.format(all)} agree (${Math.round((100 * agreed) / all)} %)`));
  }
  for (const [name, field] of Object.entries(found.fields)) {
    if (field.histogram && field.histogram.length) made.push(figure(name, histogram(field.histogram, name)));
    if (field.values && field.values.length) made.push(figure(name, bars(field.values, name)));
  }
  for (const [name, bins] of Object.entries(found.histograms)) if (bins.length) made.push(figure(name, histogram(bins, name)));
  if (found.errors.length) {
    const rows = found.errors.map((one) => element("tr", {}, element("td", {}, one.code), element("td", {}, whole.format(one.rows)), element("td", {}, one.message), element("td", {}, one.advice || "")));
    const head = element("tr", {}, ...["error", "rows", "message of one", "what to do"].map((one) => element("th", { scope: "col" }, one)));
    made.push(figure("Errors", element("table", { class: "plain" }, element("thead", {}, head), element("tbody", {}, ...rows))));
  }
  $("charts").replaceChildren(...made);
}

/* The way about */

async function route() {
  const [job, tab] = decodeURIComponent(location.hash.slice(1)).split("/");
  try {
    if (!job) about = null;
    else if (!about || about.job !== job) {
      about = await asked(`/api/jobs/${encodeURIComponent(job)}`);
      if (about.joined) {
        const statuses = ["succeeded", "failed", "refused", "invalid", "expired", "missing"];
        $("status").replaceChildren(element("option", { value: "" }, "any"), ...statuses.map((one) => element("option", {}, one)));
        $("filter-column").replaceChildren(...Object.keys(about.columns).map((one) => element("option", {}, one)));
      }
    }
    say("");
    await showJobs();
    const charts = Boolean(about && about.joined && tab === "charts");
    const rows = Boolean(about && about.joined && !charts);
    $("jobs").hidden = Boolean(job);
    $("rows").hidden = !rows;
    $("charts").hidden = !charts;
    document.querySelector("[role=tablist]").hidden = !about;
    $("tab-rows").setAttribute("aria-selected", String(rows));
    $("tab-charts").setAttribute("aria-selected", String(charts));
    document.title = job ? `${job} · overnight` : "overnight";
    if (about && !about.joined) say(`${job} has no joined table yet. ${$("state").textContent}`);
    if (rows) buildRows();
    if (charts) await showCharts();
  } catch (error) { say(error.message, true); }
}

function reload() { if (table && about && about.joined) table.setData(); }

function later(act) {
  let waiting = 0;
  return () => { clearTimeout(waiting); waiting = setTimeout(act, 250); };
}

document.addEventListener("DOMContentLoaded", () => {
  $("job").addEventListener("change", () => { location.hash = encodeURIComponent($("job").value); });
  $("tab-rows").addEventListener("click", () => { location.hash = encodeURIComponent(about.job); });
  $("tab-charts").addEventListener("click", () => { location.hash = `${encodeURIComponent(about.job)}/charts`; });
  $("asked").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["search", "filter-value"]) $(id).addEventListener("input", later(reload));
  for (const id of ["status", "filter-operator", "filter-column"]) $(id).addEventListener("change", reload);
  $("clear").addEventListener("click", () => { for (const id of ["search", "filter-value", "status"]) $(id).value = ""; reload(); });
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (event.key === "/" && !typing && !$("rows").hidden) { event.preventDefault(); $("search").focus(); }
    if ($("row").open && (event.key === "j" || event.key === "k")) step(event.key === "j" ? 1 : -1);
    if (event.key === "Enter" && event.target.classList.contains("tabulator-row")) event.target.click();
  });
  window.addEventListener("hashchange", route);
  setInterval(() => { if (!document.hidden) showJobs().catch((error) => say(error.message, true)); }, LIVE_MS);
  route();
});

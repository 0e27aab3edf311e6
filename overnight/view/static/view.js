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
let counted = "";
let opened = -1;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

async function asked(path) {
  if (globalThis.overnightBundle) return bundled(path);
  const reply = await fetch(path);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error || reply.statusText);
  return found;
}

/* A bundle: the same answers, out of scripts beside the page */

const coming = {};

function piece(name) {
  coming[name] ??= new Promise((resolve, reject) => {
    const script = element("script", { src: `data/${name}.js` });
    script.addEventListener("load", () => resolve(overnightBundle.data[name]));
    script.addEventListener("error", () => reject(new Error(`${name} is not in this bundle`)));
    document.head.append(script);
  });
  return coming[name];
}

async function pieces(job, kind, size, count) {
  const parts = await Promise.all([...Array(Math.ceil(count / size)).keys()].map((at) => piece(`${job}/${kind}/${at}`)));
  return parts.flatMap((part) => part.rows ?? part);
}

function holds(row, { column, operator, value }) {
  const cell = row[column];
  if (operator === "=") return String(cell) === value;
  if (operator === "contains") return cell !== null && String(cell).toLowerCase().includes(value.toLowerCase());
  return cell !== null && (operator === ">" ? Number(cell) > Number(value) : Number(cell) < Number(value));
}

function order(sort, sign) {
  return (left, right) => {
    const [a, b] = [left[sort], right[sort]];
    if (a === b) return 0;
    if (a === null || b === null) return a === null ? 1 : -1;
    return sign * (a < b ? -1 : 1);
  };
}

async function bundledRows(job, wanted) {
  const { total } = await piece(`${job}/rows/0`);
  const kept = Math.min(total, overnightBundle.rows);
  const text = wanted.search.toLowerCase();
  let rows = (await pieces(job, "rows", overnightBundle.page, kept)).filter((row) => wanted.filters.every((one) => holds(row, one)));
  if (text) rows = rows.filter((row) => Object.values(row).some((cell) => typeof cell === "string" && cell.toLowerCase().includes(text)));
  if (wanted.sort) rows.sort(order(wanted.sort, wanted.descending ? -1 : 1));
  if (total > kept) say(`This bundle has the first ${whole.format(kept)} of ${whole.format(total)} rows.`);
  return { rows: rows.slice(wanted.offset, wanted.offset + wanted.limit), found: rows.length, total: kept };
}

async function bundled(path) {
  const [name, query] = path.replace("api/jobs", "").split("?ask=");
  const [job, kind, ...rest] = name.split("/").filter(Boolean);
  if (!job) return piece("jobs");
  if (kind === "rows" && rest.length) return (await piece(`${job}/details/${Math.floor(rest[0] / overnightBundle.details)}`))[rest[0] % overnightBundle.details];
  if (kind === "rows") return bundledRows(job, JSON.parse(decodeURIComponent(query)));
  const found = await piece([job, kind, ...rest].filter(Boolean).join("/"));
  if (found.error) throw new Error(found.error);
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
  const jobs = await asked("api/jobs");
  const chosen = decodeURIComponent(location.hash.slice(1)).split("/")[0];
  $("job").replaceChildren(element("option", { value: "" }, "all jobs"), ...jobs.map((one) => element("option", { value: one.job }, one.job)));
  $("job").value = jobs.some((one) => one.job === chosen) ? chosen : "";
  const rows = jobs.map((one) => ({ ...one, progress: one.requests ? (100 * one.answered) / one.requests : 0, cost: usd(one.cost_usd), planned: usd(one.planned_usd), built: age(one.built_at) }));
  if (jobsTable) {
    jobsTable.replaceData(rows);
  } else {
    jobsTable = new Tabulator("#jobs-table", {
      data: rows, layout: "fitDataStretch", placeholder: "No job was built in this home yet: overnight run JOB.yaml",
      columns: [
        { title: "job", field: "job", formatter: textCell }, { title: "state", field: "state", formatter: textCell },
        { title: "rows", field: "rows", hozAlign: "right", formatter: (cell) => whole.format(cell.getValue()) },
        { title: "answered", field: "progress", width: 140, formatter: "progress", formatterParams: { legend: (value) => `${Math.round(value)} %`, color: "#7aa7d9", legendColor: "inherit" } },
        { title: "open batches", field: "batches", hozAlign: "right" }, { title: "cost", field: "cost", hozAlign: "right" }, { title: "planned at most", field: "planned", hozAlign: "right" },
        { title: "built", field: "built" }, { title: "waits for", field: "waits_for", formatter: textCell },
      ],
    });
    jobsTable.on("rowClick", (_, row) => { location.hash = encodeURIComponent(row.getData().job); });
  }
  const now = jobs.find((one) => one.job === chosen);
  if (now && about) say(`${now.state}: ${whole.format(now.answered)} of ${whole.format(now.requests)} requests answered, cost ${usd(now.cost_usd)}${now.planned_usd ? ` of ${usd(now.planned_usd)} planned at most` : ""}${now.waits_for ? `; ${now.waits_for}` : ""}`);
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
    ajaxURL: `api/jobs/${encodeURIComponent(about.job)}/rows`, pagination: true, paginationMode: "remote", sortMode: "remote",
    paginationSize: 50, paginationSizeSelector: [20, 50, 100, 200], layout: "fitDataFill", columns, height: "70vh", placeholder: "No row is like that",
    ajaxRequestFunc: async (url, _, parameters) => {
      const found = await asked(`${url}?ask=${encodeURIComponent(JSON.stringify(question(parameters)))}`);
      counted = found.found === found.total ? `${whole.format(found.total)} rows` : `${whole.format(found.found)} of ${whole.format(found.total)} rows`;
      shownRows = found.rows.map((one) => one.row);
      const data = found.rows.map((one) => ({ row: one.row, ...Object.fromEntries(names.map((name, at) => [`c${at}`, one[name]])) }));
      return { data, last_page: Math.max(1, Math.ceil(found.found / parameters.size)) };
    },
    ajaxResponse: (_, __, found) => found,
    rowFormatter: (row) => row.getElement().setAttribute("tabindex", "0"),
  });
  table.on("renderComplete", () => { $("count").textContent = counted; });
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
    const found = await asked(`api/jobs/${encodeURIComponent(about.job)}/rows/${row}`);
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

const COLOURS = { succeeded: "#3fa34d", failed: "#d64545", refused: "#e0912f", invalid: "#c9a227", retryable: "#8a8f98", expired: "#8a6fb0", missing: "#60646c" };

function overTime(points) {
  const series = points.flatMap((one) => Object.keys(COLOURS).map((verdict) => ({ at: new Date(1000 * one.at), verdict, requests: one.verdicts[verdict] || 0 })));
  const there = Object.keys(COLOURS).filter((verdict) => series.some((one) => one.verdict === verdict && one.requests));
  return Plot.plot({
    style, width: WIDTH, height: 220, marginLeft: 50, ariaLabel: "requests by verdict over time", x: { type: "utc", label: null }, y: { grid: true, label: "requests" },
    color: { domain: there, range: there.map((verdict) => COLOURS[verdict]), legend: true },
    marks: [Plot.areaY(series.filter((one) => there.includes(one.verdict)), { x: "at", y: "requests", fill: "verdict", order: there }), Plot.ruleY([0])],
  });
}

function progressFigures(points) {
  const ends = points.filter((one) => Object.keys(one.verdicts).length);
  if (!ends.length) return [];
  const last = ends[ends.length - 1];
  const answered = Object.values(last.verdicts).reduce((sum, one) => sum + one, 0);
  const hours = Math.max(last.at - points[0].at, 1) / 3600;
  return [figure("Requests answered over time", overTime(points), `${whole.format(answered)} in ${duration(3600 * hours)}: ${whole.format(Math.round(answered / hours))} an hour`)];
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function byConfidence(steps) {
  const values = steps.map((one) => ({ ...one, share: one.agreed / one.rows, high: one.low + 0.1 }));
  return Plot.plot({
    style, width: WIDTH, height: 220, marginLeft: 50, ariaLabel: "share that agrees by confidence", x: { domain: [0, 1], label: "probability of the answer" }, y: { domain: [0, 1], grid: true, percent: true, label: "% that agree" },
    marks: [Plot.rectY(values, { x1: "low", x2: "high", y: "share", fill: "#5b8fc7", inset: 0.5, title: (one) => `${whole.format(one.agreed)} of ${whole.format(one.rows)} agree` }), Plot.line([[0, 0], [1, 1]], { stroke: "currentColor", strokeDasharray: "3" }), Plot.ruleY([0])],
  });
}

async function showCharts() {
  const found = await asked(`api/jobs/${encodeURIComponent(about.job)}/charts`);
  const made = progressFigures(found.progress);
  if (!about.joined) {
    $("charts").replaceChildren(...(made.length ? made : [element("p", {}, "No batch has ended yet.")]));
    return;
  }
  made.unshift(figure("Rows by status", bars(found.statuses, "rows by status")));
  if (found.answers.length) made.push(figure("Answers", bars(found.answers, "answers")));
  if (found.confusion.length) {
    const agreed = found.confusion.filter((one) => one.expected === one.answer).reduce((sum, one) => sum + one.rows, 0);
    const all = found.confusion.reduce((sum, one) => sum + one.rows, 0);
    made.push(figure(`${about.compare} beside the answer`, confusion(found.confusion), `${whole.format(agreed)} of ${whole.format(all)} agree (${Math.round((100 * agreed) / all)} %)`));
  }
  if (found.confidence.length) made.push(figure("Agreement by confidence", byConfidence(found.confidence), "On the line, answers agree as often as the model was sure."));
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

/* Two jobs */

async function showCompare(other) {
  const names = [...$("job").options].map((one) => one.value).filter((name) => name && name !== about.job);
  $("other").replaceChildren(element("option", { value: "" }, names.length ? "choose a job" : "there is no other job"), ...names.map((name) => element("option", { value: name }, name)));
  $("other").value = names.includes(other) ? other : "";
  $("compared").replaceChildren();
  if (!$("other").value) return;
  const found = await asked(`api/jobs/${encodeURIComponent(about.job)}/compare/${encodeURIComponent(other)}`);
  const same = found.total - found.found;
  const share = Math.round((100 * same) / found.total);
  const sides = plainTable(found.sides.map((one) => [one.job, `${one.model ?? "models of its bodies"}, cost ${usd(one.cost_usd)}`]));
  const head = element("tr", {}, ...found.columns.map((name) => element("th", { scope: "col" }, name)));
  const rows = found.rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell === null ? "–" : String(cell)))));
  const more = found.found > found.rows.length ? ` The first ${whole.format(found.rows.length)}:` : "";
  $("compared").append(
    element("p", {}, element("b", {}, `${whole.format(same)} of ${whole.format(found.total)} rows have the same answer (${share} %).`)), sides,
    element("p", {}, `${whole.format(found.found)} differ.${more}`),
  );
  if (rows.length) $("compared").append(element("div", { class: "wide" }, element("table", { class: "plain" }, element("thead", {}, head), element("tbody", {}, ...rows))));
}

/* The way about */

async function route() {
  const [job, tab, other] = decodeURIComponent(location.hash.slice(1)).split("/");
  try {
    if (!job) about = null;
    else if (!about || about.job !== job) {
      about = await asked(`api/jobs/${encodeURIComponent(job)}`);
      if (about.joined) {
        const statuses = ["succeeded", "failed", "refused", "invalid", "expired", "missing"];
        $("status").replaceChildren(element("option", { value: "" }, "any"), ...statuses.map((one) => element("option", {}, one)));
        $("filter-column").replaceChildren(...Object.keys(about.columns).map((one) => element("option", {}, one)));
      }
    }
    say("");
    await showJobs();
    const comparing = Boolean(about && about.joined && tab === "compare");
    const charts = Boolean(about && (tab === "charts" || !about.joined));
    const rows = Boolean(about && !charts && !comparing);
    $("jobs").hidden = Boolean(job);
    $("rows").hidden = !rows;
    $("charts").hidden = !charts;
    $("compare").hidden = !comparing;
    document.querySelector("[role=tablist]").hidden = !about;
    $("tab-rows").setAttribute("aria-selected", String(rows));
    $("tab-charts").setAttribute("aria-selected", String(charts));
    $("tab-compare").setAttribute("aria-selected", String(comparing));
    document.title = job ? `${job} · overnight` : "overnight";
    if (about && !about.joined) say(`${job} has no joined table yet. ${$("state").textContent}`);
    if (rows) buildRows();
    if (charts) await showCharts();
    if (comparing) await showCompare(other);
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
  $("tab-compare").addEventListener("click", () => { location.hash = `${encodeURIComponent(about.job)}/compare`; });
  $("other").addEventListener("change", () => { location.hash = `${encodeURIComponent(about.job)}/compare/${encodeURIComponent($("other").value)}`; });
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
  setInterval(() => { if (!document.hidden && !globalThis.overnightBundle) showJobs().catch((error) => say(error.message, true)); }, LIVE_MS);
  route();
});

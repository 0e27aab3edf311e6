"""The page of a home: rows, one row with its attempts, charts, jobs; read only, and safe with whatever the rows hold."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overnight.errors import JobError
from overnight.ledger.run import Run, recorded_run
from overnight.view.answers import compared
from overnight.view.bundle import write_bundle
from overnight.view.charts import charts, progress
from overnight.view.details import details
from overnight.view.rows import Ask, Filter, column_kinds, page
from tests.conftest import ROOT, MakeJob
from tests.steps import run_job
from tests.test_deployments import CHROMIUM

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
TEXTS: list[str | None] = ["good", HOSTILE, "bad", "[400]", None]


@pytest.fixture
def ran(make_job: MakeJob, tmp_path: Path) -> Run:
    run_job(make_job(TEXTS, report={"compare": "text"}, limits={"max_requests": 2}), tmp_path / "home")  # several parts
    return recorded_run("texts", tmp_path / "home")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "joined.parquet"
    numbers = [*range(3000)]
    columns = {
        "n": [n * 7 % 3000 for n in numbers],
        "label": [f"L{n % 3}" for n in numbers],
        "long": ["x" * 400] * 3000,
    }
    pq.write_table(pa.table(columns), path, row_group_size=500)
    return path


@pytest.mark.parametrize(
    ("ask", "found", "first"),
    [
        pytest.param(Ask(offset=1200, limit=2), 3000, [1200, 1201], id="as they stand"),
        pytest.param(Ask(sort="n", limit=3), 3000, [0, 1, 2], id="sorted"),
        pytest.param(Ask(sort="n", descending=True, limit=2), 3000, [2999, 2998], id="sorted the other way"),
        pytest.param(Ask(filters=(Filter("label", "=", "L1"),), limit=2), 1000, None, id="filtered"),
        pytest.param(
            Ask(filters=(Filter("n", "<", "10"), Filter("label", "contains", "l"))), 10, None, id="two filters"
        ),
        pytest.param(Ask(search="l2", limit=1), 1000, None, id="searched in every column, whatever its case"),
        pytest.param(Ask(filters=(Filter("label", "=", "'; drop table x; --"),)), 0, [], id="a value is a value"),
        pytest.param(Ask(offset=5000), 3000, [], id="past the end"),
    ],
)
def test_a_page_has_the_rows_that_are_asked_for(table: Path, ask: Ask, found: int, first: list[int] | None) -> None:
    got = page(table, ask)
    assert (got.found, got.total) == (found, 3000)
    numbers = [row["n"] if ask.sort else row["row"] for row in got.rows]
    assert first is None or numbers == first
    assert all(len(row["long"]) == 301 for row in got.rows)


def test_a_page_knows_its_columns_and_refuses_others(table: Path) -> None:
    assert column_kinds(table) == {"n": "number", "label": "text", "long": "text"}
    with pytest.raises(JobError, match="no column 'labl'"):
        page(table, Ask(sort="labl"))


def test_a_row_has_its_request_its_attempts_and_what_to_do(ran: Run) -> None:
    good, failed, unsent = (details(ran, [row])[0] for row in (0, 3, 4))
    assert good["request"]["messages"][-1]["content"] == "good"
    assert [one["verdict"] for one in good["attempts"]] == ["succeeded"]
    assert json.loads(good["attempts"][0]["raw"])["choices"]
    assert failed["attempts"][0]["error_code"] == failed["cells"]["error_code"] == "invalid_request"
    assert (unsent["attempts"], unsent["request"], unsent["cells"]["error_code"]) == ([], None, "null_input")
    with pytest.raises(JobError, match="there is no row 100"):
        details(ran, [99])


def test_charts_count_every_row(ran: Run) -> None:
    drawn = charts(ran)
    assert sum(one["rows"] for one in drawn["statuses"]) == 5
    assert {one["code"] for one in drawn["errors"]} == {"null_input", "invalid_request"}
    assert sum(one["rows"] for one in drawn["histograms"]["input tokens"]) == 3
    assert sum(one["rows"] for one in drawn["confusion"]) == 3


def test_the_vendored_libraries_are_what_their_list_says() -> None:
    vendor = ROOT / "overnight/view/static/vendor"
    listed = dict(line.split()[-2:] for line in (vendor / "VERSIONS.txt").read_text().splitlines() if ".min." in line)
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in vendor.glob("*.min.*")}
    assert listed == there


@pytest.fixture
def shown(ran: Run) -> Iterator[str]:
    with served(ran.home) as address:
        yield address


class served:  # noqa: N801 - used as a function
    """`overnight view` over a home, for as long as the block runs; gives its address."""

    def __init__(self, home: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "flows", "view", "--home", str(home), "--port", "0", *options]

    def __enter__(self) -> str:
        environment = {**os.environ, "COLUMNS": "300"}
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("http://"), line
        return line.split()[0]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=20)


def test_the_page_is_for_this_machine_alone_and_only_read(shown: str) -> None:
    assert httpx2.get(shown).status_code == 200
    assert "default-src 'none'" in httpx2.get(shown).headers["content-security-policy"]
    assert httpx2.get(shown, headers={"host": "elsewhere.example"}).status_code == 421
    assert httpx2.post(f"{shown}api/jobs").status_code == 405
    assert httpx2.get(f"{shown}api/jobs/nobody").json()["error"].startswith("no job 'nobody' was built")
    assert httpx2.get(f"{shown}static/../app.py").status_code == 404


def test_beyond_this_machine_a_token_is_asked_for(ran: Run) -> None:
    with served(ran.home, "--host", "0.0.0.0") as address:
        bare, _, token = address.partition("?token=")
        assert len(token) >= 32
        assert httpx2.get(f"{bare}api/jobs").status_code == 403
        assert httpx2.get(f"{bare}api/jobs?token=wrong").status_code == 403
        with httpx2.Client(follow_redirects=True) as browser:
            assert browser.get(address).status_code == 200
            assert browser.get(f"{bare}api/jobs").json()[0]["job"] == "texts"


def test_charts_say_when_requests_were_answered(ran: Run) -> None:
    points = progress(ran)
    assert points[0]["verdicts"] == {}
    assert sum(points[-1]["verdicts"].values()) == 4
    assert [point["at"] for point in points] == sorted(point["at"] for point in points)


def test_two_jobs_are_compared_row_by_row(ran: Run, make_job: MakeJob) -> None:
    other = {**make_job(TEXTS), "name": "other", "model": "another"}
    run_job(other, ran.home)
    found = compared(ran, recorded_run("other", ran.home))
    assert ([side["model"] for side in found["sides"]], found["total"], found["found"]) == (
        ["some-model", "another"], 5, 0)  # fmt: skip


def test_a_bundle_takes_the_place_of_a_bundle_and_of_nothing_else(ran: Run, tmp_path: Path) -> None:
    assert write_bundle(ran.home, [], tmp_path / "site") == 5
    assert write_bundle(ran.home, ["texts"], tmp_path / "site") == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("kept")
    with pytest.raises(JobError, match="holds other files"):
        write_bundle(ran.home, ["texts"], tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "kept"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_bundle_opens_from_a_disk(ran: Run, make_job: MakeJob, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    run_job({**make_job(TEXTS), "name": "other", "model": "another"}, ran.home)
    write_bundle(ran.home, [], tmp_path / "site")
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        looked = browser.new_page()
        looked.on("pageerror", lambda error: wrong.append(str(error)))
        looked.on("requestfailed", lambda one: wrong.append(one.url))
        looked.goto((tmp_path / "site/index.html").as_uri() + "#texts")
        looked.get_by_text("5 rows").wait_for()
        looked.get_by_label("Search").fill("onerror")
        looked.get_by_text("1 of 5 rows").wait_for()
        looked.locator(".tabulator-row .tabulator-cell").first.click()
        looked.get_by_role("heading", name="Attempt 1").wait_for()
        assert HOSTILE in looked.locator("#row-body").inner_text()
        looked.keyboard.press("Escape")
        looked.get_by_role("tab", name="Charts").click()
        looked.get_by_text("Requests answered over time").wait_for()
        looked.get_by_role("tab", name="Compare").click()
        looked.get_by_label("With").select_option("other")
        looked.get_by_text("5 of 5 rows have the same answer").wait_for()
        assert looked.title() == "texts · overnight"
        browser.close()
    assert wrong == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_filters_opens_a_row_and_sees_charts(shown: str, scheme: Any) -> None:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    elsewhere: list[str] = []
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        looked = browser.new_page(color_scheme=scheme, viewport={"width": 400, "height": 800})
        looked.on("request", lambda one: None if one.url.startswith((shown, "data:")) else elsewhere.append(one.url))
        looked.on("pageerror", lambda error: wrong.append(str(error)))
        looked.goto(shown)
        looked.get_by_text("texts").last.click()
        looked.get_by_text("5 rows").wait_for()
        looked.get_by_label("Search").fill("onerror")
        looked.get_by_text("1 of 5 rows").wait_for()
        looked.locator(".tabulator-row .tabulator-cell").first.click()
        looked.get_by_role("heading", name="Row 2").wait_for()
        assert HOSTILE in looked.locator("#row-body").inner_text()
        assert looked.locator("#row-body script, #row-body img").count() == 0
        looked.keyboard.press("Escape")
        looked.get_by_role("tab", name="Charts").click()
        looked.get_by_text("Rows by status").wait_for()
        assert looked.locator("figure svg").count() >= 1
        assert looked.title() == "texts · overnight"
        assert looked.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert (elsewhere, wrong) == ([], [])

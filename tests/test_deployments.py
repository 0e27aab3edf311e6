"""Deployments on a real Prefect server with a real worker: from the API, a schedule and the page; cancelled, and killed.

The tests of the page need Chromium (`CHROMIUM`, else in PATH). With OVERNIGHT_PICTURES set to a folder, they keep the
README's pictures there.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.conftest import MakeJob, ProviderProcess
from tests.server import Local, until

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = os.environ.get("OVERNIGHT_PICTURES")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in CHROMIUM")
SLOW = {"polls": 100_000, "answer": 1}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """What `make up` starts."""
    started = Local(tmp_path_factory.mktemp("local") / "home")
    started.up()
    yield started
    started.down()
    assert not list((started.home / ".server").glob("*.pid"))


def test_a_run_from_the_api_is_named_tagged_and_reported(local: Local, make_job: MakeJob) -> None:
    run = local.ended(local.run("run_batch/run", job=make_job(["a", "b", "[400]"], max_failed_fraction=0.5)))
    assert (run["state_name"], run["name"]) == ("Completed", "texts · 3 rows · custom")
    assert {"job:texts", "provider:custom", "model:some-model", "overnight"} <= set(run["tags"])
    assert any(tag.startswith("batch_") for tag in run["tags"])
    names = {
        task["name"].split()[0] for task in local.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    }
    assert names == {"build", "validate", "submit", "wait", "fetch", "parse", "join", "report", "clean"}
    assert "| failed | invalid_request | 1 |" in local.artifact("report-texts")
    assert "echo: a" in local.artifact("samples-texts")
    assert "completed" in local.artifact("progress-texts")
    assert "to be sent" in local.artifact("plan-texts")
    of_run = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
    until(lambda: local.api("/logs/filter", of_run), lambda lines: "3 requests" in str(lines))
    finished = {"filter": {"event": {"name": ["overnight.job.completed"]}}}
    events = until(lambda: local.api("/events/filter", finished)["events"], bool)
    assert events[0]["payload"]["rows"] == 3


def test_a_run_with_too_many_failures_fails_for_alerts_and_writes_its_table(local: Local, make_job: MakeJob) -> None:
    run = local.ended(local.run("run_batch/run", job=make_job(["a", "[400]"], name="bad")))
    assert (run["state_name"], run["state"]["message"]) == (
        "Failed", "1 of 2 rows answered; 50.0% have no answer, more than max_failed_fraction (5.0%)")  # fmt: skip
    assert len(pd.read_parquet(local.home / "bad/joined.parquet")) == 2


def test_a_cancelled_run_cancels_its_batches_and_keeps_what_they_answered(
    local: Local, make_job: MakeJob, provider_server: ProviderProcess
) -> None:
    provider_server.order(default=SLOW)
    run_id = local.run("run_batch/run", job=make_job(["a", "b"], name="cancelled"))
    until(lambda: provider_server.books()["calls"].get("retrieve", 0), bool)
    local.api(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    joined = local.home / "cancelled/joined.parquet"
    until(joined.exists, bool)
    assert provider_server.books()["calls"]["cancel"] == 1
    assert pd.read_parquet(joined)["status"].to_list() == ["succeeded", "expired"]
    assert local.ended(run_id)["state_name"] == "Cancelled"


def test_a_run_that_prefect_cancels_itself_leaves_the_other_runs_batches_alone(
    local: Local, make_job: MakeJob, provider_server: ProviderProcess
) -> None:
    """Two nights at once: the deployment takes one run at a time, and cancels the new one (CANCEL_NEW)."""
    provider_server.order(default={"polls": 12})
    deployment = f"/deployments/{local.deployment('run_batch/run')['id']}"
    local.api(
        deployment, {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}, "PATCH"
    )
    try:
        job = make_job(["a", "b"], name="nightly", limits={"poll_seconds": 0.5})
        first = local.run("run_batch/run", job=job)
        until(lambda: provider_server.books()["calls"].get("retrieve", 0), bool)
        second = local.ended(local.run("run_batch/run", job=job))
        assert second["state_name"] == "Cancelled"
        wanted = {"flows": {"name": {"any_": ["cancel_batch"]}}, "flow_runs": {"name": {"any_": ["nightly"]}}}
        (caused,) = until(lambda: local.api("/flow_runs/filter", wanted), bool)
        assert local.ended(caused["id"])["state_name"] == "Completed"
        assert local.flow_run(first)["state_name"] == "Running"
        assert "cancel" not in provider_server.books()["calls"]
        provider_server.order(default={})
        assert local.ended(first, 180)["state_name"] == "Completed"
    finally:
        local.api(deployment, {"concurrency_limit": None}, "PATCH")
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_costly_run_is_suspended_until_a_person_approves_fewer_rows(
    local: Local, make_job: MakeJob, provider_server: ProviderProcess
) -> None:
    provider = {"profile": "custom", "base_url": provider_server.base_url, "prices": {"input": 1, "output": 2}}
    limits = {"approve_above_usd": 0, "poll_seconds": 0.02}
    job = make_job(["a", "b", "c"], name="costly", provider=provider, limits=limits, parameters={"max_tokens": 5})
    run_id = local.run("run_batch/run", job=job)
    asked = until(lambda: local.flow_run(run_id), lambda run: run["state_name"] == "Suspended")
    assert provider_server.books()["calls"].get("upload") is None
    keyset = asked["state"]["state_details"]["run_input_keyset"]
    asked_for = f"/flow_runs/{run_id}/input/{keyset['description']}"
    assert "up to $0.00" in until(lambda: local.api_or_none(asked_for), lambda told: told is not None)
    answer = {"decision": "approve", "max_rows": 2, "note": None}
    assert local.api(f"/flow_runs/{run_id}/resume", {"run_input": answer})["status"] == "ACCEPT"
    assert local.ended(run_id)["state_name"] == "Completed"
    assert len(pd.read_parquet(local.home / "costly/joined.parquet")) == 2
    assert sum(provider_server.books()["billed"].values()) == 2


def test_a_killed_worker_leaves_the_job_to_the_scheduled_sweep(
    local: Local, make_job: MakeJob, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 8})
    local.run("run_batch/run", job=make_job(["a", "b"], name="orphan", limits={"poll_seconds": 0.5}))
    until(lambda: provider_server.books()["calls"].get("retrieve", 0), bool)
    local.kill("worker")
    local.up()
    sweep = local.deployment("collect_batches/collect")
    schedule = sweep["schedules"][0]
    assert (schedule["slug"], schedule["schedule"]["interval"]) == ("every-ten-minutes", 600)
    every_few_seconds = {"schedule": {"interval": 4}, "active": True}
    local.api(f"/deployments/{sweep['id']}/schedules/{schedule['id']}", every_few_seconds, "PATCH")
    joined = local.home / "orphan/joined.parquet"
    until(joined.exists, bool, 120)
    local.api(f"/deployments/{sweep['id']}/schedules/{schedule['id']}", {"active": False}, "PATCH")
    assert set(pd.read_parquet(joined)["status"]) == {"succeeded"}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_key_is_nowhere_but_in_its_encrypted_block(
    local: Local, make_job: MakeJob, provider_server: ProviderProcess
) -> None:
    key = "sk-a-key-that-must-not-leak-0123456789"
    provider_server.order(key=key)
    block_type: dict[str, Any] = local.api("/block_types/slug/batch-provider")
    wanted = {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}}
    schema = local.api("/block_schemas/filter", wanted)[0]
    block = {
        "name": "account",
        "block_type_id": block_type["id"],
        "block_schema_id": schema["id"],
        "data": {"api_key": key},
    }
    local.api("/block_documents/", block)
    provider = {"profile": "custom", "base_url": provider_server.base_url, "credentials": "account"}
    run = local.ended(local.run("run_batch/run", job=make_job(["a", "[400]"], name="keyed", provider=provider)))
    assert pd.read_parquet(local.home / "keyed/joined.parquet")["status"].to_list() == ["succeeded", "failed"]
    refused = local.ended(
        local.run("run_batch/run", job=make_job(["b"], name="none", provider=provider | {"credentials": "x"}))
    )
    assert (run["state_name"], refused["state_name"]) == ("Failed", "Failed")
    assert [path for path in files_below(local.home) if key.encode() in path.read_bytes()] == []


def files_below(folder: Path) -> list[Path]:
    """All files: the ledger, runs, logs, and Prefect's database with its write-ahead log."""
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page in headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1180, "height": 900})
        opened.set_default_timeout(30_000)
        yield opened
        browser.close()


def keep(page: Page, name: str) -> None:
    if PICTURES:
        page.wait_for_timeout(1500)  # charts and transitions
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def part(page: Page, label: str) -> Locator:
    """A field of the form that has tabs, such as one that may be left empty."""
    return page.locator(f"xpath=//label[normalize-space()='{label}']/ancestor::div[.//*[@role='tab']][1]")


def fill(page: Page, label: str, tab: str, text: str) -> None:
    field = part(page, label)
    field.get_by_role("tab", name=tab, exact=True).first.click()
    field.get_by_role("textbox").or_(field.get_by_role("spinbutton")).first.fill(text)


def newest(local: Local, key: str) -> str:
    wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    return str(local.api("/artifacts/filter", wanted)[0]["id"])


def fill_in(local: Local, page: Page, deployment: str) -> None:
    """Fills the form of a job in, and submits it."""
    page.goto(f"{local.page}/v2/deployments/deployment/{deployment}/run")
    page.get_by_role("tab", name="new job").click()
    page.get_by_label("Name", exact=True).fill("from-the-page")
    page.get_by_label("Dataset", exact=True).fill("data/samples/reviews.csv")
    page.get_by_label("Prompt", exact=True).fill("{{ review }}")
    page.get_by_label("Model", exact=True).fill("smollm2-135m-instruct")
    add = "xpath=//button[normalize-space()='Add item']"
    for number, label in enumerate(("positive", "negative")):
        page.locator(add).click()
        page.locator(f"{add}/ancestor::div[.//textarea][1]").get_by_role("textbox").nth(number).fill(label)
    page.get_by_label("Max Rows (Optional)").fill("12")
    height = page.evaluate("document.querySelector('form').scrollHeight")
    assert height < 1800, height  # a form that a person reads in two looks
    keep(page, "form")
    page.get_by_role("button", name="Submit").click()


@needs_chromium
def test_a_job_is_filled_in_run_and_read_on_the_page(local: Local, page: Page) -> None:
    deployment = local.deployment("run_batch/run")["id"]
    runs = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 5}

    def mine() -> list[dict[str, Any]]:
        return [run for run in local.api("/flow_runs/filter", runs) if "from-the-page" in str(run["parameters"])]

    for _ in range(3):  # a busy server refuses a submission (HTTP 503), and a person submits again
        fill_in(local, page, deployment)
        page.wait_for_timeout(5000)
        if mine():
            break
    run = until(mine, bool)[0]
    assert local.ended(run["id"], 120)["state_name"] == "Completed"
    page.goto(f"{local.page}/v2/runs/flow-run/{run['id']}")
    expect(page.get_by_text("from-the-page · 12 rows · local").first).to_be_visible()
    expect(page.get_by_text("job:from-the-page").first).to_be_visible()
    keep(page, "run")

    page.goto(f"{local.page}/v2/artifacts/artifact/{newest(local, 'report-from-the-page')}")
    report = page.get_by_test_id("markdown-display")
    expect(report.get_by_text("12 rows, 12 distinct requests, 1 batch")).to_be_visible()
    for kind in ("pie", "gantt"):
        expect(report.locator(f"svg[aria-roledescription='{kind}']").first).to_be_visible()
    expect(report.get_by_role("cell", name="all rows")).to_be_visible()
    keep(page, "report")

    page.goto(f"{local.page}/v2/artifacts/artifact/{newest(local, 'progress-from-the-page')}")
    expect(page.get_by_test_id("table-display").get_by_text("12 of 12")).to_be_visible()
    page.goto(f"{local.page}/v2/artifacts/artifact/{newest(local, 'samples-from-the-page')}")
    expect(
        page.get_by_role("cell", name="positive").or_(page.get_by_role("cell", name="negative")).first
    ).to_be_visible()
    keep(page, "samples")


def test_a_run_that_cannot_work_is_refused_when_it_is_submitted(local: Local) -> None:
    form = {"name": "f", "dataset": "data/samples/reviews.csv", "prompt": "{{ review }}"}
    for job in (form, {"name": "f", "dataset": {"path": "x.csv"}}, {**form, "model": "m", "colour": "red"}):
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 4(09|22)"):
            local.run("run_batch/run", job=job)


@needs_chromium
def test_a_person_approves_a_costly_run_on_the_page(local: Local, page: Page) -> None:
    job = {
        "name": "asked", "dataset": {"path": "data/samples/reviews.csv"}, "model": "smollm2-135m-instruct",
        "task": {"kind": "classify", "text": "{{ review }}", "labels": ["positive", "negative"]},
        "parameters": {"max_tokens": 64}, "provider": {"profile": "local", "prices": {"input": 1, "output": 2}},
        "limits": {"approve_above_usd": 0.0001, "max_rows": 20},
    }  # fmt: skip
    run_id = local.run("run_batch/run", job=job)
    until(lambda: local.flow_run(run_id), lambda run: run["state_name"] == "Suspended")
    page.goto(f"{local.page}/v2/runs/flow-run/{run_id}")
    page.locator("button[aria-haspopup='menu']").last.click()
    page.get_by_role("menuitem", name="Resume").click()
    form = page.get_by_role("dialog").first  # lists that open and close over it are dialogs too
    expect(form.get_by_text("Plan of asked")).to_be_visible()
    fill(page, "Max Rows (Optional)", "int", "3")
    form.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("'decision' is a required property")).to_be_visible()  # one click does not spend
    form.get_by_text("Select", exact=True).click()
    page.get_by_text("approve", exact=True).last.click()
    expect(form.get_by_label("Select Decision")).to_have_text("approve")
    keep(page, "approval")

    def resumed() -> dict[str, Any]:
        """Clicks as a person does whom a busy server did not hear."""
        if (run := local.flow_run(run_id))["state_name"] == "Suspended" and form.is_visible():
            form.get_by_role("button", name="Resume").click(timeout=1000, no_wait_after=True)
        return run

    until(resumed, lambda run: run["state_name"] != "Suspended")
    assert local.ended(run_id, 120)["name"] == "asked · 3 rows · local"

"""The Prefect page in a real browser: the form is filled in, the run watched, its report read.

Needs Chromium (`CHROMIUM`, else /usr/bin/chromium). With OVERNIGHT_PICTURES set, keeps the README's pictures there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.server import Local, until

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = os.environ.get("OVERNIGHT_PICTURES")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in CHROMIUM")


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


def test_a_job_is_filled_in_run_and_read_on_the_page(local: Local, page: Page) -> None:
    deployment = local.deployment("run_batch/run")["id"]
    page.goto(f"{local.page}/v2/deployments/deployment/{deployment}/run")
    page.get_by_label("Name", exact=True).fill("from-the-page")
    page.get_by_label("Path (Optional)").fill("data/samples/reviews.csv")
    page.get_by_role("tab", name="Classify").click()
    page.get_by_label("Text", exact=True).fill("{{ review }}")
    labels = part(page, "Labels")
    for number, label in enumerate(("positive", "negative")):
        labels.get_by_role("button", name="Add item").click()
        labels.get_by_role("textbox").nth(number).fill(label)
    page.get_by_label("Label Name (Optional)").fill("sentiment")
    fill(page, "Model (Optional)", "str", "smollm2-135m-instruct")
    fill(page, "Max Rows (Optional)", "int", "12")
    page.get_by_text("Task", exact=True).first.scroll_into_view_if_needed()
    keep(page, "form")
    page.get_by_role("button", name="Submit").click()

    runs = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    mine = until(lambda: local.api("/flow_runs/filter", runs), lambda found: "from-the-page" in str(found))[0]
    assert local.ended(mine["id"], 120)["state_name"] == "Completed"
    page.goto(f"{local.page}/v2/runs/flow-run/{mine['id']}")
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
    form = page.get_by_role("dialog")
    expect(form.get_by_text("Plan of asked")).to_be_visible()
    fill(page, "Max Rows (Optional)", "int", "3")
    keep(page, "approval")
    form.get_by_role("button", name="Resume").click()
    assert local.ended(run_id, 120)["name"] == "asked · 3 rows · local"

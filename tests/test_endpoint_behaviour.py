"""How a running server behaves: hours, stuck lines, outages, metrics, retention, logs, options."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from overnight.endpoint.__main__ import app
from overnight.endpoint.off_peak import DAY, WEEK
from overnight.endpoint.settings import Settings
from overnight.endpoint.storage.disk import Disk
from overnight.endpoint.storage.store import Store
from overnight.endpoint.upstream.upstream import MAX_ANSWER_BYTES, HttpUpstream, UpstreamError
from overnight.endpoint.work.gate import Gate
from overnight.endpoint.work.housekeeping import Housekeeping
from tests.test_endpoint_support import (
    Planned,
    client,
    create_batch,
    endpoint,
    health,
    held_upstream,
    request_line,
    until,
    upload,
    wait_for_completed,
    wait_for_end,
)

LINES = [request_line(f"row-{number}", f"prompt {number}") for number in range(4)]
OK: Planned = (200, {}, b'{"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}')


def peak_hours(first: int, last: int) -> str:
    """Peak from `first` to `last` hours from now, in the words of --off-peak."""
    days = "Mon Tue Wed Thu Fri Sat Sun".split()  # noqa: SIM905 - reads best
    clauses = []
    for hour in range(first, last):
        second = int(time.time() - 4 * DAY + hour * 3600) % WEEK
        clauses.append(f"{days[second // DAY]} {second % DAY // 3600:02}:00-{(second % DAY // 3600 + 1) % 24:02}:00")
    return "; ".join(clauses) + " UTC peak"


def test_at_peak_hours_a_batch_waits_and_says_so(tmp_path: Path) -> None:
    with held_upstream() as upstream:
        options = ("--upstream", upstream.url, "--off-peak", peak_hours(-1, 3))
        with endpoint(tmp_path, *options) as running, client(running.url) as sdk:
            batch = create_batch(sdk, LINES)
            until(lambda: "waits for off-peak hours" in (tmp_path / "log.txt").read_text(), bool)
            assert sdk.batches.retrieve(batch.id).status == "in_progress"
            found = health(running.url)
            assert (found["off_peak"]["open"], found["queued_lines"], found["open_batches"]) == (False, 4, 1)
            assert time.time() < found["off_peak"]["opens_at"] <= time.time() + 3 * 3600
    assert upstream.calls == {}


@pytest.mark.parametrize(
    ("hours", "window", "off_peak_lines"),
    [pytest.param((-1, 3), "60m", 0, id="at peak"), pytest.param((3, 5), "24h", 4, id="off-peak")],
)
def test_a_batch_tells_how_many_lines_ran_at_which_hours(
    tmp_path: Path, hours: tuple[int, int], window: str, off_peak_lines: int
) -> None:
    text = peak_hours(*hours)
    with (
        held_upstream() as upstream,
        endpoint(tmp_path, "--upstream", upstream.url, "--off-peak", text) as running,
        client(running.url) as sdk,
    ):
        batch = wait_for_end(sdk, create_batch(sdk, LINES, window, metadata={"mine": "kept"}))
        full = wait_for_end(sdk, create_batch(sdk, LINES, window, metadata={str(n): "x" for n in range(16)}))
    assert batch.metadata is not None
    assert full.metadata == {str(n): "x" for n in range(16)}
    assert batch.metadata["mine"] == "kept"
    gave = json.loads(batch.metadata["overnight_off_peak"])
    assert (gave["off_peak_lines"], gave["peak_lines"]) == (off_peak_lines, 4 - off_peak_lines)
    assert (gave["off_peak_tokens"], gave["peak_tokens"]) == (5 * off_peak_lines, 20 - 5 * off_peak_lines)
    said = "runs, or would miss its window" in (tmp_path / "log.txt").read_text()
    assert said == (off_peak_lines == 0)


def test_a_stuck_line_holds_up_neither_its_batch_nor_another(tmp_path: Path) -> None:
    answers = {f"prompt {number}": [OK, OK] for number in range(4)}
    with held_upstream(free=0, answers=answers) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", "2")
        with endpoint(tmp_path, *options) as running, client(running.url) as sdk:
            stuck = create_batch(sdk, [request_line("stuck", "stuck"), *LINES])
            wait_for_completed(sdk, stuck, 4)
            assert wait_for_end(sdk, create_batch(sdk, LINES)).status == "completed"
            assert sdk.batches.retrieve(stuck.id).status == "in_progress"
            upstream.opened.set()
            assert wait_for_end(sdk, stuck).status == "completed"


def test_an_outage_of_the_upstream_costs_no_line_of_a_long_batch(tmp_path: Path) -> None:
    down: list[Planned] = [(503, {}, b"down")] * 2
    lines = [request_line(f"row-{number}", f"p{number}") for number in range(6)]
    with (
        held_upstream(answers={f"p{number}": list(down) for number in range(6)}) as upstream,
        endpoint(tmp_path, "--upstream", upstream.url) as running,
        client(running.url) as sdk,
    ):
        batch = wait_for_end(sdk, create_batch(sdk, lines))
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 6
    assert "nothing is sent for" in (tmp_path / "log.txt").read_text()
    assert sum(upstream.calls.values()) == 18


def test_a_pause_that_the_upstream_asks_for_holds_all_lines(tmp_path: Path) -> None:
    busy: Planned = (429, {"Retry-After": "1"}, b"{}")
    with held_upstream(answers={"first": [busy]}) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", "1")
        with endpoint(tmp_path, *options) as running, client(running.url) as sdk:
            began = time.monotonic()
            batch = create_batch(sdk, [request_line(name, name) for name in ("first", "second")])
            assert wait_for_end(sdk, batch).status == "completed"
            assert time.monotonic() - began >= 1
    assert upstream.calls == {"first": 2, "second": 1}


def test_an_answer_that_is_larger_than_the_database_could_keep_is_no_answer() -> None:
    async def sent(url: str) -> None:
        upstream = HttpUpstream(url, None)
        try:
            await upstream.send("/v1/chat/completions", b'{"prompt": "long"}')
        finally:
            await upstream.close()

    huge: Planned = (200, {}, b" " * MAX_ANSWER_BYTES + b"{}")
    with (
        held_upstream(answers={"long": [huge]}) as upstream,
        pytest.raises(UpstreamError, match="larger than the limit"),
    ):
        asyncio.run(sent(upstream.url))


def test_an_upstream_on_this_machine_is_reached_past_a_proxy(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    with held_upstream() as upstream:
        options = ("--upstream", upstream.url)
        with endpoint(tmp_path, *options, HTTP_PROXY=nowhere, http_proxy=nowhere, NO_PROXY="", no_proxy="") as running:
            assert httpx2.get(f"{running.url}/models", trust_env=False).status_code == 200


def test_prometheus_is_told_what_was_done(tmp_path: Path) -> None:
    answers: dict[str, list[Planned]] = {
        "prompt 0": [(429, {"Retry-After": "0"}, b"{}")],
        "prompt 1": [(400, {}, b"{}")],
    }
    with held_upstream(answers=answers) as upstream, endpoint(tmp_path, "--upstream", upstream.url) as running:
        with client(running.url) as sdk:
            wait_for_end(sdk, create_batch(sdk, LINES))
        response = httpx2.get(running.url.removesuffix("/v1") + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    told = {name.removeprefix("overnight_endpoint_"): float(value) for name, value in values.items()}
    expected = {
        'batches{status="completed"}': 1, 'batches{status="in_progress"}': 0,
        'lines_total{result="completed"}': 3, 'lines_total{result="failed"}': 1,
        'tokens_total{kind="input"}': 9, 'tokens_total{kind="output"}': 6,
        'upstream_seconds_count{outcome="answered"}': 4, 'upstream_seconds_count{outcome="refused"}': 1,
        "in_flight_lines": 0, "queued_lines": 0,
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected


def test_what_is_over_its_time_is_deleted_but_never_the_input_of_an_open_batch(tmp_path: Path) -> None:
    with held_upstream(free=4) as upstream:
        options = ("--upstream", upstream.url, "--grace-seconds", "0.1")
        with endpoint(tmp_path, *options) as first, client(first.url) as sdk:
            ended = wait_for_end(sdk, create_batch(sdk, LINES))
            still_open = create_batch(sdk, LINES)
            first.stop()
        with closing(sqlite3.connect(tmp_path / "endpoint.sqlite")) as database, database:
            database.execute("UPDATE files SET expires_at = 1")
            database.execute("UPDATE batches SET completed_at = 1 WHERE id = ?", (ended.id,))
        with endpoint(tmp_path, *options) as second, client(second.url) as sdk:
            until(lambda: sdk.batches.list().data, lambda batches: [batch.id for batch in batches] == [still_open.id])
            with pytest.raises(openai.NotFoundError):
                sdk.files.retrieve(ended.output_file_id or "")
            upstream.opened.set()
            assert wait_for_end(sdk, still_open).status == "completed"
    kept = {path.name for path in (tmp_path / "files").iterdir()}
    assert still_open.input_file_id in kept
    assert not kept & {ended.input_file_id, ended.output_file_id}


def test_no_batch_starts_on_a_file_whose_time_is_over(tmp_path: Path) -> None:
    with endpoint(tmp_path, "--upstream", "http://127.0.0.1:9") as running, client(running.url) as sdk:
        file_id = upload(sdk, LINES)
        with closing(sqlite3.connect(tmp_path / "endpoint.sqlite")) as database, database:
            database.execute("UPDATE files SET expires_at = 1")
        with pytest.raises(openai.BadRequestError, match="does not exist"):
            sdk.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")


def test_housekeeping_goes_on_after_a_fault_of_the_disk(tmp_path: Path) -> None:
    async def looked_after() -> str | None:
        store, gate = Store(tmp_path), Gate(1, 1)
        disk = Disk(tmp_path / "not there yet", 1 << 60)
        keeping = asyncio.create_task(Housekeeping(store, gate, disk, None, time.time, look_seconds=0.01).run())
        await asyncio.sleep(0.03)
        (tmp_path / "not there yet").mkdir()
        async with asyncio.timeout(10):
            while gate.closed is None:
                await asyncio.sleep(0.01)
        keeping.cancel()
        store.close()
        return gate.closed

    assert "nearly full" in str(asyncio.run(looked_after()))


def test_the_log_is_json_where_it_is_asked_for_and_holds_no_key_and_no_prompt(tmp_path: Path) -> None:
    with held_upstream(answers={"prompt 0": [(500, {}, b"prompt 0 failed")]}) as upstream:
        options = ("--upstream", upstream.url, "--key-env", "UPSTREAM_KEY", "--log-json")
        with endpoint(tmp_path, *options, UPSTREAM_KEY="k3y-s3cret") as running, client(running.url) as sdk:
            wait_for_end(sdk, create_batch(sdk, LINES))
    log = (tmp_path / "log.txt").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert all(line.keys() >= {"asctime", "levelname", "message"} for line in lines)
    assert "k3y-s3cret" not in log
    assert "prompt 0" not in log


def test_every_option_has_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: dict[Any, Any] = {int: ("7", 7), float: ("2.5", 2.5), bool: ("true", True), Path: ("/x", Path("/x"))}
    expected: dict[str, Any] = {}
    for option in fields(Settings):
        kind = option.type.__args__[0] if hasattr(option.type, "__args__") else option.type
        kind = next((part for part in getattr(kind, "__args__", ()) if part is not type(None)), kind)
        text, value = samples.get(kind, ("text", "text"))
        monkeypatch.setenv(f"OVERNIGHT_ENDPOINT_{option.name.upper()}", text)
        expected[option.name] = value
    _, bound, _ = app.parse_args([])
    assert bound.arguments["settings"] == Settings(**expected)
    _, bound, _ = app.parse_args(["--port", "9"])
    assert bound.arguments["settings"].port == 9

"""Batches that outlive their server, are cancelled, or run out of time: no line is lost, none is paid for twice."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from tests.benchmarks.endpoint_soak import soak
from tests.test_endpoint_support import (
    Planned,
    client,
    create_batch,
    endpoint,
    held_upstream,
    read_lines,
    request_line,
    wait_for_completed,
    wait_for_end,
)

LINES = [request_line(f"row-{number}", f"prompt {number}") for number in range(12)]
CUSTOM_IDS = sorted(f"row-{number}" for number in range(12))
DONE = 5
CONCURRENCY = 3


def ids(openai_client: OpenAI, file_id: str | None) -> list[str]:
    return sorted(line["custom_id"] for line in read_lines(openai_client, file_id))


def codes(openai_client: OpenAI, file_id: str | None) -> set[str]:
    return {line["error"]["code"] for line in read_lines(openai_client, file_id)}


def assert_partial(sdk: OpenAI, batch: Batch, code: str) -> None:
    """What is done is in the output file, the rest in the error file with its reason, and every line in one of them."""
    done, rest = ids(sdk, batch.output_file_id), ids(sdk, batch.error_file_id)
    assert len(done) == DONE
    assert sorted(done + rest) == CUSTOM_IDS
    assert codes(sdk, batch.error_file_id) == {code}


def test_after_a_kill_the_batch_goes_on_without_running_finished_lines_again(tmp_path: Path) -> None:
    with held_upstream(free=DONE) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", str(CONCURRENCY))
        with endpoint(tmp_path, *options) as first, client(first.url) as sdk:
            batch = create_batch(sdk, LINES)
            wait_for_completed(sdk, batch, DONE)
            first.kill()
        called = set(upstream.calls)
        upstream.opened.set()
        with endpoint(tmp_path, *options) as second, client(second.url) as sdk:
            batch = wait_for_end(sdk, batch)
            assert batch.status == "completed"
            assert ids(sdk, batch.output_file_id) == CUSTOM_IDS
            assert batch.usage is not None
            assert batch.usage.total_tokens == 5 * len(LINES)
    again = [prompt for prompt, count in upstream.calls.items() if count > 1]
    assert len(again) <= CONCURRENCY
    assert len(called) - len(again) == DONE
    assert max(upstream.calls.values()) <= 2


def test_sigterm_lets_lines_in_flight_finish_and_the_next_start_goes_on(tmp_path: Path) -> None:
    with held_upstream(free=DONE) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", str(CONCURRENCY))
        with endpoint(tmp_path, *options) as first, client(first.url) as sdk:
            batch = create_batch(sdk, LINES)
            wait_for_completed(sdk, batch, DONE)
            upstream.opened.set()
            assert first.stop() == 0
        with endpoint(tmp_path, *options) as second, client(second.url) as sdk:
            batch = wait_for_end(sdk, batch)
            assert ids(sdk, batch.output_file_id) == CUSTOM_IDS
    assert set(upstream.calls.values()) == {1}


def test_cancel_keeps_what_is_done_and_names_the_rest_cancelled(tmp_path: Path) -> None:
    with held_upstream(free=DONE) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", "3", "--grace-seconds", "0.2")
        with endpoint(tmp_path, *options) as running, client(running.url) as sdk:
            batch = create_batch(sdk, LINES)
            wait_for_completed(sdk, batch, DONE)
            with pytest.raises(openai.BadRequestError, match=batch.id):
                sdk.files.delete(batch.input_file_id)
            assert sdk.batches.cancel(batch.id).status == "cancelling"
            assert sdk.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
            batch = wait_for_end(sdk, batch)
            assert batch.status == "cancelled"
            assert batch.cancelling_at is not None
            assert batch.cancelled_at is not None
            assert_partial(sdk, batch, "batch_cancelled")


@pytest.mark.parametrize("seconds_left", [-1, 2], ids=["while the server was down", "while lines run"])
def test_expiry_keeps_what_is_done_and_names_the_rest_expired(tmp_path: Path, seconds_left: int) -> None:
    with held_upstream(free=DONE) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", "3", "--grace-seconds", "0.2")
        with endpoint(tmp_path, *options) as first, client(first.url) as sdk:
            batch = create_batch(sdk, LINES, "1m")
            wait_for_completed(sdk, batch, DONE)
            first.kill()
        with closing(sqlite3.connect(tmp_path / "endpoint.sqlite")) as database, database:
            database.execute("UPDATE batches SET expires_at = ?", (int(time.time()) + seconds_left,))
        with endpoint(tmp_path, *options) as second, client(second.url) as sdk:
            batch = wait_for_end(sdk, batch)
            assert batch.status == "expired"
            assert batch.expired_at is not None
            assert batch.finalizing_at is not None
            assert_partial(sdk, batch, "batch_expired")


@pytest.mark.parametrize("status", ["finalizing", "cancelling"])
def test_a_kill_while_the_files_are_written_is_made_good_at_the_next_start(tmp_path: Path, status: str) -> None:
    with held_upstream(free=DONE) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", "3")
        with endpoint(tmp_path, *options) as first, client(first.url) as sdk:
            batch = create_batch(sdk, LINES)
            wait_for_completed(sdk, batch, DONE)
            first.kill()
        (tmp_path / "files" / "file-torn.part").write_bytes(b"half a li")
        with closing(sqlite3.connect(tmp_path / "endpoint.sqlite")) as database, database:
            database.execute("UPDATE batches SET status = ?", (status,))
        with endpoint(tmp_path, *options) as second, client(second.url) as sdk:
            batch = wait_for_end(sdk, batch)
            end, code = {"finalizing": ("expired", "batch_expired"), "cancelling": ("cancelled", "batch_cancelled")}[
                status
            ]
            assert batch.status == end
            assert_partial(sdk, batch, code)
    kept = {path.name for path in (tmp_path / "files").iterdir()}
    assert kept == {batch.input_file_id, batch.output_file_id, batch.error_file_id}


def test_retryable_answers_are_tried_again_and_the_others_kept_as_they_are(tmp_path: Path) -> None:
    busy = (429, {"Retry-After": "0"}, b'{"error":{"message":"slow down"}}')
    broken = (503, {"Retry-After": "0"}, b"<html>down</html>")
    answers: dict[str, list[Planned]] = {
        "busy": [busy, broken],
        "refused": [(400, {}, b'{"error":{"message":"no","code":"bad"}}')],
        "page": [(200, {}, b"<html>login</html>")],
        "down": [broken] * 5,
    }
    with held_upstream(answers=answers) as upstream:
        options = ("--upstream", upstream.url, "--key-env", "UPSTREAM_KEY")
        with endpoint(tmp_path, *options, UPSTREAM_KEY="k3y") as running, client(running.url) as sdk:
            batch = wait_for_end(sdk, create_batch(sdk, [request_line(name, name) for name in answers]))
            assert batch.status == "completed"
            assert ids(sdk, batch.output_file_id) == ["busy", "page"]
            failed = {line["custom_id"]: line["response"] for line in read_lines(sdk, batch.error_file_id)}
    assert (failed["refused"]["status_code"], failed["refused"]["body"]["error"]["code"]) == (400, "bad")
    assert (failed["down"]["status_code"], failed["down"]["body"]["error"]["message"]) == (503, "<html>down</html>")
    assert upstream.calls == {"busy": 3, "refused": 1, "page": 2, "down": 5}
    assert upstream.keys == {"Bearer k3y"}
    log = (tmp_path / "log.txt").read_text()
    assert [line.split(": ")[-1].split(" (")[0] for line in log.splitlines()] == [
        "validating → in_progress",
        "in_progress → finalizing",
        "finalizing → completed",
    ], "a line per state change, none per request, and so no key and no prompt"


def test_an_upstream_that_is_silent_is_a_request_timeout_for_the_line(tmp_path: Path) -> None:
    with held_upstream(free=0) as upstream:
        options = ("--upstream", upstream.url, "--line-timeout-seconds", "0.05")
        with endpoint(tmp_path, *options) as running, client(running.url) as sdk:
            batch = wait_for_end(sdk, create_batch(sdk, [request_line("a", "hi")]))
            (line,) = read_lines(sdk, batch.error_file_id)
    assert (line["response"], line["error"]["code"]) == (None, "request_timeout")
    assert upstream.calls["hi"] == 5


def test_many_lines_over_many_kills_with_an_upstream_that_fails_one_call_in_ten(tmp_path: Path) -> None:
    soak(tmp_path, lines=300, batches=4, kills=3)


def test_two_open_batches_share_the_slots(tmp_path: Path) -> None:
    first_lines = [request_line(f"a-{number}", f"a {number}") for number in range(40)]
    with held_upstream(free=2) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", "2")
        with endpoint(tmp_path, *options) as running, client(running.url) as sdk:
            older = create_batch(sdk, first_lines)
            wait_for_completed(sdk, older, 2)
            newer = create_batch(sdk, [request_line("b", "b")])
            upstream.opened.set()
            newer = wait_for_end(sdk, newer)
            assert newer.status == "completed"
            assert wait_for_end(sdk, older).status == "completed"
    order = list(upstream.calls)
    assert order.index("b") < 20

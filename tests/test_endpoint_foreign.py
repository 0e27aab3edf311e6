"""JSON that others wrote, odd or hostile: a line costs one answer, ends with one result, and holds up no other."""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.endpoint.storage.foreign_json import MAX_DEPTH, TooDeepError, mended, read_json
from overnight.endpoint.storage.lines import custom_id_of
from overnight.endpoint.storage.recorder import Recorder
from overnight.endpoint.storage.records import Batch, StoredFile
from overnight.endpoint.storage.store import Store
from overnight.endpoint.upstream.upstream import HttpUpstream, Reply
from overnight.endpoint.work.attempts import Attempts
from overnight.endpoint.work.backlog import Backlog
from overnight.endpoint.work.gate import Gate
from overnight.endpoint.work.runner import Runner, Tools
from tests.test_endpoint_support import (
    Planned,
    client,
    create_batch,
    endpoint,
    held_upstream,
    read_lines,
    request_line,
    until,
    wait_for_end,
)


def nested(levels: int, bracket: str = "{") -> bytes:
    before, after = (b'{"a":', b"}") if bracket == "{" else (b"[", b"]")
    return before * levels + b"1" + after * levels


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 970, 975, 980, 985, 990, 995, 5000])
def test_a_file_with_a_line_too_deep_fails_at_once_with_the_lines_number(tmp_path: Path, levels: int) -> None:
    deep = request_line("deep", "hi").replace('"hi"', nested(levels).decode())
    with (
        held_upstream() as upstream,
        endpoint(tmp_path, "--upstream", upstream.url) as running,
        client(running.url) as sdk,
    ):
        batch = wait_for_end(sdk, create_batch(sdk, [request_line("a", "hi"), deep]))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 2)]
    assert f"deeper than {MAX_DEPTH} levels" in str(batch.errors.data[0].message)
    assert upstream.calls == {}


USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
ODD = {
    "half a pair": (b'{"text":"a\\ud83d b\\udc00",%s}' % USAGE, {"text": "a\ufffd b\ufffd"}),
    "a whole pair": (b'{"text":"\\ud83d\\ude00",%s}' % USAGE, {"text": "\U0001f600"}),
    "surrogates as bytes": (b'{"text":"\xed\xa0\xbd",%s}' % USAGE, {"text": "\ufffd\ufffd\ufffd"}),
    "NaN": (b'{"numbers":[NaN,Infinity,-Infinity,1e999,1.5],%s}' % USAGE, {"numbers": [None, None, None, None, 1.5]}),
    "latin-1": (b'{"text":"caf\xe9",%s}' % USAGE, {"text": "caf\ufffd"}),
    "byte order mark": (b'\xef\xbb\xbf{"text":"x",%s}' % USAGE, {"text": "x"}),
    "UTF-16": (b'{"text":"x",%s}' % USAGE, {"text": "x"}),
    "line break in a string": (b'{"text":"a\nb",%s}' % USAGE, {"text": "a\nb"}),
    "an endless number": (b'{"number":%s,%s}' % (b"9" * 5000, USAGE), {"number": None}),
    "deep": (b'{"deep":%s,%s}' % (nested(MAX_DEPTH - 1), USAGE), {"deep": json.loads(nested(MAX_DEPTH - 1))}),
}


def test_an_odd_answer_is_paid_for_once_and_kept_as_it_came_or_mended(tmp_path: Path) -> None:
    answers: dict[str, list[Planned]] = {name: [(200, {}, body)] for name, (body, _) in ODD.items()}
    answers["UTF-16"] = [(200, {}, ODD["UTF-16"][0].decode().encode("utf-16"))]
    answers["latin-1 and says so"] = [(200, {"Content-Type": "application/json; charset=latin-1"}, ODD["latin-1"][0])]
    answers["odd id"] = [(200, {"X-Request-Id": "é"}, b'{"text":"x",%s}' % USAGE)]
    expected = {name: value for name, (_, value) in ODD.items()}
    expected |= {"latin-1 and says so": {"text": "café"}, "odd id": {"text": "x"}}
    with (
        held_upstream(answers=answers) as upstream,
        endpoint(tmp_path, "--upstream", upstream.url) as running,
        client(running.url) as sdk,
    ):
        batch = wait_for_end(sdk, create_batch(sdk, [request_line(name, name) for name in expected]))
        content = sdk.files.content(batch.output_file_id or "").content
    lines = [msgspec.json.decode(line) for line in content.splitlines()]
    bodies = {line["custom_id"]: line["response"]["body"] for line in lines}
    assert all(body.pop("usage")["total_tokens"] == 5 for body in bodies.values())
    assert bodies == expected
    assert set(upstream.calls.values()) == {1}
    assert batch.usage is not None
    assert batch.usage.total_tokens == 5 * len(expected)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 980, 5000])
@pytest.mark.parametrize("bracket", ["{", "["])
def test_an_answer_that_is_too_deep_fails_its_line_after_one_attempt(tmp_path: Path, levels: int, bracket: str) -> None:
    with (
        held_upstream(answers={"deep": [(200, {}, nested(levels, bracket))]}) as upstream,
        endpoint(tmp_path, "--upstream", upstream.url) as running,
        client(running.url) as sdk,
    ):
        batch = wait_for_end(sdk, create_batch(sdk, [request_line(name, name) for name in ("deep", "other")]))
        (failed,) = read_lines(sdk, batch.error_file_id)
        assert len(read_lines(sdk, batch.output_file_id)) == 1
    assert batch.status == "completed"
    assert (failed["custom_id"], failed["error"]["code"]) == ("deep", "upstream_error")
    assert f"deeper than {MAX_DEPTH}" in failed["error"]["message"]
    assert upstream.calls == {"deep": 1, "other": 1}


def test_an_error_that_is_too_deep_is_kept_as_the_text_it_begins_with(tmp_path: Path) -> None:
    with (
        held_upstream(answers={"deep": [(400, {}, nested(980))]}) as upstream,
        endpoint(tmp_path, "--upstream", upstream.url) as running,
        client(running.url) as sdk,
    ):
        batch = wait_for_end(sdk, create_batch(sdk, [request_line("deep", "deep")]))
        (failed,) = read_lines(sdk, batch.error_file_id)
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["message"].startswith('{"a":{"a":')


@pytest.mark.parametrize(
    ("line", "custom_id"),
    [
        pytest.param(b'{"custom_id":"b","url":"/v1/chat/completions","body":%s}' % nested(5000), "b", id="too deep"),
        pytest.param(b'{"custom_id":"b","url":', "b", id="torn"),
        pytest.param(b"\xff", "", id="no text"),
    ],
)
def test_a_line_that_can_no_longer_be_read_fails_alone(tmp_path: Path, line: bytes, custom_id: str) -> None:
    """The input of a batch that runs is exchanged while the server is down; older servers let deep lines pass."""
    lines = [request_line(name, name) for name in "abc"]
    with held_upstream(free=0) as upstream:
        options = ("--upstream", upstream.url)
        with endpoint(tmp_path, *options) as first, client(first.url) as sdk:
            batch = create_batch(sdk, lines)
            until(lambda: len(upstream.calls), lambda calls: calls == 3)
            first.kill()
        path = tmp_path / "files" / batch.input_file_id
        path.write_bytes(b"\n".join([lines[0].encode(), line, lines[2].encode()]))
        upstream.opened.set()
        with endpoint(tmp_path, *options) as second, client(second.url) as sdk:
            batch = wait_for_end(sdk, batch)
            (failed,) = read_lines(sdk, batch.error_file_id)
            answered = [found["custom_id"] for found in read_lines(sdk, batch.output_file_id)]
    assert (batch.status, answered) == ("completed", ["a", "c"])
    assert (failed["custom_id"], failed["response"], failed["error"]["code"]) == (custom_id, None, "server_error")
    assert "line 2 fails: " in (tmp_path / "log.txt").read_text()


class FaultyUpstream(HttpUpstream):
    """Has a fault of its own at some prompts."""

    def __init__(self, url: str, fault: Exception) -> None:
        super().__init__(url, None)
        self.fault = fault

    async def send(self, path: str, body: bytes) -> Reply:
        reply = await super().send(path, body)
        if b"secret fault" in body:
            raise self.fault
        return reply


async def run_to_its_end(data: Path, url: str, fault: Exception, lines: list[str]) -> list[dict[str, Any]]:
    """Run a batch in this process before a faulty upstream; return the lines of its error file."""
    upstream = FaultyUpstream(url, fault)
    store = Store(data)
    recorder, backlog, gate = Recorder(store.database), Backlog(None, time.time), Gate(4, 4)
    attempts = Attempts(upstream, lambda _: None)
    runner = Runner(Tools(store, recorder, backlog, gate, attempts, lambda _: None, time.time))
    store.path("file-1").write_text("\n".join(lines))
    store.add_file(StoredFile("file-1", 1, 1, "a.jsonl", "batch"))
    soon = int(time.time()) + 3600
    store.add_batch(Batch("batch_1", "validating", "/v1/chat/completions", "file-1", "24h", 1, soon))
    runner.start()
    async with asyncio.timeout(30):
        while runner.open_batches:
            await asyncio.sleep(0.01)
    batch = store.batch("batch_1")
    await runner.stop()
    await upstream.close()
    store.close()
    assert batch is not None
    assert (batch.status, batch.completed, batch.failed) == ("completed", len(lines) - 1, 1)
    assert batch.error_file_id is not None
    return [json.loads(line) for line in store.path(batch.error_file_id).read_bytes().splitlines()]


FAULTS = [KeyError("secret"), RecursionError(), MemoryError(), UnicodeDecodeError("utf-8", b"secret", 0, 1, "secret"), sqlite3.OperationalError("x")]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_any_fault_of_the_server_fails_one_line_once_and_says_where_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    lines = [request_line(name, name) for name in ("a", "secret fault", "c")]
    with held_upstream() as upstream:
        (failed,) = asyncio.run(run_to_its_end(tmp_path, upstream.url, fault, lines))
    assert failed["custom_id"] == "secret fault"
    assert failed["response"] is None
    assert failed["error"] == {
        "code": "server_error", "message": f"The server failed on this line: {type(fault).__name__}."
    }  # fmt: skip
    assert upstream.calls == {"a": 1, "secret fault": 1, "c": 1}
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    (place,) = said
    assert place.startswith(f"batch batch_1: line 2 fails: {type(fault).__name__} at test_endpoint_foreign.py:")


BODIES = [
    pytest.param(b'{"model":"m","x":%s}' % nested(MAX_DEPTH), "deeper than 100 levels", id="too deep"),
    pytest.param(b'{"model":"m","x":%s}' % nested(980), "deeper than 100 levels", id="as deep as the stack"),
    pytest.param(nested(100_000, "["), "deeper than 100 levels", id="very deep"),
    pytest.param(b'{"model":"\\ud83d"}', "could not parse", id="half a surrogate pair"),
    pytest.param(b'{"model":"\xe9"}', "could not parse", id="latin-1"),
    pytest.param(b'{"model":"m","temperature":NaN}', "could not parse", id="NaN"),
]


@pytest.mark.parametrize(("body", "message"), BODIES)
def test_a_real_time_body_that_is_not_plain_json_is_refused_and_not_sent(
    tmp_path: Path, body: bytes, message: str
) -> None:
    headers = {"Content-Type": "application/json"}
    with held_upstream() as upstream, endpoint(tmp_path, "--upstream", upstream.url) as running:
        response = httpx2.post(f"{running.url}/chat/completions", content=body, headers=headers)
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]
        response = httpx2.post(f"{running.url}/batches", content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert upstream.calls == {}


def test_odd_answers_are_mended_in_real_time_too(tmp_path: Path) -> None:
    answers: dict[str, list[Planned]] = {
        "odd": [(200, {"X-Request-Id": "é"}, b'{"x":NaN}')],
        "deep": [(200, {}, nested(980))],
    }
    with held_upstream(answers=answers) as upstream, endpoint(tmp_path, "--upstream", upstream.url) as running:
        url = f"{running.url}/chat/completions"
        assert httpx2.post(url, json={"model": "m", "prompt": "odd"}).json() == {"x": None}
        response = httpx2.post(url, json={"model": "m", "prompt": "deep"})
    assert response.status_code == 502
    assert "deeper than 100 levels" in response.json()["error"]["message"]
    assert upstream.calls == {"odd": 1, "deep": 1}


PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"{", b"}", b"[", b"]", b'"', b":", b",", b'"a":', b"NaN", b"1e999", b"\\ud83d", b"9" * 400, b"[" * 120, b"\xef\xbb\xbf"]),
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map(b"".join), st.sampled_from([None, "latin-1", "utf-16", "no such", "base64"]))
def test_any_bytes_are_strict_json_after_mending_or_refused(data: bytes, charset: str | None) -> None:
    custom_id_of(data).encode()
    with contextlib.suppress(ValueError):
        read_json(data)
    try:
        found = mended(data, charset)
    except ValueError:
        return
    read_json(found)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_what_a_lenient_writer_wrote_is_mended_to_strict_json_of_the_same_shape(value: Any) -> None:
    found = read_json(mended(json.dumps(value).encode()))
    if "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value):
        assert json.dumps(found) == json.dumps(read_json(mended(json.dumps(found).encode())))
    assert type(found) is type(value) or found is None


@pytest.mark.parametrize("bracket", ["{", "["])
@pytest.mark.parametrize("read", [read_json, mended])
def test_json_may_nest_to_the_bound_and_no_deeper(read: Callable[[bytes], Any], bracket: str) -> None:
    read(nested(MAX_DEPTH, bracket))
    for levels in (MAX_DEPTH + 1, 980, 5000, 100_000):
        with pytest.raises(TooDeepError, match="deeper than 100 levels"):
            read(nested(levels, bracket))

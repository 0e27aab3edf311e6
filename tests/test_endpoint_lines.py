"""The pure parts: result lines, usage, addresses, retries, windows, settings."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.endpoint.settings import Settings, SettingsError, check, secret
from overnight.endpoint.storage.lines import (
    CANCELLED,
    EXPIRED,
    Answer,
    Failure,
    NumberedLine,
    Usage,
    result_line,
    usage_of,
)
from overnight.endpoint.storage.records import Batch, StoredFile, page, window_seconds
from overnight.endpoint.upstream.embedded import MODEL_ID, prepare, translate
from overnight.endpoint.upstream.upstream import UpstreamError, join, reply, retry_after_seconds
from overnight.endpoint.work.attempts import retry_delay
from overnight.endpoint.work.finish import Line, all_lines
from overnight.endpoint.work.gate import LONGEST_PAUSE


def test_a_success_line_has_its_response_and_a_null_error() -> None:
    line = result_line("row 1", Answer(200, b'{"a":\n 1}', "req_1"))
    assert line.succeeded
    assert b"\n" not in line.data
    parsed = json.loads(line.data)
    assert parsed.pop("id").startswith("batch_req_")
    response = {"status_code": 200, "request_id": "req_1", "body": {"a": 1}}
    assert parsed == {"custom_id": "row 1", "response": response, "error": None}


def test_an_http_error_line_keeps_status_and_body_and_a_null_error() -> None:
    line = result_line("row", Answer(400, b'{"error":{"message":"no"}}', "req_1"))
    assert not line.succeeded
    parsed = json.loads(line.data)
    assert parsed["response"]["status_code"] == 400
    assert parsed["response"]["body"] == {"error": {"message": "no"}}
    assert parsed["error"] is None


@pytest.mark.parametrize(
    "failure", [EXPIRED, CANCELLED, Failure("request_timeout", "late")], ids=["expired", "cancelled", "timeout"]
)
def test_a_line_without_an_answer_has_a_null_response_and_an_error(failure: Failure) -> None:
    parsed = json.loads(result_line("row", failure).data)
    assert parsed["response"] is None
    assert parsed["error"] == {"code": failure.code, "message": failure.message}


def test_failed_answers_use_no_tokens() -> None:
    assert result_line("row", Answer(429, b'{"usage":{"total_tokens":9}}', "")).usage == Usage()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            {
                "prompt_tokens": 5,
                "completion_tokens": 3,
                "total_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
            Usage(5, 2, 3, 1, 8),
            id="chat",
        ),
        pytest.param({"input_tokens": 5, "output_tokens": 3}, Usage(5, 0, 3, 0, 8), id="responses"),
        pytest.param({"prompt_tokens": 4, "total_tokens": 4}, Usage(4, 0, 0, 0, 4), id="embeddings"),
        pytest.param({"prompt_tokens": "4", "total_tokens": -1}, Usage(), id="nonsense"),
        pytest.param({"prompt_tokens": 2**64, "completion_tokens": 3}, Usage(0, 0, 3, 0, 3), id="over 64 bits"),
        pytest.param([1], Usage(), id="not an object"),
        pytest.param(None, Usage(), id="null"),
    ],
)
def test_usage_is_read_in_every_dialect(usage: Any, expected: Usage) -> None:
    assert usage_of(json.dumps({"usage": usage}).encode()) == expected


def test_every_request_gets_one_line_in_file_order() -> None:
    requests = [
        NumberedLine(number, json.dumps({"custom_id": f"r{number}", "url": "/u", "body": {}}).encode())
        for number in (1, 2, 4, 5)
    ]
    stored = iter([(2, True, b"two"), (5, False, b"five")])
    lines = list(all_lines(requests, stored, EXPIRED))
    assert lines[1] == Line(True, b"two")
    assert lines[3] == Line(False, b"five")
    assert [json.loads(line.data)["custom_id"] for line in (lines[0], lines[2])] == ["r1", "r4"]
    assert [line.succeeded for line in lines] == [False, True, False, False]


@pytest.mark.parametrize(
    ("data", "custom_id"),
    [
        pytest.param(
            b'{"custom_id": "r\\"1", "url": "/u", "body": ' + b"[" * 5000 + b"]" * 5000 + b"}", 'r"1', id="too deep"
        ),
        pytest.param(b'{"custom_id":"r1","bo', "r1", id="torn"),
        pytest.param(b'{"custom_id":"\\ud83d","bo', "", id="no text"),
        pytest.param(b'{"body":{"custom_id":"another"', "", id="unknown"),
    ],
)
def test_a_line_that_cannot_be_read_keeps_its_custom_id_where_that_comes_first(data: bytes, custom_id: str) -> None:
    (line,) = all_lines([NumberedLine(1, data)], iter([]), EXPIRED)
    assert json.loads(line.data)["custom_id"] == custom_id


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://api.deepseek.com", "https://api.deepseek.com/v1/chat/completions"),
        ("https://api.deepseek.com/", "https://api.deepseek.com/v1/chat/completions"),
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1/chat/completions"),
        ("https://open.bigmodel.cn/api/paas/v4/", "https://open.bigmodel.cn/api/paas/v4/chat/completions"),
        ("https://api.deepinfra.com/v1/openai", "https://api.deepinfra.com/v1/openai/chat/completions"),
        ("https://example.com/v1beta/openai/", "https://example.com/v1beta/openai/chat/completions"),
        ("https://example.com/proxy", "https://example.com/proxy/v1/chat/completions"),
    ],
)
def test_a_base_url_and_a_path_are_joined_without_doubling_the_version(base: str, expected: str) -> None:
    assert join(base, "/v1/chat/completions") == expected


NOW = datetime(2026, 11, 2, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("3", 3.0),
        ("-3", 0.0),
        ("Mon, 02 Nov 2026 12:00:07 GMT", 7.0),
        ("Mon, 02 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", 0.0),
        ("Mon, 02 Nov 2026 12:00:07 +99999999999999", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, expected: float | None) -> None:
    assert retry_after_seconds(header, NOW) == expected


@given(st.integers(1, 60), st.floats(0, 1))
def test_delays_grow_within_bounds(attempt: int, jitter: float) -> None:
    assert 0.25 <= retry_delay(attempt, None, jitter) <= 30
    assert retry_delay(attempt, 5.0, jitter) >= 5
    assert retry_delay(attempt, float("inf"), jitter) <= LONGEST_PAUSE + 1


def test_an_error_that_is_not_json_is_wrapped_and_a_success_that_is_not_json_is_no_answer() -> None:
    answer = reply(502, b"<html>Bad gateway</html>", {}).answer
    assert json.loads(answer.body)["error"]["message"] == "<html>Bad gateway</html>"
    with pytest.raises(UpstreamError, match="not JSON"):
        reply(200, b"<html>hello</html>", {})


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86_400), ("1m", 60), ("14d", 1_209_600), ("336h", 1_209_600)])
def test_completion_windows_are_minutes_hours_or_days(text: str, seconds: int) -> None:
    assert window_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "24", "0h", "15d", "337h", "1.5h", "24H", "h", "-1h", "10s", "999999999d", "\uff12h"]
)
def test_other_completion_windows_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="14 days"):
        window_seconds(text)


def test_a_page_says_whether_more_follow() -> None:
    files = [StoredFile(f"file-{number}", 1, 1, "a.jsonl", "batch") for number in range(3)]
    first = page(files, 2)
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("file-0", "file-1", True)
    assert [item["id"] for item in first["data"]] == ["file-0", "file-1"]
    assert page([], 2) == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_a_batch_has_the_22_fields_of_openai() -> None:
    fields = Batch("batch_1", "validating", "/v1/embeddings", "file-1", "24h", 1, 2).to_api()
    assert len(fields) == 22


REFUSED = [
    pytest.param(Settings(host="0.0.0.0"), "client-key-env", id="open to the network without a key"),
    pytest.param(Settings(upstream="api.deepseek.com"), "must be a URL", id="upstream without a scheme"),
    pytest.param(Settings(upstream="https://key@example.com"), "environment", id="key in the upstream's URL"),
    pytest.param(Settings(key_env="KEY"), "--upstream", id="a key for no upstream"),
    pytest.param(Settings(concurrency=0), "--concurrency", id="no concurrency"),
    pytest.param(Settings(port=70_000), "--port", id="no such port"),
    pytest.param(Settings(upstream="http://127.0.0.1:99999/v1"), "must be a URL", id="no such port upstream"),
    pytest.param(Settings(upstream="http://[::1/v1"), "must be a URL", id="half an address"),
    pytest.param(Settings(line_timeout_seconds=0), "--line-timeout-seconds", id="no time for a line"),
    pytest.param(Settings(grace_seconds=float("nan")), "--grace-seconds", id="no number"),
    pytest.param(Settings(retention_days=-1), "--retention-days", id="less than nothing"),
    pytest.param(Settings(upstream="http://x", off_peak="at night"), "--off-peak", id="hours that cannot be read"),
    pytest.param(Settings(rpm=0, tpm=0), "--rpm 0 .*; --tpm 0 ", id="all that is wrong at once"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_nobody_wants_are_refused_with_the_mend(settings: Settings, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check(settings)


def test_a_named_secret_must_be_set() -> None:
    check(Settings(host="0.0.0.0", client_key_env="KEY", data=Path("x")))
    assert secret(None) is None
    with pytest.raises(SettingsError, match="export OVERNIGHT_NO_SUCH_KEY"):
        secret("OVERNIGHT_NO_SUCH_KEY")


def test_the_embedded_model_gets_a_grammar_in_place_of_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = {"model": MODEL_ID, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    prepared = json.loads(prepare(json.dumps(request).encode()))
    assert prepared.keys() == {"model", "grammar"}
    assert '"integer"' in prepared["grammar"]


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"nonsense",
        b'{"response_format":{"type":"json_object"}}',
        b'{"response_format":{"type":"json_schema"}}',
        b'{"response_format":{"type":"json_schema","json_schema":{"schema":true}}}',
    ],
)
def test_any_other_request_reaches_the_embedded_model_unchanged(body: bytes) -> None:
    assert prepare(body) == body


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        pytest.param(
            400,
            {"type": "exceed_context_size_error", "message": "long"},
            (400, "context_length_exceeded"),
            id="too long",
        ),
        pytest.param(500, {"message": "image input is not supported"}, (400, None), id="image"),
        pytest.param(400, {"message": "bad", "code": 400}, (400, None), id="bad request"),
        pytest.param(500, {"message": "failed"}, (500, None), id="fault"),
    ],
)
def test_the_embedded_models_errors_are_put_in_openais_words(
    status: int, error: dict[str, Any], expected: tuple[int, str | None]
) -> None:
    answer = translate(Answer(status, json.dumps({"error": error}).encode(), "req"))
    said = json.loads(answer.body)["error"]
    assert (answer.status_code, said["code"]) == expected
    assert said.keys() == {"message", "type", "param", "code"}

"""Request lines out, result lines in: every shape that a provider was seen to send."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.answers.lines import ResultLine, read_result
from overnight.providers.replies import TERMINAL, status_word
from overnight.rows.lines import custom_id_of, request_lines

BODY = {"choices": [{"message": {"content": "hi"}}]}


def test_the_same_request_has_the_same_id_and_another_url_or_salt_another() -> None:
    bodies = [b'{"a":1}', b'{"a":1}', b'{"a":2}']
    ids = request_lines("job", "/v1/x", bodies).ids
    assert ids[0] == ids[1] != ids[2]
    assert request_lines("job", "/v1/y", bodies[:1]).ids[0] != ids[0]
    assert len(set(request_lines("job", "/v1/x", bodies, [b"1", b"2", b"3"]).ids)) == 3


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_a_request_line_is_one_json_line_around_the_body(body: dict[str, Any]) -> None:
    encoded = json.dumps(body).encode()
    (custom_id,), (line,) = request_lines("a-job", "/v1/chat/completions", [encoded])
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert len(custom_id) <= 64


@pytest.mark.parametrize(
    ("line", "read"),
    [
        pytest.param({"response": {"status_code": 200, "body": BODY}, "error": None}, (200, BODY, None, None), id="OpenAI"),
        pytest.param({"response": {"status_code": 200, "body": BODY}}, (200, BODY, None, None), id="no error key"),
        pytest.param(
            {"response": {"status_code": 200, "body": json.dumps(BODY)}}, (200, BODY, None, None), id="body as text (OGX)"
        ),
        pytest.param({"response": BODY, "error": None}, (200, BODY, None, None), id="completion as response (Nebius)"),
        pytest.param({"response": {"status_code": "200", "body": BODY}}, (200, BODY, None, None), id="status as text"),
        pytest.param(
            {"response": {"status_code": 429, "body": {"error": {"code": "x"}}}},
            (429, {"error": {"code": "x"}}, None, None),
            id="HTTP error",
        ),
        pytest.param({"response": {"status_code": 0, "body": {}}}, (0, {}, None, None), id="status 0 (Azure)"),
        pytest.param(
            {"response": None, "error": {"code": "batch_expired", "message": "late"}},
            (None, None, "batch_expired", "late"),
            id="expired",
        ),
        pytest.param({"error": {"type": "server_error"}}, (None, None, "server_error", None), id="a type only (OGX)"),
        pytest.param(
            {"response": None, "error": {"code": "400", "message": "bad"}}, (400, None, "400", "bad"), id="status as code"
        ),
        pytest.param({"error": "it broke"}, (None, None, "no_response", "it broke"), id="error as text"),
        pytest.param({"response": "it broke"}, (None, None, "no_response", "it broke"), id="response as text"),
        pytest.param({}, (None, None, "no_response", None), id="nothing at all"),
    ],
)  # fmt: skip
def test_result_lines_of_every_shape_are_read(line: dict[str, Any], read: tuple[Any, ...]) -> None:
    result = read_result(json.dumps({"custom_id": "a", **line}).encode())
    body = None if result.body is None else json.loads(result.body)
    assert (result.status, body, result.error_code, result.error_message) == read
    assert result.custom_id == "a"


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'"a"', b"{}", b'{"custom_id": 5}', b'{"custom_id": "a", "resp', b"\xff"]
)
def test_what_is_no_result_is_a_value_error_of_that_line(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_result(line)


def test_half_an_emoji_costs_no_line() -> None:
    line = b'{"custom_id": "a", "response": {"status_code": 200, "body": {"text": "cut \\ud83d"}}}'
    assert read_result(line).body == b'{"text": "cut ?"}'


@given(st.binary())
def test_any_bytes_are_a_result_or_a_value_error(line: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(read_result(line), ResultLine)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["response", "error", "id"]), json_values))
def test_any_object_with_an_id_is_a_result_of_that_id(fields: dict[str, Any]) -> None:
    assert read_result(json.dumps({**fields, "custom_id": "a"}).encode()).custom_id == "a"


@given(json_values)
def test_any_body_is_handed_on(body: Any) -> None:
    line = json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": body}}).encode()
    read = read_result(line).body
    assert read is not None
    assert read == body.encode() if isinstance(body, str) else json.loads(read) == body


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("COMPLETED", "completed"), ("Success", "completed"), ("in_queue", "validating"), ("PROGRESS", "in_progress"),
        ("TIMEOUT_EXCEEDED", "expired"), ("canceled", "cancelled"), ("baking", "baking"), (None, "unknown"),
    ],
)  # fmt: skip
def test_status_words_of_other_providers_are_understood(word: str | None, meant: str) -> None:
    assert status_word(word) == meant
    assert ("baking" in TERMINAL, "unknown" in TERMINAL) == (False, False)


ANSWER = b'"response":{"status_code":200,"body":{"choices":[{"message":{"content":"yes"}}]}}'


@pytest.mark.parametrize(
    "error", [b"null", b"{}", b'""', b"[]", b"false", b'{"code": null, "message": null}', b'{"code": "", "data": []}']
)
def test_an_empty_error_beside_an_answer_is_none(error: bytes) -> None:
    read = read_result(b'{"custom_id":"a",%b,"error":%b}' % (ANSWER, error))
    assert (read.error_code, read.status) == (None, 200)
    assert json.loads(read.body or b"")["choices"]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_python_writes_are_read(number: bytes) -> None:
    line = b'{"custom_id":"a","response":{"status_code":200,"body":{"x":[%b, 1]}},"error":null}' % number
    assert json.loads(read_result(line).body or b"") == {"x": [None, 1]}


@pytest.mark.parametrize(
    "line",
    [b'{"custom_id": "a", "response": {]}', b'{"id":1,"custom_id":"a","response":' + b"[" * 5000 + b"]" * 5000 + b"}"],
)
def test_a_line_that_names_a_request_is_its_answer_whatever_else_it_holds(line: bytes) -> None:
    read = read_result(line)
    assert read.custom_id == "a"
    assert read.unreadable


@given(
    st.text(alphabet="abc_-09", min_size=1),
    st.permutations(["custom_id", "method", "url", "body"]),
    st.booleans(),
    st.text(alphabet='custom_id":\\{ x'),
)
def test_the_id_of_a_request_line_is_what_json_says_whoever_wrote_it(
    custom_id: str, order: list[str], spaced: bool, prompt: str
) -> None:
    fields = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/x",
        "body": {"prompt": prompt, "custom_id": "other"},
    }
    separators = (", ", ": ") if spaced else (",", ":")
    line = json.dumps({name: fields[name] for name in order}, separators=separators).encode() + b"\n"
    assert custom_id_of(line) == custom_id
    (ours,) = request_lines("job", "/v1/x", [json.dumps({"prompt": prompt}).encode()]).lines
    assert custom_id_of(ours) == json.loads(ours)["custom_id"]


@pytest.mark.parametrize(
    "line",
    [b'{"custom_id":"\\u0061b","method":"POST"}', b'{"custom_id": "ab"}', b'{"url":"/v1/x","custom_id":"ab"}'],
    ids=["escaped", "spaced", "later"],
)
def test_an_id_that_json_reads_otherwise_than_it_stands_is_read_as_json(line: bytes) -> None:
    assert custom_id_of(line) == "ab"

"""Validation of input files: every rule by itself, and no bytes that escape it."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.endpoint.storage.foreign_json import MAX_DEPTH
from overnight.endpoint.storage.lines import MAX_LINE_BYTES, input_lines
from overnight.endpoint.work.validation import MAX_FILE_BYTES, MAX_PROBLEMS, MAX_REQUESTS, Rules, Verdict, validate

ENDPOINT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": {"model": "small"}}


def line(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode() + b"\n"


def deep(levels: int, bracket: str) -> bytes:
    """A line that nests so deep, itself and its body counted."""
    before, after = ('{"a":', "}") if bracket == "{" else ("[", "]")
    inner = before * (levels - 2) + "1" + after * (levels - 2)
    return line(custom_id="b", body={"model": "small", "x": "inner"}).replace(b'"inner"', inner.encode())


def without(key: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name != key}).encode() + b"\n"


def verdict(content: bytes, models: frozenset[str] | None = None) -> Verdict:
    return validate(io.BytesIO(content), len(content), Rules(ENDPOINT, models))


BROKEN = [
    pytest.param(b"{not json}\n", "invalid_json_line", None, id="not JSON"),
    pytest.param(b"[1]\n", "invalid_json_line", None, id="not an object"),
    pytest.param(b'{"custom_id": "\xff"}\n', "invalid_json_line", None, id="not UTF-8"),
    pytest.param(b"\xef\xbb\xbf" + line(custom_id="b"), "invalid_json_line", None, id="byte order mark"),
    pytest.param(b"[" * 100_000 + b"\n", "invalid_json_line", None, id="nested without end"),
    pytest.param(deep(MAX_DEPTH + 1, "{"), "invalid_json_line", None, id="objects one level too deep"),
    pytest.param(deep(MAX_DEPTH + 1, "["), "invalid_json_line", None, id="lists one level too deep"),
    pytest.param(deep(980, "{"), "invalid_json_line", None, id="as deep as the stack"),
    pytest.param(
        line(custom_id="b").replace(b'"b"', b'"\\ud83d"'), "invalid_json_line", None, id="half a surrogate pair"
    ),
    pytest.param(line(custom_id="b", body={"model": "small", "x": float("nan")}), "invalid_json_line", None, id="NaN"),
    pytest.param(line(custom_id="b")[:-5] + b"\n", "invalid_json_line", None, id="torn"),
    pytest.param(without("custom_id"), "missing_required_parameter", "custom_id", id="no custom_id"),
    pytest.param(line(custom_id=""), "missing_required_parameter", "custom_id", id="empty custom_id"),
    pytest.param(line(custom_id=7), "invalid_request", "custom_id", id="custom_id is a number"),
    pytest.param(without("method"), "missing_required_parameter", "method", id="no method"),
    pytest.param(line(custom_id="b", method="GET"), "invalid_method", "method", id="wrong method"),
    pytest.param(without("url"), "missing_required_parameter", "url", id="no url"),
    pytest.param(line(custom_id="b", url="/v1/embeddings"), "invalid_url", "url", id="another endpoint's url"),
    pytest.param(line(custom_id="b", url=["x"]), "invalid_request", "url", id="url is a list"),
    pytest.param(without("body"), "missing_required_parameter", "body", id="no body"),
    pytest.param(line(custom_id="b", body="x"), "invalid_request", "body", id="body is a string"),
    pytest.param(line(custom_id="b", body={}), "missing_required_parameter", "body.model", id="no model"),
    pytest.param(line(custom_id="b", body={"model": 1}), "invalid_request", "body.model", id="model is a number"),
    pytest.param(line(custom_id="b", body={"model": "other"}), "mismatched_model", "body.model", id="two models"),
    pytest.param(
        line(custom_id="b", body={"model": "small", "stream": True}), "streaming", "body.stream", id="streaming"
    ),
    pytest.param(line(), "duplicate_custom_id", "custom_id", id="custom_id used before"),
]


@pytest.mark.parametrize(("bad", "code", "param"), BROKEN)
def test_a_broken_line_is_refused_with_its_code_parameter_and_line_number(
    bad: bytes, code: str, param: str | None
) -> None:
    found = verdict(line() + b"\n" + bad + line(custom_id="last"))
    assert [(problem.code, problem.param, problem.line) for problem in found.problems] == [(code, param, 3)]
    assert found.problems[0].message


def test_a_good_file_is_counted_and_its_model_found() -> None:
    assert verdict(line() + b" \r\n" + line(custom_id="b").strip()) == Verdict(2, "small", ())


@pytest.mark.parametrize("bracket", ["{", "["])
def test_a_line_may_be_as_deep_as_the_bound_and_wide_without_bound(bracket: str) -> None:
    wide = line(body={"model": "small", "x": [[] for _ in range(MAX_DEPTH * 3)]})
    assert verdict(deep(MAX_DEPTH, bracket) + wide).problems == ()


def test_a_line_that_is_too_deep_is_told_the_bound() -> None:
    (problem,) = verdict(deep(MAX_DEPTH + 1, "{")).problems
    assert problem.message == f"This line is nested deeper than {MAX_DEPTH} levels. Flatten it."


def test_only_served_models_pass_where_they_are_known() -> None:
    assert verdict(line(), frozenset({"small"})).problems == ()
    (problem,) = verdict(line(), frozenset({"large"})).problems
    assert (problem.code, problem.line) == ("model_not_found", 1)
    assert "large" in problem.message


@pytest.mark.parametrize("content", [b"", b"\n \n"], ids=["no bytes", "blank lines"])
def test_a_file_without_requests_is_empty(content: bytes) -> None:
    assert [problem.code for problem in verdict(content).problems] == ["empty_file"]


def test_a_file_with_too_many_lines_is_refused_at_the_first_line_too_many() -> None:
    content = b"".join(line(custom_id=str(number)) for number in range(MAX_REQUESTS + 1))
    assert [(problem.code, problem.line) for problem in verdict(content).problems] == [
        ("too_many_tasks", MAX_REQUESTS + 1)
    ]


def test_a_file_that_is_too_large_is_refused_unread() -> None:
    found = validate(io.BytesIO(line()), MAX_FILE_BYTES + 1, Rules(ENDPOINT))
    assert [problem.code for problem in found.problems] == ["file_too_large"]


def test_an_overlong_line_costs_only_itself() -> None:
    content = b"x" * (MAX_LINE_BYTES * 2 + 5) + b"\n" + line()
    found = verdict(content)
    assert [(problem.code, problem.line) for problem in found.problems] == [("invalid_request", 1)]
    assert found.requests == 2


def test_the_list_of_problems_is_bounded() -> None:
    assert len(verdict(b"x\n" * (MAX_PROBLEMS * 3)).problems) == MAX_PROBLEMS


PIECES = st.one_of(st.binary(max_size=30), st.sampled_from([line(), line(custom_id="b"), b"\n", b"{}\n", b"\r\n"]))


@given(st.lists(PIECES, max_size=8).map(b"".join))
def test_any_bytes_are_valid_or_refused_with_a_line_of_the_file(content: bytes) -> None:
    found = verdict(content)
    last = content.count(b"\n") + 1
    for problem in found.problems:
        assert problem.code == "empty_file" or 1 <= (problem.line or 0) <= last
    if not found.problems:
        assert found.model == "small"
        assert found.requests == len(list(input_lines(io.BytesIO(content)))) > 0


BROKEN_LINES = [data for case in BROKEN if isinstance(data := case.values[0], bytes) and len(data) < 1000]
GOOD_LINES: dict[str, Callable[[int], bytes]] = {
    "good": lambda number: line(custom_id=f"row {number}"),
    "blank": lambda _: b"  \n",
}


@given(st.lists(st.sampled_from(["good", "blank", *BROKEN_LINES]), max_size=12))
def test_each_broken_line_is_refused_by_its_own_number_and_no_other(kinds: list[str | bytes]) -> None:
    rows = [GOOD_LINES[kind](number) if isinstance(kind, str) else kind for number, kind in enumerate(kinds, start=1)]
    found = verdict(line() + b"".join(rows))
    broken = [number for number, kind in enumerate(kinds, start=2) if isinstance(kind, bytes)]
    assert [problem.line for problem in found.problems] == broken


@given(st.binary(max_size=300))
def test_numbered_lines_are_the_lines_of_the_file(content: bytes) -> None:
    lines = content.split(b"\n")
    for numbered in input_lines(io.BytesIO(content)):
        assert numbered.data.removesuffix(b"\n") == lines[numbered.number - 1]

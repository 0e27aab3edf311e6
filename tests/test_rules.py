"""The rules for input files: all of them, with the line, before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.job.profiles import Profile
from overnight.rows.ids import IdSet, id_hashes
from overnight.rows.rules import CheckedLine, check_line, check_lines

PROFILE = Profile.named("openai")
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}


def line(**changes: Any) -> bytes:
    request = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return json.dumps(request).encode() + b"\n"


def problems(*lines: bytes, profile: Profile = PROFILE) -> list[str]:
    return [str(problem) for problem in check_lines("f.jsonl", lines, profile)]


def test_a_good_file_has_no_problems() -> None:
    assert problems(line(), line(custom_id="b"), b"\n", line(custom_id="c")) == []


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        pytest.param(b"{broken\n", "is not valid JSON", id="JSON"),
        pytest.param(b"[1]\n", "is not a JSON object", id="object"),
        pytest.param(b"\xef\xbb\xbf" + line(custom_id="b"), "byte order mark", id="BOM"),
        pytest.param(b'{"custom_id": "\xff"}\n', "is not valid JSON", id="UTF-8"),
        pytest.param(line(custom_id=...), "`custom_id` is missing", id="no id"),
        pytest.param(line(custom_id=5), "`custom_id` has to be a string", id="id of another type"),
        pytest.param(line(custom_id="x" * 65), "has 65 characters", id="long id"),
        pytest.param(line(custom_id="a b"), "only letters, digits", id="characters of the id"),
        pytest.param(line(custom_id="a"), "'a' stands here a second time", id="id twice"),
        pytest.param(line(custom_id="b", method="GET"), "`method` has to be POST, not \"GET\"", id="method"),
        pytest.param(line(custom_id="b", url="/v1/nope"), "`url` \"/v1/nope\" is not served", id="url"),
        pytest.param(line(custom_id="b", body="text"), "`body` has to be a JSON object", id="body"),
        pytest.param(line(custom_id="b", body={}), "`body.model` is missing", id="no model"),
        pytest.param(line(custom_id="b", body={"model": "m", "stream": True}), "`body.stream`", id="stream"),
        pytest.param(line(custom_id="b", body={"model": "other"}), "one batch takes one model", id="two models"),
    ],
)  # fmt: skip
def test_every_rule_is_named_with_its_line(bad: bytes, rule: str) -> None:
    (found,) = problems(line(), bad)
    assert found.startswith("f.jsonl:2: ")
    assert rule in found


def test_all_problems_of_all_lines_are_listed() -> None:
    assert len(problems(line(method="GET", url="/x", body={}), b"{\n", line(custom_id=...))) == 5


@pytest.mark.parametrize(
    ("lines", "limits", "rule"),
    [
        ([], {}, "has no requests"),
        ([b"\n"], {}, "has no requests"),
        ([line(), line(custom_id="b")], {"max_requests": 1}, "has 2 requests; openai takes 1"),
        ([line()], {"max_bytes": 10}, "bytes; openai takes 10"),
    ],
)
def test_limits_of_the_whole_file_count(lines: list[bytes], limits: dict[str, int], rule: str) -> None:
    assert rule in problems(*lines, profile=PROFILE.overridden(**limits))[0]


@given(st.binary())
def test_any_line_is_checked_or_has_a_rule_that_it_breaks(text: bytes) -> None:
    checked = check_line(text, PROFILE.endpoints)
    assert isinstance(checked, CheckedLine) or checked


@given(st.lists(st.lists(st.text(max_size=3), max_size=30), max_size=10))
def test_an_id_set_is_a_set(batches: list[list[str]]) -> None:
    ids, known = IdSet(), set[str]()
    for batch in batches:
        expected = [one not in known and batch.index(one) == at for at, one in enumerate(batch)]
        assert ids.contains(id_hashes(batch)).tolist() == [one in known for one in batch]
        assert ids.add(id_hashes(batch)).tolist() == expected
        known |= set(batch)
    assert len(ids) == len(known)

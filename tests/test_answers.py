"""Answers: what a response says, and the verdict on it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.answers.lines import ResultLine
from overnight.answers.readers import answer_reader
from overnight.answers.verdicts import Reply, failure_verdict
from overnight.job.answer import Answer, label_schema, object_schema
from overnight.job.schema import columns_of

USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
LABELS = Answer.label(("good", "very bad"), label_schema("label", ["good", "very bad"]))
PLAIN_LABELS = Answer.label(("good", "very bad"), None)
FIELDS = Answer.structured(object_schema({"when": "string", "count": "integer", "tags": "strings"}))


def chat(content: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"model": "m-1", "choices": [choice], "usage": USAGE}


def read(answer: Answer, body: Any, status: int | None = 200) -> Reply:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answer_reader(answer)(ResultLine("a", status, encoded, None, None))


def test_a_chat_answer_comes_with_model_tokens_and_finish_reason() -> None:
    assert read(Answer.text(), chat("hello")) == Reply("succeeded", "hello", (), "stop", None, None, "m-1", 12, 3, 8)


@pytest.mark.parametrize(
    ("answer", "body", "verdict", "value", "code"),
    [
        pytest.param(Answer.text(), chat([{"type": "text", "text": "a"}, {"text": "b"}]), "succeeded", "ab", None, id="parts"),
        pytest.param(Answer.text(), chat(None, tool_calls=[{"id": 1}]), "succeeded", '[{"id":1}]', None, id="tool call"),
        pytest.param(Answer.text(), chat(None), "invalid", None, "no_answer", id="no text"),
        pytest.param(Answer.text(), chat(None, refusal="no"), "refused", None, "refusal", id="refusal"),
        pytest.param(Answer.text(), chat("x", "content_filter"), "refused", "x", "refusal", id="content filter"),
        pytest.param(Answer.text(), chat("half", "length"), "invalid", "half", "cut", id="cut"),
        pytest.param(
            Answer.text(), {"choices": [{"text": "on", "finish_reason": "length"}]}, "succeeded", "on", None, id="completion"
        ),
        pytest.param(LABELS, chat('{"label": "Very Bad."}'), "succeeded", "very bad", None, id="label in JSON"),
        pytest.param(LABELS, chat('{"label": "meh"}'), "invalid", '{"label": "meh"}', "unknown_label", id="other label"),
        pytest.param(PLAIN_LABELS, chat(' "Very bad."\n'), "succeeded", "very bad", None, id="label in text"),
        pytest.param(PLAIN_LABELS, chat("it is good"), "invalid", "it is good", "unknown_label", id="label in a sentence"),
        pytest.param(Answer.label(("C", "C++"), None), chat("C++"), "succeeded", "C++", None, id="labels of signs"),
        pytest.param(Answer.label(("C", "C++"), None), chat("c"), "invalid", "c", "unknown_label", id="which of two"),
        pytest.param(FIELDS, chat('{"when": "", "count": 9223372036854775808, "tags": []}'), "invalid", '{"when": "", "count": 9223372036854775808, "tags": []}', "schema_violation", id="too large"),
        pytest.param(FIELDS, chat("{broken"), "invalid", "{broken", "invalid_json", id="broken JSON"),
        pytest.param(
            FIELDS, chat('{"when": 5, "count": 1, "tags": []}'), "invalid", '{"when": 5, "count": 1, "tags": []}',
            "schema_violation", id="schema broken",
        ),
        pytest.param(Answer.raw(), chat("half", "length"), "invalid", "half", "cut", id="raw is judged too"),
        pytest.param(Answer.raw(), {"anything": 1}, "succeeded", None, None, id="raw of any form"),
        pytest.param(Answer.text(), {"error": {"code": "boom", "message": "m"}}, "retryable", None, "boom", id="200 error"),
        pytest.param(Answer.text(), b"<html>", "invalid", None, "unreadable_body", id="no JSON"),
        pytest.param(Answer.text(), {"choices": "none"}, "invalid", None, "unreadable_body", id="choices of another type"),
        pytest.param(Answer.embedding(), {"data": []}, "invalid", None, "bad_embedding", id="no embedding"),
    ],
)  # fmt: skip
def test_the_verdict_on_an_answer(answer: Answer, body: Any, verdict: str, value: Any, code: str | None) -> None:
    reply = read(answer, body)
    assert (reply.verdict, reply.answer, reply.error_code) == (verdict, value, code)


def test_fields_become_typed_columns() -> None:
    reply = read(FIELDS, chat('```json\n{"when": null, "count": 3, "tags": ["a"]}\n```'))
    assert (reply.verdict, reply.fields) == ("succeeded", (None, 3, ["a"]))
    assert [column.type for column in FIELDS.columns] == [pa.string(), pa.int64(), pa.list_(pa.string())]


def test_the_responses_api_is_read() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Let me think."}]}
    said = [thought, {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]
    reply = read(Answer.text(), {"output": said, "usage": {"input_tokens": 4, "output_tokens": 2}})
    assert (reply.verdict, reply.answer, reply.input_tokens, reply.output_tokens) == ("succeeded", "hi", 4, 2)
    cut = read(Answer.text(), {"output": said, "incomplete_details": {"reason": "max_output_tokens"}})
    assert (cut.verdict, cut.error_code) == ("invalid", "cut")


def test_embeddings_and_moderations_are_read() -> None:
    embedding = read(Answer.embedding(), {"data": [{"embedding": [0.5, 1]}], "usage": {"prompt_tokens": 2}})
    assert (embedding.verdict, embedding.answer, embedding.input_tokens) == ("succeeded", [0.5, 1], 2)
    result = {"flagged": True, "categories": {"violence": True, "hate": False}}
    moderation = read(Answer.moderation(), {"results": [result]})
    assert (moderation.answer, moderation.fields) == ("flagged", (True, ["violence"]))


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        *((status, "x", "failed") for status in (400, 401, 403, 404, 413, 422)),
        *((status, "x", "retryable") for status in (0, 408, 409, 429, 500, 502, 503)),
        (None, "batch_expired", "expired"), (None, "batch_cancelled", "expired"), (None, "request_timeout", "retryable"),
        (None, "no_response", "retryable"), (None, "invalid_request", "failed"), (None, "what", "retryable"),
    ],
)  # fmt: skip
def test_which_failures_may_be_sent_again(status: int | None, code: str, verdict: str) -> None:
    assert failure_verdict(status, code) == verdict


@pytest.mark.parametrize("body", [{"error": {"code": "c", "message": "m"}}, {"error": {"type": "c", "message": "m"}}])
def test_an_http_failure_says_its_code_and_message(body: dict[str, Any]) -> None:
    reply = read(Answer.text(), body, 400)
    assert (reply.verdict, reply.error_code, reply.error_message) == ("failed", "c", "m")


@given(st.binary(), st.none() | st.integers(0, 599))
def test_any_body_gets_a_verdict(body: bytes, status: int | None) -> None:
    for answer in (Answer.text(), LABELS, FIELDS, Answer.embedding(), Answer.moderation(), Answer.raw()):
        assert read(answer, body, status).verdict != "succeeded" or status is None or 200 <= status < 300


def test_schemas_of_all_kinds_make_columns() -> None:
    schema = {
        "type": "object",
        "$defs": {"Self": {"type": "array", "items": {"$ref": "#/$defs/Self"}}, "Day": {"enum": ["mon", "tue"]}},
        "properties": {
            "optional": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "day": {"$ref": "#/$defs/Day"},
            "mixed": {"type": ["string", "integer"]},
            "inner": {"type": "object"},
            "loop": {"$ref": "#/$defs/Self"},
        },
    }
    columns = {column.name: (column.type, column.nested) for column in columns_of(schema)}
    text = (pa.string(), True)
    assert columns == {
        "optional": (pa.int64(), False), "day": (pa.string(), False), "mixed": text, "inner": text, "loop": text,
    }  # fmt: skip


def calls(*names: str, content: Any = "", arguments: str = '{"order": "7"}') -> dict[str, Any]:
    made = [{"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}} for name in names]
    return chat(content, "tool_calls", tool_calls=made)


TOOLS = Answer.calls({"send": {"type": "object", "properties": {"order": {"type": "string"}}}}, required=True)
THOUGHT = "<think>\nhm\n</think>\n\n"


@pytest.mark.parametrize(
    ("answer", "body", "verdict", "value", "code"),
    [
        pytest.param(Answer.text(), calls("send"), "succeeded", calls("send")["choices"][0]["message"]["tool_calls"], None, id="calls beside empty text"),
        pytest.param(Answer.text(), {"output": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "succeeded", [{"type": "function_call", "name": "f", "arguments": "{}"}], None, id="a Responses answer that is a call"),
        pytest.param(Answer.text(), chat("  "), "invalid", None, "no_answer", id="nothing but spaces"),
        pytest.param(Answer.text(), chat(THOUGHT + "Yes."), "succeeded", "Yes.", None, id="thoughts before text"),
        pytest.param(Answer.text(), chat("hm\n</think>\nYes."), "succeeded", "Yes.", None, id="thoughts that only end"),
        pytest.param(Answer.text(), chat("[THINK]hm[/THINK]Yes."), "succeeded", "Yes.", None, id="Mistral's thoughts"),
        pytest.param(Answer.text(), chat("Use <think> tags."), "succeeded", "Use <think> tags.", None, id="a tag that is text"),
        pytest.param(LABELS, chat(THOUGHT + '{"label": "very bad"}'), "succeeded", "very bad", None, id="thoughts before a label"),
        pytest.param(FIELDS, chat('Here you are:\n```json\n{"when": "x", "count": 1, "tags": []}\n```\nDone.'), "succeeded", '{"when": "x", "count": 1, "tags": []}', None, id="a fence after a sentence"),
        pytest.param(FIELDS, chat('The object is {"when": "x", "count": 1, "tags": []}, I think.'), "succeeded", '{"when": "x", "count": 1, "tags": []}', None, id="an object between prose"),
        pytest.param(FIELDS, chat('{"when": "x"} or {"when": "y"}'), "invalid", '{"when": "x"} or {"when": "y"}', "invalid_json", id="two objects"),
        pytest.param(Answer.embedding(), {"data": [{"embedding": "AACAPwAAAEA="}]}, "succeeded", [1.0, 2.0], None, id="an embedding as base64"),
        pytest.param(Answer.embedding(), {"data": [{"embedding": [1.0, None]}]}, "invalid", None, "bad_embedding", id="an embedding with NaN"),
        pytest.param(Answer.embedding(), {"data": [{"embedding": [1e300]}]}, "invalid", None, "bad_embedding", id="beyond 32 bits"),
        pytest.param(Answer.raw(), chat(None, refusal="no"), "refused", None, "refusal", id="a raw refusal"),
        pytest.param(Answer.raw(), chat("x", "content_filter"), "refused", "x", "refusal", id="a raw content filter"),
        pytest.param(Answer.raw(), chat(""), "invalid", None, "no_answer", id="a raw answer that is empty"),
        pytest.param(Answer.raw(), {"data": [{"embedding": [1]}]}, "succeeded", None, None, id="a raw embedding"),
        pytest.param(TOOLS, chat("I would send it"), "invalid", "I would send it", "no_tool_call", id="no call where one is required"),
        pytest.param(TOOLS, calls("nope"), "invalid", None, "unknown_tool", id="a function that is none"),
        pytest.param(TOOLS, calls("send", arguments="{"), "invalid", None, "invalid_json", id="arguments that are no JSON"),
        pytest.param(TOOLS, calls("send", arguments='{"order": 7}'), "invalid", None, "schema_violation", id="arguments against the schema"),
        pytest.param(Answer.text(), {"error": {"code": None, "message": ""}, **chat("x")}, "succeeded", "x", None, id="an empty error in the body"),
    ],
)  # fmt: skip
def test_wrappers_are_peeled_and_what_is_left_is_judged(
    answer: Answer, body: Any, verdict: str, value: Any, code: str | None
) -> None:
    reply = read(answer, body)
    assert (reply.verdict, reply.error_code) == (verdict, code)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        assert json.loads(reply.answer) == value
    elif code not in ("unknown_tool", "schema_violation", "invalid_json") or answer is not TOOLS:
        assert reply.answer == value


def test_calls_come_back_as_columns() -> None:
    reply = read(TOOLS, calls("send", "send"))
    assert (reply.verdict, reply.fields) == ("succeeded", ("send", '{"order": "7"}'))
    assert len(json.loads(reply.answer)) == 2


def test_reasoning_is_told_apart_and_counted() -> None:
    body = chat("Yes.", reasoning_content="because")
    body["usage"] = {"prompt_tokens": 5, "completion_tokens": 40, "completion_tokens_details": {"reasoning_tokens": 32}}
    reply = read(Answer.text(), body)
    assert (reply.answer, reply.reasoning, reply.output_tokens, reply.reasoning_tokens) == ("Yes.", "because", 40, 32)
    assert read(Answer.text(), chat(THOUGHT + "Yes.")).reasoning == "hm"
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "first"}, {"text": "then"}]}
    said = {"type": "message", "content": [{"type": "output_text", "text": "Yes."}]}
    reply = read(Answer.text(), {"output": [summary, said]})
    assert (reply.answer, reply.reasoning) == ("Yes.", "first\n\nthen")


def test_all_answers_of_a_request_for_several_are_kept() -> None:
    several = replace(LABELS, several=True)
    body = chat('{"label": "meh"}')
    body["choices"] += [chat('{"label": "very bad"}')["choices"][0], chat(None, refusal="no")["choices"][0]]
    reply = read(several, body)
    assert (reply.verdict, reply.answer, reply.answers) == ("succeeded", "very bad", (None, "very bad", None))


def test_probabilities_are_those_of_the_label() -> None:
    tokens = [('{"', -0.5), ("label", 0.0), ('":"', 0.0), ("very", -0.1), (" bad", -0.2), ('"}', -1.0)]
    body = chat('{"label":"very bad"}')
    body["choices"][0]["logprobs"] = {"content": [{"token": token, "logprob": value} for token, value in tokens]}
    reply = read(replace(LABELS, logprobs=True), body)
    assert reply.answer == "very bad"
    assert reply.probability == pytest.approx(math.exp(-0.3))
    assert reply.logprob == pytest.approx(-0.3)
    assert read(replace(LABELS, logprobs=True), chat('{"label":"very bad"}')).logprob is None


def test_an_answer_that_is_not_utf_8_is_read() -> None:
    assert read(Answer.text(), b'{"choices":[{"message":{"content":"caf\xe9"}}]}').answer == "caf�"


def test_a_prompt_that_is_filtered_is_refused() -> None:
    error = {"error": {"code": "content_filter", "message": "filtered", "innererror": {}}}
    reply = read(Answer.text(), error, 400)
    assert (reply.verdict, reply.error_code) == ("refused", "content_filter")

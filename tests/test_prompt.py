"""Presets: the guide's use cases as request bodies."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from overnight.errors import JobError
from overnight.job.job import Job
from overnight.job.prompt import answer_of, compile_prompt

BATCH = pa.record_batch({"text": ['say "hi"\n😀', "two"]})


def job(task: dict[str, Any], profile: str = "openai", **fields: Any) -> Job:
    return Job.model_validate(
        {"name": "j", "task": task, "model": "m", "provider": {"profile": profile}, "parameters": {"temperature": 0}}
        | fields
    )


def body(made: Job) -> dict[str, Any]:
    prompt = compile_prompt(made, BATCH.schema)
    decoded: dict[str, Any] = json.loads(prompt.bodies(BATCH).texts[0])
    return decoded


def test_generate_sends_system_and_user_with_the_parameters() -> None:
    made = body(job({"kind": "generate", "prompt": "Q: {{ text }}", "system": "Be brief."}))
    assert made == {
        "model": "m",
        "temperature": 0,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Q: say "hi"\n😀'}],
    }


@pytest.mark.parametrize(
    ("task", "url", "field"),
    [
        ({"kind": "embed", "input": "{{ text }}"}, "/v1/embeddings", "input"),
        ({"kind": "moderate", "input": "{{ text }}"}, "/v1/moderations", "input"),
        ({"kind": "complete", "prompt": "{{ text }}"}, "/v1/completions", "prompt"),
        ({"kind": "respond", "input": "{{ text }}"}, "/v1/responses", "input"),
    ],
)
def test_each_kind_goes_to_its_endpoint(task: dict[str, Any], url: str, field: str) -> None:
    made = job(task)
    assert (made.task.url, body(made)[field]) == (url, 'say "hi"\n😀')


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            {"kind": "summarize", "text": "{{ text }}", "sentences": 1},
            "a summary of one sentence, concise and accurate",
        ),
        ({"kind": "summarize", "text": "{{ text }}", "style": "cheerful"}, "2 sentences, cheerful"),
        ({"kind": "translate", "text": "{{ text }}", "target_language": "French"}, "translate texts into French"),
        (
            {"kind": "translate", "text": "{{ text }}", "target_language": "French", "source_language": "Dutch"},
            "from Dutch into French",
        ),
        (
            {"kind": "classify", "text": "{{ text }}", "labels": ["a", "b", "c"]},
            "Decide whether the text is a, b or c.",
        ),
        (
            {"kind": "classify", "text": "{{ text }}", "labels": {"a": "first", "b": "second"}},
            "a (first) or b (second)",
        ),
        ({"kind": "classify", "text": "{{ text }}", "labels": ["{a}", "b%"]}, "is {a} or b%."),
        ({"kind": "extract", "text": "{{ text }}", "fields": {"when": "string"}}, "You extract facts from texts."),
    ],
)
def test_presets_say_what_they_want(task: dict[str, Any], said: str) -> None:
    assert said in body(job(task))["messages"][0]["content"]


def test_classify_asks_for_an_enum_where_the_provider_can_and_for_plain_text_where_not() -> None:
    task = {"kind": "classify", "text": "{{ text }}", "labels": ["a", "b"], "label_name": "topic"}
    schema = body(job(task))["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"] == {"topic": {"type": "string", "enum": ["a", "b"]}}
    plain = body(job(task, profile="dashscope"))
    assert "response_format" not in plain
    assert "Reply with the label and nothing else." in plain["messages"][0]["content"]


def test_a_schema_goes_into_the_prompt_where_the_provider_takes_none() -> None:
    task = {"kind": "extract", "text": "{{ text }}", "fields": {"when": "string"}}
    made = body(job(task, profile="groq"))
    assert made["response_format"] == {"type": "json_object"}
    assert '"when"' in made["messages"][0]["content"]


def test_the_properties_of_a_schema_keep_their_order() -> None:
    schema = {"type": "object", "properties": {"why": {"type": "string"}, "answer": {"type": "string"}}}
    made = body(job({"kind": "generate", "prompt": "{{ text }}", "schema": schema}))
    assert list(made["response_format"]["json_schema"]["schema"]["properties"]) == ["why", "answer"]


def test_the_order_of_parameters_does_not_make_another_request() -> None:
    task = {"kind": "generate", "prompt": "{{ text }}"}
    first = job(task, parameters={"temperature": 0, "max_tokens": 5})
    second = job(task, parameters={"max_tokens": 5, "temperature": 0})
    assert compile_prompt(first, BATCH.schema).bodies(BATCH) == compile_prompt(second, BATCH.schema).bodies(BATCH)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("nowhere.json", "there is no file nowhere.json"),
        ("overnight.job.job:Nope", "cannot import overnight.job.job:Nope"),
        ("overnight.answers.lines:read_result", "is not a Pydantic model"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "not a valid JSON Schema"),
        ({"type": "string"}, "has to describe an object"),
    ],
)
def test_a_bad_schema_is_one_clear_error(schema: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        answer_of(job({"kind": "generate", "prompt": "{{ text }}", "schema": schema}))


def test_a_pydantic_model_is_a_schema_with_typed_columns() -> None:
    columns = answer_of(job({"kind": "generate", "prompt": "{{ text }}", "schema": "overnight.job.job:Prices"})).columns
    assert [(column.name, column.type) for column in columns] == [("input", pa.float64()), ("output", pa.float64())]

"""Templates: Jinja over columns, with a fast path that gives the same text."""

from __future__ import annotations

import json

import minijinja
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.errors import TemplateError
from overnight.job.job import Job
from overnight.job.prompt import compile_prompt
from overnight.job.template import compile_template, escape, escaped_column

SCHEMA = pa.schema(
    [("text", pa.string()), ("count", pa.int64()), ("score", pa.float64()), ("tags", pa.list_(pa.string()))]
)


def rendered(source: str, text: str = "hello", count: int = 3) -> str:
    job = Job.model_validate({"name": "j", "task": {"kind": "complete", "prompt": source}, "model": "m"})
    batch = pa.record_batch([[text], [count], [0.5], [["a", "b"]]], schema=SCHEMA)
    bodies = compile_prompt(job, SCHEMA).bodies(batch)
    assert bodies.errors == {}
    prompt: str = json.loads(bodies.texts[0])["prompt"]
    return prompt


@given(
    st.text(),
    st.integers(-(2**62), 2**62),
    st.text(alphabet=st.characters(exclude_characters="{}", exclude_categories=["Cs"])),
)
def test_plain_templates_say_the_same_as_the_engine(text: str, count: int, constant: str) -> None:
    source = f"{constant}{{{{ text }}}} %b % {{{{count}}}}{constant}"
    assert compile_template("t", source, SCHEMA).plain
    engine = minijinja.Environment(auto_escape_callback=lambda _name: False, keep_trailing_newline=True)
    assert rendered(source, text, count) == engine.render_str(source, text=text, count=count)


@given(st.lists(st.none() | st.text() | st.text(alphabet='a",\\\n\r\t\x00\x1fé🙂')))
def test_a_column_is_escaped_as_its_cells_are(texts: list[str | None]) -> None:
    for kind in (pa.string(), pa.large_string()):
        assert escaped_column(pa.array(texts, kind)) == [escape(text or "") for text in texts]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ text|upper }}", "HELLO"),
        ("{% if count > 2 %}many{% else %}few{% endif %}", "many"),
        ("{{ tags|join(', ') }} at {{ score }}", "a, b at 0.5"),
        ("{# nothing #}{{ text }}", "hello"),
    ],
)
def test_templates_can_do_what_jinja_can(source: str, text: str) -> None:
    assert rendered(source) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ texd }}", "no column 'texd'; did you mean 'text'? (the columns are: text, count, score, tags)"),
        ("{{ text", "t, line 1: syntax error: unexpected end of input"),
        ("one\n{% if %}", "t, line 2"),
        ("{% for x in nope %}{{ x }}{% endfor %}", "no column 'nope'"),
    ],
)
def test_a_wrong_template_says_where(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template("t", source, SCHEMA)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("{{ text }}", "null_input"),
        ("{{- text -}}", "null_input"),
        ("{{ text|upper }}", "null_input"),
        ('{{ row["text"] }}', "null_input"),
        ("{% if text %}{{ text }}{% else %}nothing{% endif %}", "nothing"),
        ("{% if not text %}nothing{% endif %}", "nothing"),
        ("{% if count and text %}both{% endif %}", ""),
        ("{{ text|default('none') }}", "none"),
        ("{{ count|upper|no_such }}", None),
        ("{{ count.strftime(1) }}", "template_error"),
    ],
)
def test_a_null_that_would_be_printed_is_an_error_of_its_row_and_one_that_is_guarded_is_not(
    source: str, made: str | None
) -> None:
    job = Job.model_validate({"name": "j", "task": {"kind": "complete", "prompt": source}, "model": "m"})
    batch = pa.record_batch([pa.array([None], pa.string()), [3], [0.5], [["a"]]], schema=SCHEMA)
    if made is None:
        with pytest.raises(TemplateError):
            compile_prompt(job, SCHEMA)
        return
    bodies = compile_prompt(job, SCHEMA).bodies(batch)
    assert (bodies.errors[0][0] if bodies.errors else json.loads(bodies.texts[0])["prompt"]) == made


def test_columns_of_any_name_are_reached_through_row() -> None:
    schema = pa.schema([("Review Text", pa.string()), ("true", pa.string()), ("range", pa.string())])
    batch = pa.record_batch([["fine"], ["yes"], ["far"]], schema=schema)
    source = '{{ row["Review Text"] }} {{ row["true"] }} {{ range }} {{ true }}'
    job = Job.model_validate({"name": "j", "task": {"kind": "complete", "prompt": source}, "model": "m"})
    assert json.loads(compile_prompt(job, schema).bodies(batch).texts[0])["prompt"] == "fine yes far True"
    with pytest.raises(TemplateError, match="write"):
        compile_template("t", "{{ Review Text }}", schema)


def test_rows_with_nulls_or_render_errors_are_errors_of_these_rows_only() -> None:
    task = {"kind": "generate", "system": "{{ tags[0]|upper }}", "prompt": "{{ text }}"}
    job = Job.model_validate({"name": "j", "task": task, "model": "m"})
    batch = pa.record_batch([["a", None, "c"], [1, 2, 3], [0.1] * 3, [["x"], ["y"], None]], schema=SCHEMA)
    errors = compile_prompt(job, SCHEMA).bodies(batch).errors
    assert {at: code for at, (code, _) in errors.items()} == {1: "null_input", 2: "null_input"}

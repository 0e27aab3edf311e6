"""What may be asked of a row: conversations, pictures, functions, parameters; what cannot be said is refused up front."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel

from overnight.errors import JobError, OvernightError, TemplateError
from overnight.job.job import Job
from overnight.job.jobfile import load_job
from overnight.job.parameters import unknown_parameters
from overnight.job.prompt import answer_of, schema_changes
from overnight.job.strict import make_strict
from overnight.rows.requests import Requests, request_source
from tests.conftest import ROOT

PICTURES = ROOT / "data/samples/pictures"
PNG = (PICTURES / "red-circle.png").read_bytes()
OPENAI = {"profile": "openai"}


def job(task: dict[str, Any], **fields: Any) -> Job:
    return load_job({"name": "j", "dataset": {"path": "x"}, "task": task, "model": "m", "provider": OPENAI, **fields})


def requests(made: Job, columns: dict[str, Any]) -> Requests:
    table = pa.RecordBatch.from_pydict(columns)
    return request_source(made, table.schema)(table, 0)


def body(task: dict[str, Any], columns: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    made = requests(job(task, **fields), columns or {"text": ["hello"]})
    assert not made.errors
    found: dict[str, Any] = json.loads(made.lines[0])["body"]
    return found


def generate(**fields: Any) -> dict[str, Any]:
    return {"kind": "generate", "prompt": "{{ text }}", **fields}


def test_a_list_of_messages_is_a_conversation() -> None:
    turns = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "{{ text }}"},
    ]
    made = body({"kind": "generate", "system": "Count.", "messages": turns}, {"text": ['3 "and" 3']})
    assert made["messages"] == [
        {"role": "system", "content": "Count."},
        *turns[:2],
        {"role": "user", "content": '3 "and" 3'},
    ]


@pytest.mark.parametrize("name", ["talk", "{{ talk }}"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_column_may_hold_conversations(name: str, as_text: bool) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    column = [json.dumps(talk)] if as_text else [talk]
    made = body({"kind": "generate", "messages": name, "system": "S {{ who }}"}, {"talk": column, "who": ["x"]})
    assert made["messages"] == [{"role": "system", "content": "S x"}, *talk]


@pytest.mark.parametrize(
    ("value", "code"),
    [(None, "null_input"), ("[]", "bad_messages"), ("{", "bad_messages"), ('[{"role": "nobody", "content": "x"}]', "bad_messages"), ('[{"role": "user"}]', "bad_messages")],
)  # fmt: skip
def test_a_conversation_that_is_none_is_an_error_of_its_row(value: Any, code: str) -> None:
    made = requests(job({"kind": "generate", "messages": "talk"}), {"talk": [value, '[{"role":"user","content":"x"}]']})
    assert {at: error[0] for at, error in made.errors.items()} == {0: code}


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        pytest.param("https://example.com/a.png", "https://example.com/a.png", id="address"),
        pytest.param(str(PICTURES / "red-circle.png"), data_uri(PNG, "image/png"), id="path"),
        pytest.param(f"file://{PICTURES / 'red-circle.png'}", data_uri(PNG, "image/png"), id="fsspec"),
        pytest.param(PNG, data_uri(PNG, "image/png"), id="bytes"),
        pytest.param({"bytes": PNG, "path": "x.png"}, data_uri(PNG, "image/png"), id="as datasets of images have it"),
        pytest.param(data_uri(PNG, "image/png"), data_uri(PNG, "image/png"), id="data URI"),
    ],
)
def test_an_image_is_sent_by_address_or_inside(value: Any, address: str) -> None:
    made = body(generate(images="{{ image }}"), {"text": ["what?"], "image": [value]})
    assert made["messages"][0]["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": address}},
    ]


def test_a_column_of_images_may_have_any_name() -> None:
    made = body(generate(images='{{ row["my \\\\ image"] }}'), {"text": ["what?"], "my \\ image": [PNG]})
    assert made["messages"][0]["content"][1]["image_url"]["url"] == data_uri(PNG, "image/png")


def test_lists_of_images_and_none_at_all() -> None:
    made = requests(
        job(generate(images=["{{ image }}", "https://e.com/{{ n }}.png"])),
        {"text": ["a", "b"], "image": [["https://x/1", "https://x/2"], None], "n": [1, 2]},
    )
    urls = [
        [part["image_url"]["url"] for part in json.loads(line)["body"]["messages"][0]["content"][1:]]
        for line in made.lines
    ]
    assert urls == [["https://x/1", "https://x/2", "https://e.com/1.png"], ["https://e.com/2.png"]]


def test_the_responses_api_has_its_own_parts() -> None:
    task = {"kind": "respond", "input": "{{ text }}", "images": "{{ image }}", "files": "https://e.com/{{ text }}.pdf"}
    made = body(task, {"text": ["t"], "image": [PNG]})
    assert made["input"] == [{"role": "user", "content": [
        {"type": "input_text", "text": "t"}, {"type": "input_image", "image_url": data_uri(PNG, "image/png")},
        {"type": "input_file", "file_url": "https://e.com/t.pdf"},
    ]}]  # fmt: skip


def test_documents_and_recordings_go_inside(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf := b"%PDF-1.7 ... %%EOF\n")
    (tmp_path / "a.wav").write_bytes(wav := b"RIFF\x24\0\0\0WAVEfmt ")
    task = generate(files="{{ doc }}", audio="{{ sound }}", media_folder=str(tmp_path))
    made = body(task, {"text": ["t"], "doc": ["a.pdf"], "sound": [wav]})
    assert made["messages"][0]["content"][1:] == [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": data_uri(pdf, "application/pdf")}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}},
    ]


@pytest.mark.parametrize(
    ("field", "value", "code", "why"),
    [
        ("images", "nowhere/a.png", "bad_image", "nowhere/a.png: No such file"),
        ("images", b"", "bad_image", "is empty"),
        ("images", b"<html>", "bad_image", "not PNG, JPEG, GIF or WebP"),
        ("images", PNG[:-20], "bad_image", "cut off"),
        ("images", "data:image/png;base64,???", "bad_image", "not base64"),
        ("audio", PNG, "bad_audio", "it is image/png, not WAV or MP3"),
        ("files", b"\xff\xfe\x00\x01", "bad_file", "of no known kind"),
    ],
)
def test_an_unreadable_image_is_an_error_of_its_row(field: str, value: Any, code: str, why: str) -> None:
    made = requests(job(generate(**{field: "{{ it }}"})), {"text": ["a"], "it": [value]})
    assert made.errors[0][0] == code
    assert why in made.errors[0][1]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("../secret.txt", "lies outside of"),
        ("/etc/hostname", "lies outside of"),
        ("file:///etc/hostname", "name the folder of such files in task.media_folder"),
        ("link.txt", "lies outside of"),
        ("zip://x.txt::file:///x.zip", "is not read from a row"),
        ("simplecache::file:///etc/hostname", "is not read from a row"),
        ("local:///etc/hostname", "is not read from a row"),
    ],
)
def test_a_row_does_not_choose_which_files_of_the_machine_are_sent(tmp_path: Path, value: str, why: str) -> None:
    (tmp_path / "secret.txt").write_text("a key")
    (folder := tmp_path / "docs").mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    made = requests(job(generate(files="{{ it }}", media_folder=str(folder))), {"text": ["a"], "it": [value]})
    assert made.errors[0][0] == "bad_file"
    assert why in made.errors[0][1]


def test_paths_may_lead_into_the_datasets_own_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    task, dataset = generate(images="{{ it }}"), {"path": str(tmp_path / "rows.csv")}
    assert body(task, {"text": ["t"], "it": [str(tmp_path / "a.png")]}, dataset=dataset)


def test_an_image_that_is_too_large_for_a_batch_is_too_large() -> None:
    made = requests(
        job(generate(images="{{ it }}"), limits={"max_bytes": 1024}), {"text": ["a"], "it": [PNG + b"\0" * 1500]}
    )
    assert made.errors[0][0] == "too_large"


TOOL = {"name": "send", "parameters": {"type": "object", "properties": {"order": {"type": "string"}}}}


def test_functions_are_sent_in_the_endpoints_form() -> None:
    made = body(generate(tools=[TOOL], tool_choice="send"))
    assert (made["tools"], made["tool_choice"]) == (
        [{"type": "function", "function": TOOL}],
        {"type": "function", "function": {"name": "send"}},
    )
    made = body({"kind": "respond", "input": "{{ text }}", "tools": [TOOL], "tool_choice": "required"})
    assert (made["tools"], made["tool_choice"]) == ([{"type": "function", **TOOL}], "required")


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}},
    "required": ["a"],
}


def test_parameters_merge_with_what_the_task_sets() -> None:
    made = body({"kind": "respond", "input": "{{ text }}", "schema": SCHEMA}, parameters={"text": {"verbosity": "low"}})
    assert made["text"]["verbosity"] == "low"
    assert made["text"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (generate(schema=SCHEMA), {"parameters": {"response_format": {"type": "json_object"}}}, r"parameters\.response_format\.type clashes with what the task sets"),
        (generate(tools=[TOOL]), {"parameters": {"tools": []}}, r"parameters\.tools clashes"),
        (generate(), {"parameters": {"max_token": 5}}, "parameters.max_token is no parameter of /v1/chat/completions; did you mean 'max_tokens'"),
        (generate(), {"parameters": {"temprature": 0}}, "did you mean 'temperature'"),
        ({"kind": "generate", "prompt": "x", "messages": "y"}, {}, "either prompt or messages"),
        ({"kind": "generate"}, {}, "either prompt or messages"),
        (generate(tools=[{"description": "x"}]), {}, "task.tools.0 has no name"),
        (generate(tools=[TOOL, TOOL]), {}, "two functions named send"),
        (generate(tools=[{"name": "f", "parameters": {"type": "objekt"}}]), {}, r"task\.tools\.0\.parameters is not a valid JSON Schema"),
        (generate(tools=[TOOL], tool_choice="sent"), {}, "names no function 'sent'; did you mean 'send'"),
        (generate(tools=[TOOL], schema=SCHEMA), {}, "leave one of them out"),
        ({"kind": "respond", "input": "{{ text }}", "audio": "{{ text }}"}, {}, "takes no recordings"),
        ({"kind": "classify", "text": "{{ text }}", "labels": [True, False]}, {}, "put them into quotes"),
        ({"kind": "generate", "messages": "talks"}, {}, "no column 'talks'"),
        ({"kind": "generate", "messages": [{"role": "assistant", "content": "{{ text }}"}], "images": "{{ text }}"}, {}, "no message of the user"),
        ({"kind": "generate", "prompt": "Say hi"}, {}, "task.prompt names no column"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_up_front(task: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OvernightError, match=message):
        body(task, **fields)


def test_a_constant_template_may_be_meant() -> None:
    assert body({"kind": "generate", "prompt": "Say hi", "constant": True})["messages"] == [
        {"role": "user", "content": "Say hi"}
    ]
    assert body(generate(prompt="What is it?", images="{{ text }}"), {"text": ["https://e.com/a"]})


def test_unknown_parameters_pass_and_are_named() -> None:
    assert body(generate(), parameters={"vendor_flag": 1, "top_k": 5})["vendor_flag"] == 1
    assert unknown_parameters("/v1/chat/completions", ["vendor_flag", "top_k", "seed"]) == ["vendor_flag"]


def test_a_schema_is_made_strict_and_the_changes_are_said() -> None:
    made = job(generate(schema=SCHEMA))
    form = body(generate(schema=SCHEMA))["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["required"] == ["a", "b"]
    assert form["schema"]["additionalProperties"] is False
    assert schema_changes(made) == [
        "schema: closed (`additionalProperties: false`)",
        "schema: b required, null where there is nothing",
    ]
    loose = body(generate(schema=SCHEMA, strict=False))["response_format"]["json_schema"]
    assert (loose["strict"], loose["schema"]) == (False, SCHEMA)
    assert schema_changes(job(generate(schema=SCHEMA, strict=False))) == []


@pytest.mark.parametrize(
    ("part", "made"),
    [
        ({"type": "string"}, {"type": ["string", "null"]}),
        ({"enum": ["x"]}, {"enum": ["x", None]}),
        ({"type": "string", "enum": ["x"]}, {"type": ["string", "null"], "enum": ["x", None]}),
        ({"$ref": "#/$defs/A"}, {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"const": 1}, {"anyOf": [{"const": 1}, {"type": "null"}]}),
    ],
)  # fmt: skip
def test_an_optional_property_may_be_null_instead(part: dict[str, Any], made: dict[str, Any]) -> None:
    assert make_strict({"type": "object", "properties": {"p": part}}).schema["properties"]["p"] == made


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "object", "additionalProperties": {"type": "string"}}, "p: an object of any keys"),
        ({"type": "object"}, "p: an object without properties"),
        ({"allOf": [{"type": "string"}]}, "p: `allOf`"),
        ({"type": "array", "items": {}}, r"p\[\]: a schema without a type"),
        ({"type": "array", "items": {"type": "object", "properties": {"q": {"oneOf": []}}}}, r"p\[\]\.q: `oneOf`"),
    ],
)
def test_what_strict_output_cannot_say_is_refused_with_the_mend(part: dict[str, Any], where: str) -> None:
    with pytest.raises(JobError, match=f"(?s)task.strict: false.*{where}"):
        make_strict({"type": "object", "properties": {"p": part}})


class Settings(BaseModel):
    """Properties whose names are keywords of JSON Schema."""

    default: str
    title: int
    type: str = "x"


def test_properties_may_be_named_as_keywords_are() -> None:
    made = job(generate(schema="tests.test_tasks:Settings"))
    assert [column.name for column in answer_of(made).columns] == ["default", "title", "type"]


def test_a_template_error_names_the_message_it_stands_in() -> None:
    with pytest.raises(TemplateError, match=r"task\.messages\.0: the dataset has no column 'txt'"):
        body({"kind": "generate", "messages": [{"role": "user", "content": "{{ txt }}"}]})


def test_fields_that_came_later_are_part_of_a_definition_only_where_they_are_used() -> None:
    later = {"messages", "images", "files", "audio", "media_folder", "tools", "tool_choice", "constant", "strict"}
    assert not later & job(generate()).definition()["task"].keys()
    used = job(generate(strict=False, tools=[TOOL], images="{{ text }}")).definition()["task"]
    assert later & used.keys() == {"strict", "tools", "images"}

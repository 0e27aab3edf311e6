"""The server with the embedded model, used as the guide uses a Batch API: with the plain openai SDK."""

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.test_endpoint_support import (
    Endpoint,
    client,
    create_batch,
    endpoint,
    health,
    read_lines,
    request_line,
    until,
    wait_for_end,
)

MODEL = "smollm2-135m-instruct"
SCHEMA = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["negative", "positive"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "sentiment", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with endpoint(tmp_path_factory.mktemp("embedded")) as running:
        until(lambda: health(running.url), lambda found: bool(found["ready"]))
        yield running


@pytest.fixture
def sdk(embedded: Endpoint) -> Iterator[OpenAI]:
    with client(embedded.url) as openai_client:
        yield openai_client


def answer(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


def test_the_guides_walk_upload_create_poll_download(sdk: OpenAI, tmp_path: Path) -> None:
    texts = {"row-1": "I love it, works perfectly!", "row-2": "Broken on arrival, awful.", "row-3": "Great value."}
    options = {"temperature": 0, "max_tokens": 64, "response_format": FORMAT}
    path = tmp_path / "batch_requests.jsonl"
    path.write_text("".join(request_line(key, text, MODEL, **options) + "\n" for key, text in texts.items()))
    with path.open("rb") as handle:
        file = sdk.files.create(file=handle, purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == (path.name, path.stat().st_size, "batch")
    created = sdk.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "reviews"},
    )
    assert created.status == "validating"
    batch = wait_for_end(sdk, created)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 3, "failed": 0}
    assert (batch.model, batch.metadata, batch.error_file_id) == (MODEL, {"job": "reviews"}, None)
    assert batch.expires_at == batch.created_at + 86_400
    moments = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert moments == sorted(moment for moment in moments if moment is not None)
    lines = read_lines(sdk, batch.output_file_id)
    assert {line["custom_id"] for line in lines} == set(texts)
    assert all(json.loads(answer(line))["sentiment"] in {"negative", "positive"} for line in lines)
    total = sum(line["response"]["body"]["usage"]["total_tokens"] for line in lines)
    assert batch.usage is not None
    assert batch.usage.total_tokens == total > 0
    assert batch.id in [found.id for found in sdk.batches.list(limit=10).data]


def test_a_bad_line_fails_the_batch_with_openais_code_and_line_before_any_work(sdk: OpenAI) -> None:
    batch = wait_for_end(sdk, create_batch(sdk, [request_line("a", "hi", MODEL), request_line("a", "hi", MODEL)]))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line, error.param) for error in batch.errors.data] == [
        ("duplicate_custom_id", 2, "custom_id")
    ]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_a_model_that_is_not_served_is_named_with_those_that_are(sdk: OpenAI) -> None:
    batch = wait_for_end(sdk, create_batch(sdk, [request_line("a", "hi", "deepseek-chat")]))
    assert batch.errors is not None
    assert batch.errors.data is not None
    (error,) = batch.errors.data
    assert error.code == "model_not_found"
    assert error.message is not None
    assert MODEL in error.message


def test_a_prompt_that_is_too_long_is_a_failed_line_and_the_others_are_answered(sdk: OpenAI) -> None:
    lines = [request_line("long", "word " * 5000, MODEL), request_line("short", "Say hi.", MODEL, max_tokens=4)]
    batch = wait_for_end(sdk, create_batch(sdk, lines))
    assert batch.status == "completed"
    (failed,) = read_lines(sdk, batch.error_file_id)
    assert (failed["custom_id"], failed["error"], failed["response"]["status_code"]) == ("long", None, 400)
    assert failed["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert [line["custom_id"] for line in read_lines(sdk, batch.output_file_id)] == ["short"]


def test_a_batch_whose_lines_all_fail_is_completed_without_an_output_file(sdk: OpenAI) -> None:
    batch = wait_for_end(sdk, create_batch(sdk, [request_line("a", "hi", MODEL, temperature="hot")]))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert len(read_lines(sdk, batch.error_file_id)) == 1


def test_real_time_chat_goes_to_the_same_model(sdk: OpenAI) -> None:
    message: Any = {"role": "user", "content": "Is this review negative or positive? I love it."}
    request_format: Any = FORMAT
    said = sdk.chat.completions.create(
        model=MODEL, messages=[message], response_format=request_format, max_completion_tokens=32, seed=1
    )
    assert said.choices[0].message.content in {'{"sentiment":"negative"}', '{"sentiment":"positive"}'}
    assert said.usage is not None
    assert said.usage.completion_tokens <= 32


def test_json_objects_and_plain_completions_are_answered(sdk: OpenAI) -> None:
    message: Any = {"role": "user", "content": 'Repeat: {"a": 1}'}
    said = sdk.chat.completions.create(
        model=MODEL, messages=[message], response_format={"type": "json_object"}, max_tokens=40, temperature=0
    )
    assert said.choices[0].finish_reason == "length" or json.loads(said.choices[0].message.content or "") is not None
    text = sdk.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=5, stop=["\n\n"])
    assert text.usage is not None
    assert text.usage.completion_tokens <= 5


def test_an_endless_answer_ends_at_a_default_bound(sdk: OpenAI) -> None:
    message: Any = {"role": "user", "content": "Count from one to ten thousand in words, every number."}
    bias: Any = {"ignore_eos": True, "temperature": 0}
    said = sdk.chat.completions.create(model=MODEL, messages=[message], extra_body=bias)
    assert said.usage is not None
    assert said.usage.completion_tokens <= 512


def test_models_are_listed_and_described(sdk: OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sdk.models.retrieve("gpt-6")


def test_health_says_what_is_served(embedded: Endpoint) -> None:
    found = health(embedded.url)
    assert found["status"] == "ok"
    assert found["endpoints"] == ["/v1/chat/completions", "/v1/completions"]
    assert found["models"] == [MODEL]


def test_lists_have_pages_that_cover_everything_once_newest_first(sdk: OpenAI) -> None:
    line = request_line("a", "hi", "no-such-model")
    made = [create_batch(sdk, [line]) for _ in range(5)]
    expected = [batch.id for batch in reversed(made)]
    first = sdk.batches.list(limit=2)
    assert [batch.id for batch in first.data] == expected[:2]
    assert first.has_next_page()
    walked = [batch.id for batch in sdk.batches.list(limit=2)]
    assert walked[:5] == expected
    assert len(walked) == len(set(walked))
    files = [file.id for file in sdk.files.list(limit=2, purpose="batch")]
    assert files[:5] == [batch.input_file_id for batch in reversed(made)]
    assert files[::-1] == [file.id for file in sdk.files.list(limit=3, purpose="batch", order="asc")]
    raw = httpx2.get(str(sdk.base_url) + "batches?limit=2").json()
    assert raw["object"] == "list"
    assert (raw["first_id"], raw["last_id"]) == (raw["data"][0]["id"], raw["data"][1]["id"])


def test_a_file_can_be_read_back_and_deleted(sdk: OpenAI) -> None:
    content = "ü\n".encode()
    file = sdk.files.create(file=("../../etc/pass wd\u202e.jsonl", content), purpose="batch")
    response = sdk.files.with_raw_response.content(file.id)
    assert (response.content, response.headers["content-length"]) == (content, str(len(content)))
    assert sdk.files.delete(file.id).deleted
    for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            call(file.id)


ANY_FILE = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
REFUSED = [
    pytest.param({"endpoint": "/v1/embeddings"}, "endpoint", "Served: /v1/chat", id="endpoint not served"),
    pytest.param({"completion_window": "15d"}, "completion_window", "14 days", id="window too long"),
    pytest.param({"completion_window": None}, "completion_window", "string", id="no window"),
    pytest.param({"input_file_id": "file-none"}, "input_file_id", "does not exist", id="no such file"),
    pytest.param({"input_file_id": "../endpoint.sqlite"}, "input_file_id", "does not exist", id="a path"),
    pytest.param({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "16", id="too many metadata"),
    pytest.param({"metadata": {"k": "x" * 513}}, "metadata.k", "512", id="long metadata value"),
    pytest.param({"metadata": {"k": 1}}, "metadata.k", "string", id="metadata value is a number"),
    pytest.param({"input_file_id": "\ud800"}, "input_file_id", "surrogates", id="half a surrogate pair"),
    pytest.param({"surprise": 1}, "surprise", "Unknown parameter", id="unknown parameter"),
]


@pytest.mark.parametrize(("changes", "param", "message"), REFUSED)
def test_a_batch_that_cannot_be_is_refused_at_once(
    sdk: OpenAI, changes: dict[str, Any], param: str, message: str
) -> None:
    file = sdk.files.create(file=("a.jsonl", request_line("a", "hi", MODEL).encode()), purpose="batch")
    body = {**ANY_FILE, "input_file_id": file.id, **changes}
    headers = {"content-type": "application/json"}
    response = httpx2.post(str(sdk.base_url) + "batches", content=json.dumps(body), headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert message in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/batches/batch_none", 404),
        ("POST", "/v1/batches/batch_none/cancel", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/files", 405),
        ("GET", "/v1/batches?limit=0", 400),
        ("GET", "/v1/batches?after=batch_none", 400),
        ("POST", "/v1/batches", 400),
        ("POST", "/v1/files", 400),
        ("POST", "/v1/embeddings", 400),
        ("POST", "/v1/chat/completions", 400),
    ],
)
def test_every_error_has_openais_envelope(embedded: Endpoint, method: str, path: str, status: int) -> None:
    response = httpx2.request(method, embedded.url.removesuffix("/v1") + path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_an_upload_over_the_limit_is_refused_before_it_is_sent(embedded: Endpoint) -> None:
    with closing(HTTPConnection(urlsplit(embedded.url).netloc, timeout=30)) as connection:
        connection.putrequest("POST", "/v1/files")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(600 * 1024 * 1024))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "file_too_large"


def test_an_ended_batch_cannot_be_cancelled(sdk: OpenAI) -> None:
    batch = wait_for_end(sdk, create_batch(sdk, [request_line("a", "hi", "no-such-model")]))
    with pytest.raises(openai.ConflictError, match="status 'failed'"):
        sdk.batches.cancel(batch.id)

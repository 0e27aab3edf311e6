"""Every rule of OpenAI's Files and Batches API, asked for with the plain openai SDK, whose types are held to strictly."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import httpx2
import openai
import pytest
import uvicorn
from openai import OpenAI
from openai.types import Batch, FileObject

from overnight.endpoint.api.guard import MAX_JSON_BYTES, Guard, PatientProtocol
from overnight.endpoint.storage.records import STATUSES
from tests.test_endpoint_support import (
    Endpoint,
    HeldUpstream,
    create_batch,
    endpoint,
    held_upstream,
    read_lines,
    request_line,
    until,
    upload,
    wait_for_end,
)

LINES = [request_line(f"row-{number}", f"prompt {number}") for number in range(3)]


@contextmanager
def strict(url: str, key: str = "any") -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def upstream() -> Iterator[HeldUpstream]:
    with held_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: HeldUpstream) -> Iterator[Endpoint]:
    with endpoint(tmp_path_factory.mktemp("server"), "--upstream", upstream.url) as running:
        yield running


@pytest.fixture
def sdk(server: Endpoint) -> Iterator[OpenAI]:
    with strict(server.url) as openai_client:
        yield openai_client


def test_the_statuses_are_those_of_the_sdk() -> None:
    assert set(STATUSES) == set(get_args(Batch.model_fields["status"].annotation))


def test_a_batch_has_all_fields_of_the_sdk_and_no_others(sdk: OpenAI) -> None:
    raw = sdk.batches.with_raw_response.retrieve(create_batch(sdk, LINES).id)
    assert json.loads(raw.text).keys() == Batch.model_fields.keys()


def test_files_expire_when_they_are_told_to(sdk: OpenAI) -> None:
    told = sdk.files.create(
        file=("a.jsonl", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert told.expires_at == told.created_at + 3600
    untold = sdk.files.create(file=("a.jsonl", b"x"), purpose="batch")
    assert untold.expires_at == untold.created_at + 30 * 86_400
    batch = create_batch(sdk, LINES, output_expires_after={"anchor": "created_at", "seconds": 7200})
    batch = wait_for_end(sdk, batch)
    assert batch.output_file_id
    output = sdk.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.expires_at) == ("batch_output", output.created_at + 7200)


@pytest.mark.parametrize(
    ("expires_after", "param"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after.seconds"),
        ({"anchor": "last_active_at", "seconds": 3600}, "expires_after.anchor"),
        ({"seconds": 3600}, "expires_after.anchor"),
    ],
)
def test_an_expiry_out_of_bounds_is_refused(sdk: OpenAI, expires_after: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        sdk.files.create(file=("a.jsonl", b"x"), purpose="batch", expires_after=expires_after)
    assert refusal.value.param == param
    with pytest.raises(openai.BadRequestError) as refusal:
        create_batch(sdk, LINES, output_expires_after=expires_after)
    assert str(refusal.value.param).startswith("output_expires_after")


@pytest.mark.parametrize("purpose", ["fine-tune", "assistants", "batch_output", ""])
def test_only_files_for_batches_are_taken(sdk: OpenAI, purpose: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        sdk.files.create(file=("a.jsonl", b"x"), purpose=purpose)
    assert refusal.value.param == "purpose"


def test_files_are_listed_by_purpose_in_either_order_page_by_page(sdk: OpenAI) -> None:
    made = [upload(sdk, LINES) for _ in range(5)]
    batch = wait_for_end(sdk, create_batch(sdk, LINES))
    newest = sdk.files.list(purpose="batch_output", limit=1).data[0]
    assert newest.id == batch.output_file_id
    oldest_first = [file.id for file in sdk.files.list(purpose="batch", limit=2, order="asc")]
    newest_first = [file.id for file in sdk.files.list(purpose="batch", limit=3, order="desc")]
    assert oldest_first == newest_first[::-1]
    assert oldest_first[-6:-1] == made
    assert sdk.files.list(purpose="batch", after=made[0], limit=2, order="asc").data[0].id == made[1]
    assert [file.purpose for file in sdk.files.list(purpose="vision")] == []


WINDOWS = ["24h", "1m", "90m", "336h", "14d"]


@pytest.mark.parametrize("window", WINDOWS)
def test_completion_windows_run_from_a_minute_to_two_weeks(sdk: OpenAI, window: str) -> None:
    batch = create_batch(sdk, LINES, window)
    seconds = int(window[:-1]) * {"m": 60, "h": 3600, "d": 86_400}[window[-1]]
    assert batch.expires_at == batch.created_at + seconds


def test_metadata_of_16_pairs_of_64_and_512_characters_is_kept(sdk: OpenAI) -> None:
    metadata = {f"{number:064}": "ü" * 512 for number in range(16)}
    batch = create_batch(sdk, LINES, metadata=metadata)
    assert wait_for_end(sdk, batch).metadata == metadata


def test_a_batch_passes_its_states_in_order_and_every_line_has_one_result(sdk: OpenAI) -> None:
    batch = wait_for_end(sdk, create_batch(sdk, LINES))
    moments = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert moments == sorted(moment for moment in moments if moment is not None)
    assert (batch.failed_at, batch.expired_at, batch.cancelling_at, batch.cancelled_at) == (None,) * 4
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (9, 6, 15)
    lines = read_lines(sdk, batch.output_file_id)
    assert sorted(line["custom_id"] for line in lines) == ["row-0", "row-1", "row-2"]
    assert all(line.keys() == {"id", "custom_id", "response", "error"} for line in lines)
    assert all(line["response"].keys() == {"status_code", "request_id", "body"} for line in lines)


def test_a_batch_that_ended_is_not_cancelled_and_one_that_was_stays_so(sdk: OpenAI) -> None:
    ended = wait_for_end(sdk, create_batch(sdk, LINES))
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'") as refusal:
        sdk.batches.cancel(ended.id)
    assert refusal.value.response.headers["x-should-retry"] == "false"


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "p"}),
    ("/v1/embeddings", {"input": "e"}),
    ("/v1/responses", {"input": "r", "instructions": "i"}),
    ("/v1/moderations", {"input": "m"}),
]


@pytest.mark.parametrize(("path", "body"), BODIES, ids=[path for path, _ in BODIES])
def test_lines_of_every_endpoint_are_passed_on_as_they_are(
    sdk: OpenAI, upstream: HeldUpstream, path: Any, body: dict[str, Any]
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": path, "body": {"model": "m", **body}}
    batch = wait_for_end(sdk, create_batch(sdk, [json.dumps(line)], endpoint=path))
    (answer,) = read_lines(sdk, batch.output_file_id)
    prompt = str(body.get("input") or body.get("prompt"))
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"echo {prompt}"
    assert upstream.paths[prompt] == path


def test_the_same_idempotency_key_makes_one_batch_even_across_a_kill(tmp_path: Path) -> None:
    with held_upstream() as upstream:
        options = ("--upstream", upstream.url)
        with endpoint(tmp_path, *options) as first, strict(first.url) as sdk:
            wanted: dict[str, Any] = {
                "input_file_id": upload(sdk, LINES),
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
                "extra_headers": {"Idempotency-Key": "k1"},
            }
            made = sdk.batches.create(**wanted)
            assert sdk.batches.create(**wanted).id == made.id
            first.kill()
        with endpoint(tmp_path, *options) as second, strict(second.url) as sdk:
            assert sdk.batches.create(**wanted).id == made.id
            with pytest.raises(openai.ConflictError) as refusal:
                sdk.batches.create(**wanted, metadata={"another": "body"})
            assert refusal.value.code == "idempotency_key_reused"
            assert sdk.batches.create(**{**wanted, "extra_headers": {"Idempotency-Key": "k2"}}).id != made.id
            assert len(sdk.batches.list().data) == 2
            for batch in sdk.batches.list():
                wait_for_end(sdk, batch)


def test_a_refused_creation_does_not_use_up_its_idempotency_key(sdk: OpenAI) -> None:
    headers = {"Idempotency-Key": "refused"}
    with pytest.raises(openai.BadRequestError):
        sdk.batches.create(
            input_file_id="file-none", endpoint="/v1/completions", completion_window="24h", extra_headers=headers
        )
    assert create_batch(sdk, LINES, extra_headers=headers).status == "validating"


def test_more_open_batches_than_allowed_are_refused_until_one_ends(tmp_path: Path) -> None:
    with held_upstream(free=0) as upstream:
        options = ("--upstream", upstream.url, "--max-open-batches", "2", "--grace-seconds", "0.1")
        with endpoint(tmp_path, *options) as running, strict(running.url) as sdk:
            first, _ = create_batch(sdk, LINES), create_batch(sdk, LINES)
            with pytest.raises(openai.RateLimitError, match="Too many batches are open: 2") as refusal:
                create_batch(sdk, LINES)
            assert refusal.value.code == "too_many_batches"
            sdk.batches.cancel(first.id)
            cancelled = wait_for_end(sdk, first)
            assert sdk.batches.cancel(first.id) == cancelled
            create_batch(sdk, LINES)


def test_a_disk_that_would_be_too_full_refuses_uploads_before_they_are_sent(tmp_path: Path) -> None:
    with (
        endpoint(tmp_path, "--upstream", "http://127.0.0.1:9", "--min-free-mb", "1000000000") as running,
        strict(running.url) as sdk,
    ):
        with pytest.raises(openai.InternalServerError, match="disk is nearly full") as refusal:
            upload(sdk, LINES)
        assert (refusal.value.status_code, refusal.value.code) == (507, "insufficient_storage")
        assert list((tmp_path / "files").iterdir()) == []


def test_strangers_are_refused_everywhere_before_anything_else_is_looked_at(tmp_path: Path) -> None:
    options = ("--client-key-env", "CLIENT_KEY", "--upstream", "http://127.0.0.1:9")
    with endpoint(tmp_path, *options, CLIENT_KEY="s3cret") as running:
        address = running.url.removesuffix("/v1")
        for method, path in [
            ("POST", "/v1/batches"),
            ("GET", "/v1/nothing"),
            ("PUT", "/v1/files"),
            ("GET", "/metrics"),
        ]:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cretx"}):
                response = httpx2.request(method, address + path, headers=headers, content=b"{")
                assert response.status_code == 401
                assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        known = {"Authorization": "Bearer s3cret"}
        assert httpx2.get(address + "/metrics", headers=known).status_code == 200
        assert httpx2.get(address + "/healthz").status_code == 200
    log = (tmp_path / "log.txt").read_text()
    assert "s3cret" not in log


@pytest.mark.parametrize("announced", [True, False], ids=["by its length", "while it arrives"])
def test_a_body_over_its_bound_is_refused(server: Endpoint, announced: bool) -> None:
    body = b"x" * (MAX_JSON_BYTES + 1)
    content: Any = body if announced else iter([body[: 1 << 19], body[1 << 19 :]])
    response = httpx2.post(f"{server.url}/batches", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("path", ["files/..%2Fendpoint.sqlite", "files/..%2Fendpoint.sqlite/content", "files/%00/content", "batches/..%2F..%2Fx", "files/%ff"])  # fmt: skip
def test_paths_in_ids_lead_nowhere(server: Endpoint, path: str) -> None:
    response = httpx2.get(f"{server.url}/{path}")
    assert response.status_code == 404
    assert "error" in response.json()


@pytest.mark.parametrize("name", ["../../x.jsonl", "a/b\\c.jsonl", "x" * 600, "nul\x00.jsonl", "üñ🙂.jsonl", "'; DROP TABLE files;--"])  # fmt: skip
def test_odd_file_names_are_only_names(sdk: OpenAI, server: Endpoint, name: str) -> None:
    before = sorted(path.name for path in server.data.iterdir())
    file = sdk.files.create(file=(name, b"x"), purpose="batch")
    assert isinstance(file, FileObject)
    assert sdk.files.content(file.id).content == b"x"
    assert sorted(path.name for path in server.data.iterdir()) == before
    assert (server.data / "files" / file.id).exists()


@contextmanager
def impatient_server() -> Iterator[tuple[str, int]]:
    """The guard and the protocol of the server with short patience, before an application that reads bodies."""

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    class Impatient(PatientProtocol):
        head_seconds = 0.1

    guarded = Guard(reads, None, silent_seconds=0.1)
    server = uvicorn.Server(
        uvicorn.Config(guarded, port=0, http=Impatient, lifespan="off", log_config=None, log_level="critical")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, bool)
        host, port = server.servers[0].sockets[0].getsockname()
        yield host, port
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/batches HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_client_that_stands_still_is_let_go_of(sent: bytes) -> None:
    with impatient_server() as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        while connection.recv(4096):
            pass
        assert time.monotonic() - began < 9


def test_a_client_that_asks_often_keeps_its_connection() -> None:
    """The server is asked again and again over several times its patience, between two looks at the connection."""
    with impatient_server() as address, socket.create_connection(address, timeout=10) as connection:
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 204")
            time.sleep(0.01)

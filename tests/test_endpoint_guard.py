"""Who may call a server without a key: clients on its machine, and no page of a browser there."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from overnight.endpoint.api.origin import host_of, served_hosts
from tests.test_endpoint_support import (
    Endpoint,
    HeldUpstream,
    client,
    create_batch,
    endpoint,
    held_upstream,
    request_line,
    upload,
    wait_for_end,
)

NOWHERE = ("--upstream", "http://127.0.0.1:9")
LINES = [request_line("a", "hi")]
PATHS = [
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("POST", "/v1/batches"),
    ("POST", "/v1/chat/completions"),
    ("OPTIONS", "/v1/batches"),
    ("DELETE", "/v1/files/file-1"),
    ("GET", "/v1/nothing"),
]


@pytest.fixture(scope="module")
def upstream() -> Iterator[HeldUpstream]:
    with held_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: HeldUpstream) -> Iterator[Endpoint]:
    with endpoint(tmp_path_factory.mktemp("server"), "--upstream", upstream.url) as running:
        yield running


def ask(running: Endpoint, method: str, path: str, **sent: Any) -> httpx2.Response:
    return httpx2.request(method, running.url.removesuffix("/v1") + path, **sent)


def error_of(response: httpx2.Response) -> tuple[int, str | None]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:1", "[::1]", "[0:0:0:0:0:0:0:1]:8642"]
)
def test_this_machine_is_served_under_each_of_its_names_and_any_port(server: Endpoint, host: str) -> None:
    assert ask(server, "GET", "/healthz", headers={"Host": host}).status_code == 200
    page = {"Host": host, "Origin": f"http://{host}"}
    assert ask(server, "GET", "/v1/batches", headers=page).status_code == 200


STRANGE = [
    "evil.example", "evil.example:8642", "127.0.0.1.evil.example", "localhost.evil.example", "localhost@evil.example",
    "127.0.0.1:80@evil.example", "127.0.0.2", "0.0.0.0", "[::2]", "[::1]evil.example", "localhost evil.example", "é.example",
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_name_that_was_pointed_at_this_machine_is_refused_on_every_path(
    server: Endpoint, method: str, path: str
) -> None:
    assert error_of(ask(server, method, path, headers={"Host": "evil.example"})) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", STRANGE)
def test_every_other_host_is_refused_with_the_names_that_are_served(server: Endpoint, host: str) -> None:
    response = ask(server, "GET", "/v1/batches", headers={"Host": host.encode("latin-1")})
    assert error_of(response) == (403, "host_not_allowed")
    message = response.json()["error"]["message"]
    assert "127.0.0.1, [::1], localhost" in message
    assert "--client-key-env" in message


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_every_reply_has_an_id_to_ask_about(server: Endpoint, method: str, path: str) -> None:
    ids = {ask(server, method, path).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", one) for one in ids)


def test_a_request_without_a_host_is_refused(server: Endpoint) -> None:
    address = httpx2.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.recv(4096)


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_page_of_another_site_is_refused_on_every_path(server: Endpoint, method: str, path: str) -> None:
    headers = {"Origin": "https://evil.example"}
    assert error_of(ask(server, method, path, headers=headers)) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    "origin", ["null", "", "localhost", "file://", "http://[::1", *(f"http://{host}" for host in STRANGE)]
)
def test_every_origin_but_this_machine_is_refused(server: Endpoint, origin: str) -> None:
    headers = {"Origin": origin.encode("latin-1")}
    assert error_of(ask(server, "GET", "/v1/batches", headers=headers)) == (403, "origin_not_allowed")


def test_a_page_can_neither_upload_nor_start_a_batch_nor_ask_the_model(
    server: Endpoint, upstream: HeldUpstream
) -> None:
    with client(server.url) as sdk:
        file_id = upload(sdk, LINES)
    batch = json.dumps({"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"})
    chat = json.dumps({"model": "small", "messages": [{"role": "user", "content": "from a page"}]})
    plain = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
    for sent in ({"content": batch, "headers": plain}, {"content": chat, "headers": plain}):
        for path in ("/v1/batches", "/v1/chat/completions"):
            assert ask(server, "POST", path, **sent).status_code == 403
    form: dict[str, Any] = {"files": {"file": ("a.jsonl", b"x")}, "data": {"purpose": "batch"}}
    assert ask(server, "POST", "/v1/files", headers={"Origin": "https://evil.example"}, **form).status_code == 403
    with client(server.url) as sdk:
        assert sdk.batches.list().data == []
        assert [file.id for file in sdk.files.list()] == [file_id]
        sdk.files.delete(file_id)
    assert upstream.calls["from a page"] == 0


def test_the_address_that_was_asked_for_is_served_too(tmp_path: Path) -> None:
    with endpoint(tmp_path, *NOWHERE, "--host", "127.0.0.2") as running:
        assert running.url.startswith("http://127.0.0.2:")
        assert ask(running, "GET", "/healthz").status_code == 200
        assert ask(running, "GET", "/healthz", headers={"Host": "localhost"}).status_code == 200
        assert ask(running, "GET", "/healthz", headers={"Host": "127.0.0.3"}).status_code == 403


def test_with_a_key_a_proxy_may_pass_on_its_own_name(tmp_path: Path) -> None:
    options = (*NOWHERE, "--client-key-env", "CLIENT_KEY")
    with endpoint(tmp_path, *options, CLIENT_KEY="s3cret") as running:
        headers = {"Host": "batch.example.com", "Origin": "https://batch.example.com"}
        assert ask(running, "GET", "/healthz", headers=headers).status_code == 200
        assert ask(running, "GET", "/v1/batches", headers=headers).status_code == 401
        known = {**headers, "Authorization": "Bearer s3cret"}
        assert ask(running, "GET", "/v1/batches", headers=known).status_code == 200


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:", "localhost"),
        ("[::0001]:80", "::1"),
        ("a:b", None),
        ("::1", None),
        ("[]", None),
        ("", None),
        (":80", None),
        ("localhost:80:80", None),
        ("localhost\n", None),
    ],
)
def test_a_host_is_read_in_one_spelling(authority: str, host: str | None) -> None:
    assert host_of(authority) == host


def test_an_address_is_served_however_it_was_spelt() -> None:
    assert served_hosts("0:0:0:0:0:0:0:1") == served_hosts("127.0.0.1") == {"localhost", "127.0.0.1", "::1"}


JSON_PATHS = [
    "/v1/batches",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/moderations",
]


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json5", "text/plain; application/json"]
)  # fmt: skip
def test_a_body_that_is_not_called_json_is_refused_with_the_mend(server: Endpoint, path: str, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for content in (b'{"model":"m"}', iter([b'{"model":', b'"m"}'])):  # with its length, and in pieces without
        response = ask(server, "POST", path, content=content, headers=headers)
        assert error_of(response) == (415, "unsupported_media_type")
        assert "Content-Type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON ;charset=UTF-8"]
)
def test_json_is_taken_with_parameters_and_in_any_case(server: Endpoint, kind: str) -> None:
    content = json.dumps({"model": "small", "messages": [{"role": "user", "content": kind}]})
    response = ask(server, "POST", "/v1/chat/completions", content=content, headers={"Content-Type": kind})
    assert response.json()["choices"][0]["message"]["content"] == f"echo {kind}"
    empty = ask(server, "POST", "/v1/batches", content=b"{}", headers={"Content-Type": kind})
    assert error_of(empty) == (400, "missing_required_parameter")


@pytest.mark.parametrize("kind", [None, "application/json", "text/plain"])
def test_a_request_without_a_body_needs_no_type(tmp_path: Path, kind: str | None) -> None:
    with held_upstream(free=0) as upstream:
        options = ("--upstream", upstream.url, "--grace-seconds", "0.1")
        with endpoint(tmp_path, *options) as running, client(running.url) as sdk:
            batch = create_batch(sdk, LINES)
            headers = {"Content-Type": kind} if kind else {}
            assert ask(running, "POST", f"/v1/batches/{batch.id}/cancel", headers=headers).status_code == 200
            assert wait_for_end(sdk, batch).status == "cancelled"

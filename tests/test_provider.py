"""The provider client: what it makes of replies, of faults, and of no reply at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight.errors import (
    DownloadCut,
    NoBatchApi,
    NotFound,
    OvernightError,
    ProviderError,
    ProviderUnavailable,
    QueueFull,
    ReplyLost,
    Unauthorized,
)
from overnight.job.profiles import Profile
from overnight.providers.provider import Provider
from tests.conftest import ProviderProcess

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'


def client(address: str, key: str = "secret-key") -> Provider:
    return Provider(Profile.named("custom").overridden(base_url=address), key)


@pytest.fixture
def provider(provider_server: ProviderProcess) -> Iterator[Provider]:
    with client(provider_server.base_url) as provider:
        yield provider


@pytest.fixture
def file_id(provider: Provider, tmp_path: Path) -> str:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(LINE)
    return provider.upload(path).id


def test_a_batch_goes_from_upload_to_download(provider: Provider, file_id: str, tmp_path: Path) -> None:
    made = provider.create(file_id, "/v1/chat/completions", {"who": "me"})
    assert (made.status, made.input_file_id, made.metadata) == ("validating", file_id, {"who": "me"})
    done = provider.retrieve(made.id)
    assert (done.status, done.done, done.failed, done.total) == ("completed", 1, 0, 1)
    size = provider.download(done.output_file_id or "", tmp_path / "out.jsonl")
    assert size == (tmp_path / "out.jsonl").stat().st_size > 0
    assert [batch.id for batch in provider.batches()] == [made.id]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param({"status": 500, "effect": True}, ReplyLost, id="made, then 500"),
        pytest.param({"status": 500}, ReplyLost, id="500"),
        pytest.param({"cut": "before", "effect": True}, ReplyLost, id="made, then cut"),
        pytest.param({"cut": "middle", "effect": True}, ReplyLost, id="made, then cut in the middle"),
        pytest.param({"status": 200, "body": "<html>busy</html>", "effect": True}, ReplyLost, id="made, then HTML"),
        pytest.param({"status": 200, "body": {}, "effect": True}, ReplyLost, id="made, then no id"),
        pytest.param({"status": 429, "body": {"error": {"code": "token_limit_exceeded"}}}, QueueFull, id="queue full"),
        pytest.param({"status": 429, "body": {"error": {"code": "slow_down"}}}, ProviderUnavailable, id="rate limit"),
        pytest.param({"status": 400, "body": {"error": {"message": "no"}}}, ProviderError, id="refused"),
        pytest.param({"status": 401}, Unauthorized, id="key"),
        pytest.param({"status": 429, "body": {"error": {"code": "insufficient_quota"}}}, ProviderError, id="no money"),
    ],
)
def test_a_create_is_sent_once_whatever_comes_back(
    provider_server: ProviderProcess,
    provider: Provider,
    file_id: str,
    fault: dict[str, object],
    error: type[OvernightError],
) -> None:
    provider_server.order(faults=[{"call": "create", **fault}])
    with pytest.raises(error) as caught:
        provider.create(file_id, "/v1/chat/completions", {})
    assert type(caught.value) is error
    books = provider_server.books()
    assert books["calls"]["create"] == 1
    assert len(books["batches"]) == bool(fault.get("effect"))


def test_a_create_that_was_never_sent_is_not_a_lost_reply() -> None:
    with pytest.raises(ProviderUnavailable, match="cannot reach"), client("http://127.0.0.1:9/v1") as provider:
        provider.create("file-1", "/v1/chat/completions", {})


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        pytest.param({"status": 401}, Unauthorized, "check the key", id="401"),
        pytest.param({"status": 404}, NoBatchApi, "has no Batch API", id="404"),
        pytest.param({"status": 200, "body": "<html>login</html>"}, NoBatchApi, "no API reply", id="HTML"),
        pytest.param(
            {"status": 503, "times": 3, "headers": {"Retry-After": "0"}}, ProviderUnavailable, "503", id="503"
        ),
    ],
)
def test_the_check_tells_what_is_wrong_with_an_address(
    provider_server: ProviderProcess,
    provider: Provider,
    fault: dict[str, object],
    error: type[OvernightError],
    message: str,
) -> None:
    provider_server.order(faults=[{"call": "list", **fault}])
    with pytest.raises(error, match=message) as caught:
        provider.check()
    assert "secret-key" not in str(caught.value)


def test_polls_survive_a_few_errors_and_html(
    provider_server: ProviderProcess, provider: Provider, file_id: str
) -> None:
    batch = provider.create(file_id, "/v1/chat/completions", {})
    quick = {"Retry-After": "0"}
    provider_server.order(faults=[{"call": "retrieve", "status": 502, "times": 2, "headers": quick}])
    assert provider.retrieve(batch.id).status == "completed"
    provider_server.order(faults=[{"call": "retrieve", "status": 200, "body": "<html>busy</html>"}])
    with pytest.raises(ProviderUnavailable, match="is not a batch"):
        provider.retrieve(batch.id)
    with pytest.raises(NotFound):
        provider.retrieve("batch_nobody")


def test_a_cut_download_is_fetched_again_and_never_left_half(
    provider_server: ProviderProcess, provider: Provider, file_id: str, tmp_path: Path
) -> None:
    provider_server.order(faults=[{"call": "content", "cut": "middle", "times": 2, "effect": True}])
    assert provider.download(file_id, tmp_path / "a") == len(LINE)
    assert (tmp_path / "a").read_bytes() == LINE
    provider_server.order(faults=[{"call": "content", "cut": "middle", "times": 9, "effect": True}])
    with pytest.raises(DownloadCut, match=r"of .* bytes|cut after"):
        provider.download(file_id, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "requests.jsonl"]


def test_a_create_call_whose_time_is_over_is_not_sent(
    provider_server: ProviderProcess, provider: Provider, file_id: str
) -> None:
    with pytest.raises(ReplyLost, match="too late to be sent"):
        provider.create(file_id, "/v1/chat/completions", {}, until=time.time() - 1)
    assert "create" not in provider_server.books()["calls"]


def test_an_id_that_is_an_address_is_fetched_without_the_key(
    provider_server: ProviderProcess, provider: Provider, file_id: str, tmp_path: Path
) -> None:
    assert provider.download(f"{provider_server.base_url}/files/{file_id}/content", tmp_path / "a") == len(LINE)
    provider_server.order(key="secret-key")
    assert provider.download(file_id, tmp_path / "b") == len(LINE)
    with pytest.raises(ProviderUnavailable, match="HTTP 401"):
        provider.download(f"{provider_server.base_url}/files/{file_id}/content", tmp_path / "c")


@pytest.mark.parametrize("pages", [True, False])
def test_all_batches_are_listed_once_with_and_without_pages(
    provider_server: ProviderProcess, provider: Provider, file_id: str, pages: bool
) -> None:
    for _ in range(3):
        provider.create(file_id, "/v1/chat/completions", {})
    provider_server.order(list_pages=pages)
    assert [batch.id for batch in provider.batches()] == ["batch_000003", "batch_000002", "batch_000001"]


def test_an_upload_in_an_envelope_is_understood(
    provider_server: ProviderProcess, provider: Provider, tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(LINE)
    envelope = {"code": 20000, "status": True, "data": {"id": "file-9"}}
    provider_server.order(faults=[{"call": "upload", "body": envelope, "effect": True}])
    assert provider.upload(path).id == "file-9"
    provider_server.order(faults=[{"call": "upload", "body": {"id": "file-9", "bytes": 3}, "effect": True}])
    with pytest.raises(ProviderUnavailable, match="3 arrived"):
        provider.upload(path)


def test_deepseek_itself_is_refused_with_the_way_round_it() -> None:
    with pytest.raises(NoBatchApi, match=r"overnight endpoint --upstream https://api\.deepseek\.com"):
        Provider(Profile.named("deepseek"), "key")


def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(Unauthorized, match="OPENAI_API_KEY"):
        Provider(Profile.named("openai"))

"""Shared by all tests: a Prefect harness, real servers as subprocesses, and jobs to run against them."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

import flows  # noqa: F401 - sets Prefect's defaults before anything imports it
from tests.server import ROOT as ROOT  # noqa: PLC0414 - tests take it from here
from tests.server import ServerProcess

os.environ.setdefault("OVERNIGHT_KEY_TESTS", "a key that no server asks for")
hypothesis_settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis_settings.load_profile("repeatable")


SLOWEST = ("test_deployments.py", "test_end_to_end.py", "test_model.py", "test_crash_flow.py", "test_management.py",
           "test_object_home.py", "test_spread.py")  # fmt: skip
"""Files whose tests take minutes together: they begin first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slowest files first; the others stay in their order."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server for all tests that run flows."""
    from prefect import settings  # noqa: PLC0415 - most tests do without Prefect's import
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415

    storage, heartbeat = (
        getattr(settings, name) for name in ("PREFECT_LOCAL_STORAGE_PATH", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY")
    )
    with prefect_test_harness(server_startup_timeout=180):
        updates = {storage: tmp_path_factory.mktemp("prefect"), heartbeat: None}
        with settings.temporary_settings(updates):
            yield


class ProviderProcess(ServerProcess):
    """`tests/provider_server.py` in a process of its own."""

    def __init__(self) -> None:
        super().__init__("-m", "tests.provider_server")
        self.base_url = self.address

    def order(self, **orders: Any) -> None:
        """Orders faults and behaviours."""
        body = json.dumps(orders).encode()
        urllib.request.urlopen(urllib.request.Request(self.base_url + "/_order", data=body)).close()

    def books(self) -> dict[str, Any]:
        """What was called and billed."""
        with urllib.request.urlopen(self.base_url + "/_books") as reply:
            books: dict[str, Any] = json.load(reply)
            return books

    def reset(self) -> None:
        """Opens a new account: nothing is ordered, and nothing was ever called."""
        urllib.request.urlopen(self.base_url + "/_reset", data=b"").close()


@pytest.fixture(scope="session")
def provider_process() -> Iterator[ProviderProcess]:
    """One process for all tests that need a provider."""
    process = ProviderProcess()
    yield process
    process.stop()


@pytest.fixture
def provider_server(provider_process: ProviderProcess) -> ProviderProcess:
    """A provider that misbehaves on order, with a new account."""
    provider_process.reset()
    return provider_process


Rows = list[dict[str, Any]]
MakeJob = Callable[..., dict[str, Any]]


@pytest.fixture
def dialect_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the jobs of `provider_of`."""
    monkeypatch.setenv("OVERNIGHT_KEY_DIALECT", "secret")


@pytest.fixture
def make_job(tmp_path: Path, provider_server: ProviderProcess) -> MakeJob:
    """Makes a job over texts, for the provider that misbehaves."""

    def make(texts: list[str | None], **fields: Any) -> dict[str, Any]:
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
        job: dict[str, Any] = {
            "name": "texts",
            "dataset": {"path": str(path)},
            "task": {"kind": "generate", "prompt": "{{ text }}"},
            "model": "some-model",
            "provider": {"profile": "custom", "base_url": provider_server.base_url},
            "limits": {"poll_seconds": 0.02},
        }
        job |= fields
        job["limits"] = {"lost_reply_seconds": 0.1} | job["limits"]
        return job

    return make

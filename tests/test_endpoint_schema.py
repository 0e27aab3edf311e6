"""Requests that are generated from the server's own OpenAPI document, the right ones and the wrong ones."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from tests.test_endpoint_support import client, create_batch, endpoint, held_upstream, request_line

load_all_checks()
CHECKED = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
OPERATIONS = [
    "GET /healthz", "GET /metrics", "POST /v1/files", "GET /v1/files", "GET /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content", "DELETE /v1/files/{file_id}", "POST /v1/batches", "GET /v1/batches",
    "GET /v1/batches/{batch_id}", "POST /v1/batches/{batch_id}/cancel", "GET /v1/models", "GET /v1/models/{model_id}",
    "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/responses",
    "POST /v1/moderations",
]  # fmt: skip
# Any text is an id, so requests with no other parameter cannot be wrong.
WRONG = [
    label
    for label in OPERATIONS
    if (label.startswith("POST") and "{" not in label) or label in {"GET /v1/files", "GET /v1/batches"}
]
CASES = [(label, GenerationMode.POSITIVE) for label in OPERATIONS] + [
    (label, GenerationMode.NEGATIVE) for label in WRONG
]
Operation = APIOperation[Any, Any, Any, Any]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that holds a file and a batch already."""
    with (
        held_upstream() as upstream,
        endpoint(tmp_path_factory.mktemp("schema"), "--upstream", upstream.url) as running,
    ):
        with client(running.url) as sdk:
            create_batch(sdk, [request_line("a", "hi")])
        yield running.url.removesuffix("/v1")


@pytest.fixture(scope="module")
def operations(address: str) -> dict[str, Operation]:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    found: list[Any] = list(schema.get_all_operations())
    return {operation.ok().label: operation.ok() for operation in found}


def test_the_document_names_every_operation(operations: dict[str, object]) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_generated_requests_are_answered_as_the_document_says(
    operations: dict[str, Operation], address: str, label: str, mode: GenerationMode
) -> None:
    @given(case=operations[label].as_strategy(generation_mode=mode))
    @settings(max_examples=15, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def answered(case: Case[Any]) -> None:
        response = case.call_and_validate(checks=CHECKED)
        if response.status_code >= 400:
            assert json.loads(response.content)["error"].keys() == {"message", "type", "param", "code"}

    answered()
    assert httpx2.get(f"{address}/healthz").json()["ready"]

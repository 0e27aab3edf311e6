"""The ways in which Batch APIs differ from OpenAI's, each seen at a provider: 21 kinds, and what comes of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from overnight.errors import InvalidRequests, ProviderError
from overnight.job.profiles import Profile, profile_names
from overnight.ledger.run import open_run
from overnight.providers.provider import Provider
from overnight.reports.dry_run import plan_job as plan
from tasks.wait import poll_all
from tests.cases import Case, Outcome, case, check_case
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import advance, age, build, finish, provider_of

MISTRAL = {"validating": "QUEUED", "in_progress": "RUNNING", "completed": "SUCCESS"}
FIREWORKS = {"validating": "JOB_STATE_PENDING", "in_progress": "JOB_STATE_RUNNING", "completed": "JOB_STATE_COMPLETED"}
LOST = {"call": "create", "status": 500, "effect": True}
VALIDATION = {"code": "invalid_request", "message": "bad max_tokens", "line": 2}
BAD = ("t0", "[400]", "t2", "[500 once]")


def dev(number: int, what: str, orders: dict[str, Any] | None = None, **fields: Any) -> Any:
    return case(number, "deviation", what, orders, **fields)


def first(**behaviour: Any) -> dict[str, Any]:
    return {"batches": [behaviour]}


def shape(name: str) -> dict[str, Any]:
    """One row refused for good, one that works the second time."""
    return {
        "orders": first(shape=name),
        "texts": BAD,
        "statuses": {"succeeded": 3, "failed": 1},
        "billed": 5,
        "batches": 2,
    }


def keys_stayed(outcome: Outcome) -> bool:
    return not outcome.books["keys_elsewhere"]


def ids_are_short(outcome: Outcome) -> bool:
    ids = outcome.table["custom_id"]
    return bool(ids.is_unique) and all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", one) for one in ids)


def lines_are_whole(outcome: Outcome) -> bool:
    lines = [
        json.loads(line) for path in outcome.run.folder.requests.iterdir() for line in path.read_text().splitlines()
    ]
    return all(line.keys() == {"custom_id", "method", "url", "body"} and line["method"] == "POST" for line in lines)


@pytest.mark.parametrize(
    "one",
    [
        dev(1, "replies to upload and create in envelopes", {"envelope": True}),
        dev(2, "in_queue and other words in between", first(words={"validating": "in_queue", "in_progress": "PROGRESS"}, polls=2)),
        dev(2, "statuses in capitals", first(upper=True, polls=2)),
        dev(2, "the words of Mistral", first(words=MISTRAL, polls=2)),
        dev(2, "the words of Fireworks", first(words=FIREWORKS, polls=2)),
        dev(2, "a word that nobody knows is not an end", first(words={"in_progress": "pondering"}, polls=3)),
        dev(3, "counts are null", first(counts="null", polls=1)),
        dev(3, "counts are half null", first(counts="half", polls=1)),
        dev(3, "counts are wrong", first(counts="wrong", polls=1)),
        dev(4, "an error file of 0 bytes", first(empty_error_file=True)),
        dev(4, "both files always, without a newline at their end", first(both_files=True)),
        dev(5, "file ids are addresses, fetched without the key", {"links": "ids", "key": "secret"}, also=keys_stayed,
            job={"provider": {"profile": "siliconflow", "api_key_env": "OVERNIGHT_KEY_DEVIATION"}}),
        dev(5, "batch ids with a slash", {"prefix": "batches/"},
            also=lambda o: len([*o.run.folder.responses.glob("*.output.jsonl")]) == 1),
        dev(6, "bodies are text", **shape("string_body")),
        dev(7, "the completion stands directly under response", **shape("bare")),
        dev(7, "lines without id, request_id and error", **shape("short")),
        dev(8, "error lines without a response, with a type", orders=first(shape="type_only"), texts=BAD, billed=6,
            statuses={"succeeded": 3, "failed": 1}, batches=2),
        dev(8, "error lines with the status as code", **shape("code")),
        dev(8, "error lines without a body", **shape("bodiless")),
        dev(8, "failed requests in the output file", orders=first(mixed=True), texts=BAD, billed=5, batches=2,
            statuses={"succeeded": 3, "failed": 1}),
        dev(9, "a line fails validation later", first(errors=[VALIDATION]), batches=2, billed=5,
            statuses={"succeeded": 5, "failed": 1}),
        dev(9, "errors are text", first(end="failed", error_text="the system is busy"), batches=2),
        dev(9, "errors are a bare list", first(end="failed", error_text=[VALIDATION]), batches=2, billed=5,
            statuses={"succeeded": 5, "failed": 1}),
        dev(10, "expires_at is null: the deadline is ours", {"times": "none", **first(polls=10_000, answer=2)}, batches=None,
            job={"limits": {"deadline_hours": 2e-6, "poll_seconds": 0.02, "max_attempts": 9}}),
        dev(11, "times are ISO text", {"times": "iso", "faults": [LOST]}),
        dev(11, "times are objects", {"times": "objects", "faults": [LOST]}),
        dev(12, "content is redirected to another host, which does not get the key", {"links": "redirects", "key": "secret"},
            also=keys_stayed, job={"provider": {"profile": "custom", "api_key_env": "OVERNIGHT_KEY_DEVIATION"}}),
        dev(13, "the list is bare", {"list_pages": "bare", "faults": [LOST]}),
        dev(13, "the list does not page", {"list_pages": False, "faults": [LOST]}),
        dev(13, "the list does not page, and its batch is not ours to see", {"list_pages": False, "faults": [{**LOST, "effect": False}]}),
        dev(14, "method and url in every line", also=lines_are_whole),
        dev(15, "ids are unique, short and plain", texts=("a", "a ", "A", "ü", "\u2028", "x" * 500), also=ids_are_short),
        dev(18, "a batch that was cancelled completes", {**first(polls=10_000, cancel="completed")},
            job={"limits": {"deadline_hours": 1e-7, "poll_seconds": 0.02}}),
        dev(18, "a batch that cannot be cancelled", {"faults": [{"call": "cancel", "status": 400, "times": 9}], **first(polls=3)},
            job={"limits": {"deadline_hours": 1e-7, "poll_seconds": 0.02}}),
        dev(18, "cancelling drops what was answered", first(polls=10_000, answer=0), batches=None,
            job={"limits": {"deadline_hours": 2e-6, "poll_seconds": 0.02, "max_attempts": 9}}),
        dev(20, "files are named before the end", first(early_files=True, polls=2)),
        dev(20, "a download that says it is incomplete",
            {"faults": [{"call": "content", "headers": {"X-Incomplete": "true"}, "cut": "short", "effect": True, "times": 2}]}),
        dev(21, "files without a status", {"file_status": False}),
        dev(21, "files that have to be processed first", {"processing": 3}, also=lambda o: o.books["calls"]["upload"] == 1),
    ],
)  # fmt: skip
def test_a_deviation_costs_no_row_and_no_second_payment(
    one: Case, make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERNIGHT_KEY_DEVIATION", "secret")
    if "provider" in one.job:
        one.job["provider"] = {"base_url": provider_server.base_url, **one.job["provider"]}
    check_case(one, make_job, tmp_path, provider_server)


def test_deviation_09_a_refusal_at_the_create_call_stops_the_job_and_costs_nothing(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    detail = {"detail": [{"loc": ["completion_window"], "msg": "only 24h"}]}
    missing = {"detail": {"error": "no such file"}}
    refusals = [{"call": "create", "status": 422, "body": detail}, {"call": "create", "status": 404, "body": missing}]
    provider_server.order(faults=refusals)
    run = build(make_job(["a"]), tmp_path / "home")
    with pytest.raises(ProviderError, match="only 24h"):
        finish(run)
    assert provider_server.books()["billed"] == {}
    assert finish(run).statuses == {"succeeded": 1}  # the file of the second refusal is a moment old: it is waited for
    assert provider_server.books()["calls"]["create"] == 3


def test_deviation_14_streams_and_15_long_ids_are_refused_before_anything_is_sent(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    path = tmp_path / "requests.jsonl"
    body = {"model": "m", "messages": [], "stream": True}
    path.write_text(json.dumps({"custom_id": "x" * 65, "method": "POST", "url": "/v1/chat/completions", "body": body}))
    job = make_job([], task={"kind": "raw"}, model=None, dataset={"path": str(path)})
    with pytest.raises(InvalidRequests, match=r"(?s)has 65 characters.*`body\.stream` is not possible"):
        build(job, tmp_path / "home")
    assert "upload" not in provider_server.books()["calls"]


def test_deviation_16_what_moonshot_must_not_be_sent_is_said_by_the_plan(make_job: MakeJob, tmp_path: Path) -> None:
    """Documentation only: which models refuse which parameters changes too often to be held in code."""
    job = make_job(["a"], provider={"profile": "moonshot"})
    assert "Bodies must not set temperature, top_p, n or penalties" in plan(open_run(job, home=str(tmp_path))).text


def test_deviation_17_each_model_has_its_own_batch(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"body": {"model": f"m{n % 2}", "messages": [], "n": n}}) + "\n" for n in range(6))
    )
    task = {"kind": "raw", "body": "body"}
    run = build(make_job([], task=task, model=None, dataset={"path": str(path)}), tmp_path / "home")
    assert finish(run).statuses == {"succeeded": 6}
    books = provider_server.books()
    assert ([batch["lines"] for batch in books["batches"]], sum(books["billed"].values())) == ([3, 3], 6)


def test_deviation_19_a_batch_that_a_restart_forgot_is_not_paid_for_again_unless_a_person_allows_it(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    """OGX does not take batches up again that were in progress: nothing ends them, not even cancelling."""
    provider_server.order(batches=[{"polls": 10_000, "cancel": "never"}])
    run = build(make_job(["a", "b"], limits={"poll_seconds": 0.01}), tmp_path / "home")
    advance(run, patience=0)
    (batch,) = run.ledger.shards("texts")[0].batches
    with Provider(run.job.profile, "key") as provider:
        for hours, calls in ((0.5, 1), (2, 1)):
            run.ledger.note(batch, deadline_at=batch.started_at - hours * 3600)
            poll_all(run, provider)
            assert provider_server.books()["calls"]["cancel"] == calls
    assert finish(run).statuses == {"missing": 2}
    assert finish(build(run.job, tmp_path / "home")).statuses == {"missing": 2}
    assert (len(provider_server.books()["batches"]), provider_server.books()["billed"]) == (1, {})
    age(run, 700)
    allowed = run.job.model_dump(by_alias=True) | {"limits": {"resubmit_lost": True, "poll_seconds": 0.01}}
    assert finish(build(allowed, tmp_path / "home")).statuses == {"succeeded": 2}


@pytest.mark.parametrize("name", [name for name in profile_names() if Profile.named(name).has_batch_api])
def test_results_are_asked_to_expire_where_the_provider_supports_it_and_only_there(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, name: str, dialect_key: None
) -> None:
    provider = provider_of(name, provider_server)
    assert finish(build(make_job(["a"], provider=provider), tmp_path / "home")).statuses == {"succeeded": 1}
    (created,) = provider_server.books()["created"]
    asked = {"anchor": "created_at", "seconds": 30 * 86_400}
    assert created.get("output_expires_after") == (asked if name in ("openai", "azure", "deepinfra") else None)

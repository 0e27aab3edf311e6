"""Anthropic's Message Batches: what is said, what is heard, and by what a batch without a name is known again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types.messages.batch_create_params import Request
from pydantic import TypeAdapter

from overnight.answers.lines import read_result
from overnight.answers.readers import answer_reader
from overnight.errors import BatchHeld, InvalidRequests, JobError, LedgerError, ReplyLost
from overnight.job.answer import Answer
from overnight.job.jobfile import load_job
from overnight.job.profiles import Profile
from overnight.ledger.run import open_run
from overnight.ledger.states import State
from overnight.limits.budget import most_cost
from overnight.providers import inline
from overnight.providers.adoption import may_be_of
from overnight.providers.connect import connect
from overnight.providers.dialects.anthropic import ANTHROPIC, MAX_TOKENS, params_of, request
from overnight.providers.dialects.dialect import Order
from overnight.providers.inline import InlineProvider
from overnight.providers.replies import RemoteBatch
from overnight.reports.dry_run import plan_job
from overnight.reports.report import report_text
from tasks.doctor import Examination
from tasks.recover import recover
from tasks.report import summarize
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import advance, build, connected, finish, provider_of, run_job, without_ledger

pytestmark = pytest.mark.usefixtures("dialect_key")

PIXEL = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"name": "look", "description": "Looks.", "parameters": SCHEMA, "strict": True}
HI = [{"role": "user", "content": "hi"}]
LINE = {"custom_id": "a", "url": "/v1/chat/completions", "body": {"model": "m", "messages": HI}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": "x"}'}}
CACHE = {"type": "ephemeral", "ttl": "1h"}
LOST = {"call": "create", "status": 500, "effect": True}


@pytest.fixture
def provider(provider_server: ProviderProcess, tmp_path: Path) -> InlineProvider:
    found = connected("anthropic", provider_server, tmp_path)
    assert isinstance(found, InlineProvider)
    return found


SAID = [
    ({"messages": HI}, {"messages": HI, "max_tokens": MAX_TOKENS}),
    ({"messages": HI, "max_completion_tokens": 5, "temperature": 0, "top_k": 3, "thinking": {"type": "disabled"}},
     {"messages": HI, "max_tokens": 5, "temperature": 0, "top_k": 3, "thinking": {"type": "disabled"}}),
    ({"messages": [{"role": "system", "content": "Be brief."}, *HI], "stop": "END"},
     {"system": [{"type": "text", "text": "Be brief."}], "messages": HI, "max_tokens": MAX_TOKENS, "stop_sequences": ["END"]}),
    ({"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": CACHE}]},
                   {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": CACHE}]}]},
     {"system": [{"type": "text", "text": "Be brief.", "cache_control": CACHE}],
      "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": CACHE}]}],
      "max_tokens": MAX_TOKENS}),
    ({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}}]}]},
     {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "what?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}}]}],
      "max_tokens": MAX_TOKENS}),
    ({"messages": HI, "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required", "parallel_tool_calls": False},
     {"messages": HI, "max_tokens": MAX_TOKENS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
      "tools": [{"name": "look", "description": "Looks.", "input_schema": SCHEMA, "strict": True}]}),
    ({"messages": HI, "tool_choice": {"type": "function", "function": {"name": "look"}}},
     {"messages": HI, "max_tokens": MAX_TOKENS, "tool_choice": {"type": "tool", "name": "look"}}),
    ({"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
      "reasoning_effort": "low"},
     {"messages": HI, "max_tokens": MAX_TOKENS, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}}),
    ({"messages": [*HI, {"role": "assistant", "content": "well", "tool_calls": [CALL]},
                   {"role": "tool", "tool_call_id": "c1", "content": "seen"}]},
     {"messages": [*HI, {"role": "assistant", "content": [
         {"type": "text", "text": "well"}, {"type": "tool_use", "id": "c1", "name": "look", "input": {"a": "x"}}]},
         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "seen"}]}],
      "max_tokens": MAX_TOKENS}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "params"), SAID, ids=range(len(SAID)))
def test_a_completions_body_is_said_as_a_message_and_anthropics_own_types_take_it(
    body: dict[str, Any], params: dict[str, Any]
) -> None:
    said = request(json.dumps(LINE | {"body": {"model": "m", **body}}).encode())
    assert said == {"custom_id": "a", "params": {"model": "m", **params}}
    TypeAdapter(Request).validate_python(said, strict=False)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"seed": 1}, "have no 'seed'"),
        ({"logprobs": True}, "have no 'logprobs'"),
        ({"stream": True}, "have no 'stream'"),
        ({"messages": [*HI, {"role": "system", "content": "x"}]}, "system text first"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "takes no images"),
        ({"messages": [{"role": "function", "content": "x"}]}, "no role 'function'"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "type 'input_audio'"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "no tool of type 'custom'"),
        ({"tool_choice": "sometimes"}, "no tool_choice 'sometimes'"),
        ({"response_format": {"type": "json_object"}}, "no response_format of type 'json_object'"),
    ],
)  # fmt: skip
def test_what_a_message_cannot_say_is_refused_by_its_name(body: dict[str, Any], what: str) -> None:
    with pytest.raises(JobError, match=what):
        params_of({"model": "m", "messages": HI, **body})


def test_it_is_refused_with_its_line_before_anything_is_sent(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    job = make_job(["a", "b"], provider=provider_of("anthropic", provider_server), parameters={"seed": 7})
    with pytest.raises(InvalidRequests, match=r"0001-0000.jsonl:1: anthropic's messages have no 'seed'") as raised:
        build(job, tmp_path / "home")
    assert len(raised.value.problems) == 1
    assert provider_server.books()["calls"] == {}


def test_a_plan_shows_what_is_sent_and_by_what_a_batch_is_known_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    task = {"kind": "generate", "prompt": "{{ text }}", "system": "Be brief."}
    job = make_job(["a"], provider=provider_of("anthropic", provider_server), task=task)
    plan = plan_job(open_run(job, home=str(tmp_path / "home"))).text
    assert '"system": [' in plan
    assert f'"max_tokens": {MAX_TOKENS}' in plan
    assert "| after a lost reply its batch is known by | its results: " in plan


def reply(result: dict[str, Any], answer: Answer | None = None) -> dict[str, Any]:
    line = json.dumps({"custom_id": "a", "result": result}).encode()
    read = answer_reader(answer or Answer.text())(read_result(line))
    return {name: getattr(read, name) for name in read.__struct_fields__ if getattr(read, name) not in (None, (), 0)}


def message(**fields: Any) -> dict[str, Any]:
    usage = {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 3,
             "output_tokens_details": {"thinking_tokens": 2}, "service_tier": "batch"}  # fmt: skip
    text = {"type": "text", "text": "fine"}
    said = {"type": "message", "role": "assistant", "model": "m-1", "content": [text], "stop_reason": "end_turn"}
    return {"type": "succeeded", "message": {**said, "usage": usage, **fields}}


COUNTED = {
    "model": "m-1",
    "input_tokens": 28,
    "output_tokens": 7,
    "cached_tokens": 20,
    "reasoning_tokens": 2,
    "written_tokens": 3,
}
USE = {"type": "tool_use", "id": "t", "name": "look", "input": {"a": "x"}}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (message(), {"verdict": "succeeded", "answer": "fine", "finish_reason": "stop", **COUNTED}),
        (message(content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
         {"verdict": "succeeded", "answer": "ab", "finish_reason": "stop", "reasoning": "hm", **COUNTED}),
        (message(stop_reason="max_tokens"),
         {"verdict": "invalid", "answer": "fine", "finish_reason": "length", "error_code": "cut",
          "error_message": "the answer was cut by its token limit", **COUNTED}),
        (message(stop_reason="refusal", content=[]),
         {"verdict": "refused", "finish_reason": "content_filter", "error_code": "refusal", "error_message": "refusal", **COUNTED}),
        (message(content=None), {"verdict": "invalid", "finish_reason": "stop", "error_code": "no_answer",
                                 "error_message": "the response holds no text", **COUNTED}),
        ({"type": "errored", "error": {"type": "error", "error": {"type": "invalid_request_error", "message": "bad"}}},
         {"verdict": "failed", "error_code": "invalid_request_error", "error_message": "bad"}),
        ({"type": "errored", "error": {"type": "overloaded_error", "message": "busy"}},
         {"verdict": "retryable", "error_code": "overloaded_error", "error_message": "busy"}),
        ({"type": "errored"}, {"verdict": "retryable", "error_code": "errored"}),
        ({"type": "canceled"}, {"verdict": "expired", "error_code": "batch_cancelled"}),
        ({"type": "expired"}, {"verdict": "expired", "error_code": "batch_expired"}),
        ({"message": 3}, {"verdict": "invalid", "error_code": "unreadable_line",
                          "error_message": "Object missing required field `type`"}),
    ],
)  # fmt: skip
def test_each_result_is_one_verdict_with_its_tokens(result: dict[str, Any], expected: dict[str, Any]) -> None:
    found = reply(result)
    found.pop("service_tier", None)
    assert found == expected


def test_a_tool_that_is_used_is_a_call() -> None:
    found = reply(message(content=[USE], stop_reason="tool_use"), Answer.calls({"look": SCHEMA}, required=True))
    assert (found["verdict"], found["finish_reason"], found["fields"]) == (
        "succeeded",
        "tool_calls",
        ("look", '{"a":"x"}'),
    )


@pytest.mark.parametrize(
    ("reply", "batch"),
    [
        ("<html>", None),
        ({"id": "b"}, RemoteBatch("b", "unknown")),
        ({"id": "b", "processing_status": "in_progress", "request_counts": {"processing": 4, "succeeded": 0},
          "created_at": "2026-11-27T00:00:00Z", "results_url": None},
         RemoteBatch("b", "in_progress", done=0, total=4, created_at=1795737600.0)),
        ({"id": "b", "processing_status": "canceling", "created_at": "soon"}, RemoteBatch("b", "cancelling")),
        ({"id": "b", "processing_status": "ended", "results_url": "https://x", "cancel_initiated_at": "x",
          "request_counts": {"succeeded": 1, "errored": 2, "canceled": 3}},
         RemoteBatch("b", "cancelled", None, "b", None, 1, 2, 6)),
        ({"id": "b", "processing_status": "ended", "results_url": "https://x", "request_counts": {"succeeded": 1, "expired": 3}},
         RemoteBatch("b", "expired", None, "b", None, 1, None, 4)),
        ({"id": "b", "processing_status": "ended", "results_url": "https://x", "cancel_initiated_at": "x",
          "request_counts": {"succeeded": 4, "canceled": 0}}, RemoteBatch("b", "completed", None, "b", None, 4, None, 4)),
    ],
)  # fmt: skip
def test_batches_are_read_in_openais_words(reply: Any, batch: RemoteBatch | None) -> None:
    assert ANTHROPIC.read(reply) == batch


@pytest.mark.parametrize(
    ("batch", "may"),
    [
        (RemoteBatch("b", "in_progress", total=3, created_at=1000.0), True),
        (RemoteBatch("b", "in_progress", total=None, created_at=None), True),
        (RemoteBatch("b", "in_progress", total=4, created_at=1000.0), False),
        (RemoteBatch("known", "in_progress", total=3, created_at=1000.0), False),
        (RemoteBatch("b", "in_progress", total=3, created_at=600.0), False),
        (RemoteBatch("b", "in_progress", total=3, created_at=9450.0), True),
        (RemoteBatch("b", "in_progress", total=3, created_at=9600.0), False),
    ],
    ids=["it may", "nothing is told", "another count", "another attempt's", "before", "the call took long", "after"],
)
def test_a_batch_may_be_of_an_attempt_by_its_count_and_its_time(batch: RemoteBatch, may: bool) -> None:
    assert may_be_of(batch, requests=3, first=1000.0, last=9200.0, known={"known"}) is may


def test_a_create_call_that_takes_too_long_is_broken_off_and_its_reply_lost(
    provider: InlineProvider, provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while another process looks for its batch and creates it anew: by then it may not be sent any more."""
    monkeypatch.setattr(inline, "SECONDS", -1)
    monkeypatch.setattr(inline, "SECONDS_PER_MB", -1)
    (path := tmp_path / "a.jsonl").write_bytes(json.dumps(LINE).encode())
    with provider, pytest.raises(ReplyLost, match="were not sent within"):
        provider.create("a", "/v1/chat/completions", {}, requests=path)
    assert provider_server.books()["batches"] == []


def test_what_is_sent_after_a_restart_is_what_was_planned(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider = provider_of("anthropic", provider_server)
    run = build(make_job(["a"], provider=provider), tmp_path / "home")
    (shard,) = run.ledger.shards("texts")
    run.ledger.move(run.ledger.start_attempt(shard.id, time.time()), State.UPLOADED, file_id="0001-0000.jsonl")
    path = run.folder.requests / shard.file_name
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(LedgerError, match="not as it was planned"):
        advance(run)
    assert provider_server.books()["batches"] == []


LONG = "Be brief. " * 110


def lines_with(systems: list[str | None], **fields: Any) -> list[bytes]:
    found = []
    for number, system in enumerate(systems):
        told = [{"role": "system", "content": system}] if system else []
        body = {"model": "m", "messages": [*told, {"role": "user", "content": f"t{number}"}], **fields}
        found.append(json.dumps(LINE | {"custom_id": f"a{number}", "body": body}).encode())
    return found


def marked(lines: list[bytes], *, caches: bool = True) -> list[bool]:
    order = Order("f", "u", "m", {}, "24h", expires_outputs=False, lines=lines, caches_system=caches)
    asked = json.loads(b"".join(ANTHROPIC.order(order)))["requests"]
    for one in asked:
        TypeAdapter(Request).validate_python(one, strict=False)
    assert [one["custom_id"] for one in asked] == [f"a{number}" for number in range(len(lines))]
    return ["cache_control" in (one["params"].get("system") or [{}])[-1] for one in asked]


@pytest.mark.parametrize(
    ("systems", "cached"),
    [
        ([LONG, LONG, LONG], [True, True, True]),
        ([LONG, "other " * 300, LONG], [False, False, False]),
        (["other " * 300, LONG, LONG], [False, True, True]),
        ([None, LONG, LONG, None], [False, True, True, False]),
        (["short", "short"], [False, False]),
        ([LONG], [False]),
        ([], []),
    ],
)
def test_a_system_text_that_neighbours_share_is_marked_to_be_cached(
    systems: list[str | None], cached: list[bool]
) -> None:
    assert marked(lines_with(systems)) == cached
    assert marked(lines_with(systems), caches=False) == [False] * len(systems)


def test_what_a_job_marks_itself_stays_as_it_is() -> None:
    assert marked(lines_with([LONG, LONG], cache_control=CACHE)) == [False, False]


def test_what_was_written_to_a_cache_is_counted_apart_and_priced_so(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    usage = {"input_tokens": 5, "output_tokens": 7, "cache_creation_input_tokens": 3000,
             "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000}}  # fmt: skip
    line = json.dumps({"custom_id": "a", "result": message(usage=usage)}).encode()
    read = answer_reader(Answer.text())(read_result(line))
    assert (read.input_tokens, read.written_tokens, read.written_hour_tokens) == (3005, 1000, 2000)
    provider_server.order(written=2000)
    task = {"kind": "generate", "prompt": "{{ text }}", "system": LONG}
    provider = provider_of("anthropic", provider_server)
    job = make_job(["a", "b"], task=task, provider=provider, model="claude-sonnet-4-5", parameters={"max_tokens": 9})
    run = build(job, tmp_path / "home")
    tally = finish(run)
    (shard,) = run.ledger.shards("texts")
    assert (shard.batches[0].usage or {})["written_hour_tokens"] == 4000
    assert shard.batches[0].cost_usd == pytest.approx(2 * (10 * 1.5 + 5 * 7.5 + 2000 * 3) / 1e6)
    report = report_text(summarize(run, tally, [shard], 1.0), tally, [shard], run.job)
    assert "| written to a cache, by all attempts | 4,000, of them 4,000 for an hour |" in report
    assert most_cost(run.job, shard, None) > 1.9 * most_cost(
        load_job(job | {"provider": provider | {"cache_system": False}}), shard, None
    )


def a_strangers_batch(server: ProviderProcess, requests: int) -> str:
    """A batch of another program of the account, with as many requests."""
    params: Any = {"model": "m", "max_tokens": 9, "messages": HI}
    with anthropic.Anthropic(api_key="secret", base_url=server.base_url.removesuffix("/v1")) as client:
        made = client.messages.batches.create(
            requests=[{"custom_id": f"theirs-{n}", "params": params} for n in range(requests)]
        )
    return made.id


def test_while_a_batch_that_may_be_ours_is_at_work_nothing_is_created_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger's has our count and time, and our own create call made nothing."""
    job = make_job(["a", "b"], provider=provider_of("anthropic", provider_server))
    provider_server.order(batches=[{"polls": 4}])
    strange = a_strangers_batch(provider_server, 2)
    provider_server.order(faults=[{"call": "create", "status": 503}])
    run = build(job, tmp_path / "home")
    for _ in range(3):
        advance(run, patience=0.02)
        time.sleep(0.03)
    assert len(provider_server.books()["batches"]) == 1
    assert f"{strange} may be the batch of 0001-0000.jsonl" in caplog.text
    assert finish(run).statuses == {"succeeded": 2}
    books = provider_server.books()
    assert len(books["batches"]) == 2
    assert [times for name, times in books["billed"].items() if not name.startswith("theirs")] == [1, 1]


def test_batches_whose_replies_were_lost_are_told_apart_by_their_results(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    limits = {"max_requests": 2, "poll_seconds": 0.02}
    job = make_job([f"t{n}" for n in range(6)], provider=provider_of("anthropic", provider_server), limits=limits)
    provider_server.order(faults=[LOST] * 3, default={"polls": 2})
    run, table = run_job(job, tmp_path / "home")
    assert table["answer"].to_list() == [f"echo: t{n}" for n in range(6)]
    books = provider_server.books()
    assert len(books["batches"]) == 3
    assert set(books["billed"].values()) == {1}
    assert len({shard.batches[0].batch_id for shard in run.ledger.shards("texts")}) == 3


def test_a_lost_ledger_is_recovered_by_the_results(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    limits = {"max_requests": 2, "poll_seconds": 0.02}
    texts: list[str | None] = [f"t{n}" for n in range(5)]
    job = make_job(texts, provider=provider_of("anthropic", provider_server), limits=limits)
    provider_server.order(default={"polls": 1})
    run = build(job, tmp_path / "home")
    advance(run, patience=0)
    run = without_ledger(job, tmp_path / "home")
    with connect(run.job.profile, run.home) as provider:
        with pytest.raises(BatchHeld, match="is at work, and may be a batch of texts"):
            recover(run, provider)
        for made in provider_server.books()["batches"]:
            for _ in range(3):
                provider.retrieve(made["id"])
        assert recover(run, provider).batches == 3
    assert finish(build(job, run.home)).statuses == {"succeeded": 5}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_doctor_tries_it_with_a_request_that_fails(provider: InlineProvider) -> None:
    with provider:
        examination = Examination(provider)
        examination.run()
    assert [check.what for check in examination.checks if not check.passed] == []
    told = {check.what: check.detail for check in examination.checks}
    assert told["it is listed, with its metadata"].startswith("a lost reply is found again by the batch's results")
    assert told["the upload is listed"].startswith("not needed")


def test_anthropics_own_client_understands_the_test_server_and_hears_what_overnight_hears(
    provider: InlineProvider, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    made = a_strangers_batch(provider_server, 3)
    with anthropic.Anthropic(api_key="secret", base_url=provider_server.base_url.removesuffix("/v1")) as client:
        assert client.messages.batches.retrieve(made).processing_status == "ended"
        theirs = [one.model_dump(mode="json", exclude_unset=True) for one in client.messages.batches.results(made)]
        listed = [one.id for one in client.messages.batches.list(limit=10)]
    with provider:
        assert [one.id for one in provider.batches()] == listed == [made]
        assert provider.first_custom_id(made) == "theirs-0"
        provider.download(made, tmp_path / "results.jsonl")
    ours = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert ours == theirs
    assert {one["result"]["type"] for one in ours} == {"succeeded"}


def test_what_is_lost_is_looked_for_longer_than_a_large_create_call_may_take() -> None:
    profile = Profile.named("anthropic")
    assert profile.lost_reply_seconds > profile.max_bytes / 1e6 * 4

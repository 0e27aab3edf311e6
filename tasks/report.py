"""report: what the run adds up to, as `report.md`, as Prefect artifacts, as an event, and as the flow's summary."""

from __future__ import annotations

import time

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from overnight.ledger.records import Shard
from overnight.ledger.run import Run
from overnight.reports.agreement import agreement
from overnight.reports.look import failures, overview
from overnight.reports.report import billed, report_text
from overnight.reports.summary import Summary, Tally
from overnight.store.files import write_text
from overnight.text import artifact_key


def summarize(run: Run, tally: Tally, shards: list[Shard], seconds: float) -> Summary:
    """The outcome of a run from its tally and its batches."""
    record = run.ledger.job(run.job.name)
    return Summary(
        job=run.job.name,
        rows=tally.rows,
        requests=tally.requests,
        batches=sum(bool(batch.batch_id) and not batch.real_time for shard in shards for batch in shard.batches),
        succeeded=tally.statuses["succeeded"],
        failed=tally.rows - tally.statuses["succeeded"],
        statuses=dict(tally.statuses),
        input_tokens=tally.input_tokens,
        output_tokens=tally.output_tokens,
        cost_usd=tally.cost_usd,
        max_failed_fraction=run.job.max_failed_fraction,
        joined=run.folder.joined,
        failed_rows=run.folder.failed,
        report=run.folder.report,
        seconds=round(seconds, 2),
        billed_usd=billed(run.job, shards),
        stopped=record.stopped if record else None,
        awaited=tally.errors["missing", "awaited"],
        new_rows=tally.new_rows,
    )


@task(name="report", task_run_name="report", cache_policy=NO_CACHE)
def write_report(run: Run, tally: Tally, seconds: float) -> Summary:
    """Writes the report, and publishes it with a few samples."""
    job = run.job
    shards = run.ledger.shards(job.name)
    summary = summarize(run, tally, shards, seconds)
    shares = overview(run.folder.joined, job.output.prefix).answers
    text = report_text(summary, tally, shards, job, shares, agreement(run), failures(run))
    write_text(run.folder.report, text)
    create_markdown_artifact(text, key=artifact_key("report", job.name), description=f"{job.name}: {summary.outcome}")
    if tally.samples:
        create_markdown_artifact(
            tally.samples, key=artifact_key("samples", job.name), description=f"rows of {job.name}"
        )
    run.ledger.joined(job.name, time.time(), summary.seconds)
    return summary


def announce(summary: Summary) -> None:
    """Emits `overnight.job.completed`, or `overnight.job.failed` where too many rows did: automations wait for them."""
    emit_event(
        event=f"overnight.job.{'completed' if summary.within_bounds else 'failed'}",
        resource={"prefect.resource.id": f"overnight.job.{summary.job}", "prefect.resource.name": summary.job},
        payload=summary.as_json(),
    )

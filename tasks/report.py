"""report: what the run adds up to, as `report.md`, a Prefect artifact, and the summary that the flow returns."""

from __future__ import annotations

import time

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from overnight.files import write_text
from overnight.prices import job_rates
from overnight.records import Shard
from overnight.run import Run
from overnight.summary import Summary, Tally, artifact_key, report_text


def summarize(run: Run, tally: Tally, shards: list[Shard], seconds: float) -> Summary:
    """The outcome of a run from its tally and its batches."""
    return Summary(
        job=run.job.name,
        rows=tally.rows,
        requests=tally.requests,
        batches=sum(batch.batch_id is not None for shard in shards for batch in shard.batches),
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
    )


@task(name="report", cache_policy=NO_CACHE)
def write_report(run: Run, tally: Tally, seconds: float) -> Summary:
    """Writes the report and publishes it."""
    shards = run.ledger.shards(run.job.name)
    summary = summarize(run, tally, shards, seconds)
    rates = job_rates(run.job)
    source = rates.source if rates else "no price is known: set provider.prices"
    text = report_text(summary, tally, shards, source, rates.real_time if rates else None, run.job.report.compare)
    write_text(run.folder.report, text)
    create_markdown_artifact(
        text, key=artifact_key("report", run.job.name), description=f"{run.job.name}: {summary.rows:,} rows"
    )
    run.ledger.joined(run.job.name, time.time(), summary.seconds)
    return summary

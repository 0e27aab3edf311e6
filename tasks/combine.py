"""combine: the answers of a job's variants side by side, as one table with one report."""

from __future__ import annotations

import time
from collections.abc import Mapping

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from overnight.errors import JobError
from overnight.ledger.records import JobRecord
from overnight.ledger.run import Run, self_contained
from overnight.reports.side_by_side import side_by_side_report, write_side_by_side
from overnight.reports.summary import Summary
from overnight.store.files import make_private, write_text
from overnight.text import artifact_key


def check_name(run: Run) -> None:
    """Refuses a job with variants whose name is that of a job without.

    Raises:
        JobError: batches of that job are in the ledger.
    """
    if run.ledger.shards(run.job.name):
        raise JobError(f"the job {run.job.name!r} was run without variants before: give it another name")


@task(name="combine", task_run_name="combine", cache_policy=NO_CACHE)
def combine_variants(run: Run, summaries: Mapping[str, Summary], runs: Mapping[str, Run], seconds: float) -> Summary:
    """Writes the table and its report, and notes the job in the ledger so that it is found by its name.

    Raises:
        JobError: the variants were not built from the same rows.
    """
    make_private(run.folder.path)
    statuses = write_side_by_side(run, runs)
    text = side_by_side_report(run, summaries)
    write_text(run.folder.report, text)
    rows, now, every = sum(statuses.values()), time.time(), list(summaries.values())
    first = run.ledger.job(every[0].job)
    record = JobRecord(run.job.name, self_contained(run.job).model_dump(mode="json", by_alias=True), {},
                       first.fingerprint if first else "", rows, 0, now, joined_at=now, seconds=seconds)  # fmt: skip
    run.ledger.plan(record, [])
    create_markdown_artifact(text, key=artifact_key("report", run.job.name), description=f"variants of {run.job.name}")
    costs, billed = [one.cost_usd for one in every], [one.billed_usd for one in every]
    return Summary(
        job=run.job.name,
        rows=rows,
        requests=sum(one.requests for one in every),
        batches=sum(one.batches for one in every),
        succeeded=statuses["succeeded"],
        failed=rows - statuses["succeeded"],
        statuses=dict(statuses),
        input_tokens=sum(one.input_tokens for one in every),
        output_tokens=sum(one.output_tokens for one in every),
        cost_usd=None if None in costs else sum(cost or 0 for cost in costs),
        max_failed_fraction=run.job.max_failed_fraction,
        joined=run.folder.joined,
        failed_rows=run.folder.failed,
        report=run.folder.report,
        seconds=round(seconds, 2),
        billed_usd=None if None in billed else sum(cost or 0 for cost in billed),
        stopped=next((one.stopped for one in every if one.stopped), None),
        awaited=sum(one.awaited for one in every),
        new_rows=max(one.new_rows for one in every),
    )

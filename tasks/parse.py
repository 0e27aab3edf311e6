"""parse: every request of a batch gets one verdict, in a Parquet part; what may be asked again is planned again."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.judge import LOST, Step, recorded_end
from overnight.answers.reconcile import Parsed, reconcile
from overnight.answers.refusals import close_refused
from overnight.answers.responses import ResponseFiles
from overnight.answers.results import part_name
from overnight.answers.retry import retries_of, write_retries
from overnight.answers.trouble import judge_batch, note_trouble
from overnight.errors import OvernightError
from overnight.job.prompt import answer_of
from overnight.job.task import Raw
from overnight.ledger.records import Batch, NewShard, Shard
from overnight.ledger.request_files import place_round, request_file, whole_file
from overnight.ledger.run import Run
from overnight.limits.budget import batch_rates
from overnight.rows.lines import custom_ids
from tasks.names import span_name

logger = logging.getLogger("overnight.parse")


def parse_batch(run: Run, files: ResponseFiles) -> dict[str, int]:
    """Settles an ended batch; returns its requests by verdict, none where it was turned away or is in trouble."""
    batch, shard = files.batch, run.ledger.shard(files.batch.shard_id)
    judged = judge_batch(run, shard, batch, recorded_end(batch), files.found)
    if judged.step is Step.LOOK_AGAIN:
        note_trouble(run, batch, judged.why)
        return {}
    if judged.step is Step.GIVE_UP:
        logger.error("batch %s is given up: %s", batch.batch_id, judged.why)
        batch = replace(batch, status=LOST)
    elif judged.step is not Step.COLLECT:
        close_refused(run, batch, judged)
        return {}
    part = run.folder.results / part_name(shard, batch)
    request_file = whole_file(run.folder, shard, run.job.profile)
    rates = batch_rates(run.job, shard, batch)
    parsed = reconcile(replace(files, batch=batch), request_file, part, answer_of(run.job), rates)
    if parsed.unreadable or parsed.duplicates or parsed.foreign:
        logger.warning("batch %s: %d unreadable lines, %d duplicates, %d of unknown requests",
                       batch.batch_id, parsed.unreadable, parsed.duplicates, parsed.foreign)  # fmt: skip
    retries = plan_retries(run, shard, batch, parsed)
    outcome = {"verdicts": parsed.counts, "usage": parsed.usage, "service_tiers": parsed.service_tiers,
               "cost_usd": parsed.cost_usd if rates else None}  # fmt: skip
    run.ledger.settle(batch, time.time(), outcome, retries, shard.job)
    place_round(run.folder, retries)
    told = ", ".join(f"{count} {verdict}" for verdict, count in parsed.counts.items())
    again = f"; {sum(new.requests for new in retries)} go out again" if retries else ""
    logger.info("batch %s: %s%s", batch.batch_id, told, again)
    return parsed.counts


def plan_retries(run: Run, shard: Shard, batch: Batch, parsed: Parsed) -> list[NewShard]:
    """Writes the request files of what goes out again; none for a job that was stopped."""
    record = run.ledger.job(shard.job)
    if record is not None and record.stopped:
        return []
    others = parsed.others
    if isinstance(run.job.task, Raw):  # sent as they are: nothing of ours is put into them
        others = {custom_id: reply for custom_id, reply in others.items() if reply.verdict != "invalid"}
    if batch.recovered:
        sent = later_ids(run, shard)
        others = {custom_id: reply for custom_id, reply in others.items() if custom_id not in sent}
    again = retries_of(others, "succeeded" in parsed.counts, shard, batch, run.job.limits)
    return write_retries(run.folder, shard, again, run.job.profile, run.ledger.next_round(shard.job))


def later_ids(run: Run, shard: Shard) -> set[str]:
    """The requests that stand in shards of later rounds: they were sent again before the job was taken up."""
    shards = run.ledger.shards(shard.job)
    later = [one for one in shards if one.round > shard.round and any(batch.batch_id for batch in one.batches)]
    return {one for other in later for one in custom_ids(request_file(run.folder, other, run.job.profile))}


@task(name="parse", task_run_name=span_name("parse", "fetched"), cache_policy=NO_CACHE)
def parse_answers(run: Run, fetched: tuple[ResponseFiles, ...]) -> None:
    """Settles ended batches; one that cannot be settled keeps no other from it.

    Raises:
        OvernightError: what went wrong with the first that could not be settled.
    """
    failure: OvernightError | None = None
    for files in fetched:
        try:
            parse_batch(run, files)
        except OvernightError as error:
            note_trouble(run, files.batch, f"it cannot be settled: {error.message}")
            failure = failure or error
    if failure:
        raise failure

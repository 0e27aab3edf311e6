"""parse: every request of a batch gets one verdict, in a Parquet part; what may be asked again is planned again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.judge import LOST, Step, recorded_end
from overnight.answers.reading import Reading, read
from overnight.answers.reconcile import Parsed
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
from overnight.store.objects import keep
from overnight.store.spread import is_elsewhere, runner_for, spread
from tasks.names import span_name

logger = logging.getLogger("overnight.parse")
T = TypeVar("T")


def judged(run: Run, files: ResponseFiles) -> Reading | None:
    """How an ended batch is read; None where it was turned away or is in trouble, which the ledger then says."""
    batch, shard = files.batch, run.ledger.shard(files.batch.shard_id)
    end = judge_batch(run, shard, batch, recorded_end(batch), files.found)
    if end.step is Step.LOOK_AGAIN:
        note_trouble(run, batch, end.why)
        return None
    if end.step is Step.GIVE_UP:
        logger.error("batch %s is given up: %s", batch.batch_id, end.why)
        batch = replace(batch, status=LOST)
    elif end.step is not Step.COLLECT:
        close_refused(run, batch, end)
        return None
    part = run.folder.results / part_name(shard, batch)
    request_file = whole_file(run.folder, shard, run.job.profile)
    rates = batch_rates(run.job, shard, batch)
    return Reading(replace(files, batch=batch), request_file, part, answer_of(run.job), rates, run.home)


def settle(run: Run, reading: Reading, parsed: Parsed) -> dict[str, int]:
    """Writes down what a batch came to, with what goes out again; returns its requests by verdict."""
    batch, shard = reading.files.batch, run.ledger.shard(reading.files.batch.shard_id)
    if parsed.unreadable or parsed.duplicates or parsed.foreign:
        logger.warning("batch %s: %d unreadable lines, %d duplicates, %d of unknown requests",
                       batch.batch_id, parsed.unreadable, parsed.duplicates, parsed.foreign)  # fmt: skip
    retries = plan_retries(run, shard, batch, parsed)
    outcome = {"verdicts": parsed.counts, "usage": parsed.usage, "service_tiers": parsed.service_tiers,
               "cost_usd": parsed.cost_usd if reading.rates else None}  # fmt: skip
    run.ledger.settle(batch, time.time(), outcome, retries, shard.job)
    place_round(run.folder, retries)
    told = ", ".join(f"{count} {verdict}" for verdict, count in parsed.counts.items())
    again = f"; {sum(new.requests for new in retries)} go out again" if retries else ""
    logger.info("batch %s: %s%s", batch.batch_id, told, again)
    return parsed.counts


def parse_batch(run: Run, files: ResponseFiles) -> dict[str, int]:
    """Settles an ended batch; returns its requests by verdict, none where it was turned away or is in trouble."""
    reading = judged(run, files)
    return {} if reading is None else settle(run, reading, read(reading))


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
    """Settles ended batches; one that cannot be settled keeps no other from it. Their files are read by the runner.

    Raises:
        OvernightError: what went wrong with the first that could not be settled.
    """
    failures: list[OvernightError] = []

    def attempt(files: ResponseFiles, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except OvernightError as error:
            note_trouble(run, files.batch, f"it cannot be settled: {error.message}")
            failures.append(error)
            return None

    found = [attempt(files, partial(judged, run, files)) for files in fetched]
    readings = [reading for reading in found if reading is not None]
    runner = runner_for(len(readings), sum(reading.size for reading in readings))
    handed = [reading.for_elsewhere() for reading in readings] if is_elsewhere(runner) else readings
    for reading, parsed in zip(readings, spread(read, handed, runner), strict=True):
        attempt(reading.files, partial(_settle_or_raise, run, reading, parsed, runner))
    if failures:
        raise failures[0]


def _settle_or_raise(run: Run, reading: Reading, parsed: Parsed | OvernightError, runner: str) -> None:
    if isinstance(parsed, OvernightError):
        raise parsed
    if runner == "processes":  # they wrote into the working copy of this process, which alone puts what is in it
        keep(reading.part)
    settle(run, reading, parsed)

"""rescue: what batches have not answered shortly before `limits.finish_by` is asked for in real time, each once."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import msgspec
from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.journal import Journal, begin_journal, journal_path, write_results
from overnight.answers.responses import response_path
from overnight.errors import (
    LeaseLost,
    LedgerError,
    LedgerUnavailable,
    NotTaken,
    OvernightError,
    Refused,
    ReplyLost,
    Transient,
)
from overnight.ledger.identity import claim_folder, keep_count
from overnight.ledger.lease import check_lease
from overnight.ledger.records import Batch, Shard
from overnight.ledger.request_files import cut_shard, shard_lines, whole_file
from overnight.ledger.run import Run
from overnight.ledger.states import State
from overnight.limits.admission import rescuable
from overnight.limits.budget import batch_rates
from overnight.limits.rescue import piece_of, rescue_time
from overnight.providers.account import account_of
from overnight.providers.provider import Provider
from overnight.rows.lines import custom_id_of
from overnight.store.objects import keep
from overnight.text import counted_of
from tasks.credentials import provider_of

_TRIES = 8
"""How often a request goes out that is not taken: with doubling pauses, about three minutes."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_SEND_SECONDS = 30.0
"""How long after the lease was looked at a request may be sent: the machine may sleep in between."""
_LOOK_SECONDS = 2.0
"""How often it is asked whether the job was stopped."""
logger = logging.getLogger("overnight.rescue")


def admit_to_rescue(run: Run, now: float) -> list[Shard]:
    """The shards to ask for in real time now, cut to pieces; none before the time for it.

    A job whose canary failed, or whose budget leaves no room for anything more, is stopped.
    """
    ledger, name = run.ledger, run.job.name
    shards = ledger.shards(name)
    rescue_from = rescue_time(run, shards)
    most = piece_of(run.job)
    for shard in rescuable(shards, run.job, now, rescue_from).shards:
        if not shard.in_real_time and shard.requests > most:
            leave_upload(run, shard, now)
            cut_shard(run.folder, shard, run.job.profile, ledger, most)
    decided = rescuable(ledger.shards(name), run.job, now, rescue_from)
    if decided.stop:
        logger.warning("%s is stopped: %s", name, decided.stop)
        ledger.stop(name, decided.stop)
    return decided.shards


def leave_upload(run: Run, shard: Shard, now: float) -> None:
    """Ends the attempt of a shard that was only uploaded, which costs nothing."""
    if (begun := shard.open_batch) is not None:
        run.ledger.refuse(begun, now, now, "its requests are asked in real time")


class Aside(NamedTuple):
    """A request that was refused, be it alone or with every other: what became of the others tells."""

    custom_id: str
    error: OvernightError
    line: bytes
    """Of a result file, where it was refused alone."""


class Rescue:
    """Has the requests of shards answered one by one: intent before effect, as for a batch."""

    def __init__(self, run: Run, provider: Provider, owner: str) -> None:
        self._run, self._provider, self._owner = run, provider, owner
        self._failure: OvernightError | None = None
        self._aside: list[Aside] = []
        self._ended = threading.Event()

    def rescue(self, shard: Shard) -> None:
        """Asks for all of a shard; goes on with what an earlier process began, and keeps what was answered.

        Raises:
            LeaseLost: another process may have taken the job over: the attempt stays as it is.
            OvernightError: the provider takes no request of the account; what has no answer is planned again.
        """
        if (batch := self._begun(shard)) is None:
            return
        path = journal_path(self._run.folder.responses, batch)
        lines = dict(shard_lines(whole_file(self._run.folder, shard, self._run.job.profile)))
        if not path.exists():
            # The machine that asked is gone, with what it knew: each request may have been sent.
            logger.error("%s: its journal is gone: %s may have been paid", shard.file_name, _counted(shard))
            self._end(batch, shard, [], set(lines), None)
            return
        with Journal(path) as journal:
            if journal.in_doubt:
                logger.warning("%s: the replies of %d requests were lost: they may have been paid, and are not sent "
                               "again", shard.file_name, len(journal.in_doubt))  # fmt: skip
            done = journal.answered | journal.in_doubt
            failure: OvernightError | None = None
            try:
                self._ask([line for custom_id, line in lines.items() if custom_id not in done], journal)
            except OvernightError as error:
                if isinstance(error, LeaseLost | LedgerError | LedgerUnavailable):
                    raise
                failure = error
            self._end(batch, shard, [*journal.lines()], journal.in_doubt, failure)
        path.unlink()
        if failure is not None:
            raise failure

    def _begun(self, shard: Shard) -> Batch | None:
        """The shard's attempt, whose intent stands in the ledger: whatever comes, no batch is made of it meanwhile.

        None where the job was stopped, or nothing is to be asked in real time any more, before it was begun.
        """
        ledger, now = self._run.ledger, time.time()
        batch = shard.open_batch if shard.in_real_time else None
        if batch is None and not self._may_send():
            return None
        if batch is None:
            leave_upload(self._run, shard, now)
        account = account_of(ledger, self._provider)
        batch = batch or ledger.start_attempt(shard.id, now, account=account, real_time=True)
        if batch.state is not State.UPLOADED:
            return batch
        begin_journal(journal_path(self._run.folder.responses, batch))
        check_lease(self._owner)
        claim_folder(self._run)
        rates = batch_rates(self._run.job, shard, batch)
        batch = ledger.begin_create(
            batch, self._owner, now, account=account, rates=rates.as_record() if rates else None
        )
        keep_count(self._run)
        return batch

    def _may_send(self) -> bool:
        """Whether the job was not stopped meanwhile, and still wants what is late in real time."""
        record = self._run.ledger.job(self._run.job.name)
        return record is not None and record.stopped is None and self._run.job.limits.finish_by is not None

    def _ask(self, lines: Sequence[bytes], journal: Journal) -> None:
        """Asks for some requests, as many at once as the job allows, and for none once the job is stopped."""
        if not self._may_send():
            return
        self._failure, self._aside = None, []
        self._ended.clear()
        watching = threading.Thread(target=self._watch, daemon=True)
        watching.start()
        try:
            with ThreadPoolExecutor(self._run.job.limits.rescue_concurrency) as pool:
                for outcome in [pool.submit(self._ask_one, line, journal) for line in lines]:
                    outcome.result()
        finally:
            self._ended.set()
            watching.join()
        if self._failure is not None:
            raise self._failure
        if self._aside and not journal.answered:
            raise self._aside[0].error
        for one in self._aside:
            journal.answer(one.line)

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            with suppress(OvernightError):  # a look that fails is made again
                if not self._may_send():
                    self._ended.set()

    def _ask_one(self, line: bytes, journal: Journal) -> None:
        """Has one request answered; what is in doubt stays so."""
        custom_id = custom_id_of(line)
        pause, refused = _FIRST_PAUSE, NotTaken("")
        for number in range(_TRIES):
            if number:
                wanted = pause if refused.seconds is None else refused.seconds
                self._ended.wait(min(_LONGEST_PAUSE, wanted) * random.uniform(1, 1.2))  # noqa: S311 - spreads load
                pause *= 2
            if self._ended.is_set() or self._failure is not None:
                return
            try:
                self._check_lease()
                journal.sent(custom_id)
                journal.answer(self._provider.answer(line, time.time() + _SEND_SECONDS))
                return
            except NotTaken as error:
                journal.not_taken(custom_id)
                refused = error
            except ReplyLost as error:
                logger.warning("%s: %s", custom_id, error)
                return
            except Refused as error:
                journal.not_taken(custom_id)
                self._aside.append(Aside(custom_id, error, error.line))
                return
            except OvernightError as error:  # no other request would be taken either, or the lease is gone
                journal.not_taken(custom_id)
                self._failure = self._failure or error
                return
        said = {"error": {"code": "rate_limit_exceeded", "message": refused.message}}
        told = msgspec.json.encode(self._provider.dialect.answer(custom_id, 429, said)) + b"\n"
        self._aside.append(Aside(custom_id, refused, told))

    def _check_lease(self) -> None:
        """Asks the ledger, as before each create call: a machine that slept does not know that it did.

        Raises:
            LeaseLost: another process may have taken the job over.
        """
        check_lease(self._owner)
        if not self._run.ledger.holds(self._run.job.name, self._owner, time.time()):
            raise LeaseLost("the lease on the job is gone: run it again, it goes on where it was")

    def _end(
        self,
        batch: Batch,
        shard: Shard,
        answers: Sequence[bytes],
        in_doubt: Set[str],
        failure: OvernightError | None,
    ) -> None:
        """Has the attempt end as a batch does, if it holds anything: its requests are judged one by one.

        What was not sent counts as cancelled by us, and is planned again, unless the job is stopped.
        """
        self._check_lease()
        ledger, now, record = self._run.ledger, time.time(), self._run.ledger.job(shard.job)
        stopped = record.stopped if record else None
        if not answers and not in_doubt:
            why = stopped or (failure.message if failure else "nothing is asked in real time any more")
            ledger.refuse(batch, now, now + self._run.job.profile.poll_seconds, why)
            if stopped:
                ledger.stop(shard.job, stopped)
            return
        path = response_path(self._run.folder.responses, batch, "output")
        write_results(path, answers, in_doubt)
        keep(path)
        whole = len(answers) + len(in_doubt) == shard.requests
        logger.info("%s: %s of %s answered in real time", shard.file_name, f"{len(answers):,}", _counted(shard))
        ledger.note(batch, cancelled_by_us=not whole and stopped is None)
        ledger.move(
            batch, State.ENDED, batch_id=batch.token, status="completed" if whole else "cancelled",
            submitted_at=batch.creating_at, ended_at=now, output_file_id="real time", done=len(answers),
            failed=len(in_doubt),
        )  # fmt: skip


def _counted(shard: Shard) -> str:
    return counted_of(shard.requests, "request")


@task(name="rescue", task_run_name="rescue", cache_policy=NO_CACHE)
def rescue_shards(run: Run, shards: tuple[Shard, ...], owner: str) -> None:
    """Has the requests of shards answered in real time, shard by shard; what is not taken now waits.

    Raises:
        OvernightError: what keeps the rest from it; what was answered is kept.
    """
    with provider_of(run) as provider:
        rescue = Rescue(run, provider, owner)
        for shard in shards:
            try:
                rescue.rescue(shard)
            except Transient as error:
                if isinstance(error, LeaseLost | LedgerUnavailable):
                    raise
                logger.warning("%s waits: %s", shard.file_name, error)

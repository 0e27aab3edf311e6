"""The ledger: what was planned, sent, paid and collected. It never holds rows of a dataset, nor keys.

SQLite beside the runs by default; one PostgreSQL database (`OVERNIGHT_LEDGER_URL`) where several machines share the
work. Every function is one transaction, so a process killed between two of them leaves a state that the next one
continues from.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from overnight.errors import LedgerError
from overnight.ledger.connection import Database
from overnight.ledger.records import Batch, FolderRecord, JobRecord, NewShard, Shard
from overnight.ledger.states import AT_PROVIDER, OPEN, STEPS, State
from overnight.ledger.tables import (
    BATCHES,
    FOLDERS,
    JOBS,
    LEARNED,
    LEASES,
    SHARDS,
)
from overnight.store.objects import address, is_shared

REAL_TIME = "real-time-"
"""How the tokens of attempts in real time begin, and with them the names of their files."""
_LEARNED_SECONDS = 86_400.0
"""How long a learned limit holds: tiers rise, and other programs' batches end within a day."""


class Ledger(Database):
    """What the database of one home tells, and what is written down in it."""

    @staticmethod
    def of(home: Path, *, anew: bool = False) -> Ledger:
        """The ledger of a home: `OVERNIGHT_LEDGER_URL`, or `ledger.db` in it.

        Args:
            home: the folder of runs.
            anew: make a new one even where requests were sent by one that is gone, in order to recover them.

        Raises:
            LedgerError: the database cannot be opened or read.
        """
        if url := os.environ.get("OVERNIGHT_LEDGER_URL"):
            return _open(url)
        if is_shared(home):
            raise LedgerError(
                f"the home {address(home)} is on an object store, and its ledger has to be a PostgreSQL database: set "
                "OVERNIGHT_LEDGER_URL=postgresql+psycopg://…"
            )
        path = home / "ledger.db"
        gone = not path.exists() or not path.stat().st_size
        if gone and not anew and (sent := next(home.glob("*/requests/*.jsonl"), None)) is not None:
            raise LedgerError(
                f"the ledger {path} is gone or empty, and {sent.parent.parent} was sent by it: restore it from a "
                f"backup, or have its batches looked for: overnight recover {sent.parent.parent.name}.yaml"
            )
        path.touch(mode=0o600)  # SQLite gives its other files the same
        for one in home.glob("ledger.db*"):
            one.chmod(0o600)
        return _open(f"sqlite:///{path}")

    def folder(self, job: str) -> FolderRecord | None:
        """The folder that a job was sent from, and how often the ledger wrote about it."""
        with self._transaction() as connection:
            found = connection.execute(sa.select(FOLDERS).where(FOLDERS.c.job == job)).mappings().first()
        return FolderRecord(**found) if found else None

    def keep_folder(self, record: FolderRecord) -> None:
        """Notes which folder a job is sent from."""
        with self._transaction() as connection:
            _put(connection, FOLDERS, vars(record))

    def job(self, name: str) -> JobRecord | None:
        """The job as it was last built."""
        with self._transaction() as connection:
            found = connection.execute(sa.select(JOBS).where(JOBS.c.name == name)).mappings().first()
        return JobRecord(**found) if found else None

    def jobs(self) -> list[str]:
        """Names of all jobs, in order."""
        with self._transaction() as connection:
            return list(connection.execute(sa.select(JOBS.c.name).order_by(JOBS.c.name)).scalars())

    def shards(self, job: str) -> list[Shard]:
        """A job's shards with their attempts, in the order in which they were planned."""
        with self._transaction() as connection:
            rows = (
                connection.execute(sa.select(SHARDS).where(SHARDS.c.job == job).order_by(SHARDS.c.id)).mappings().all()
            )
            of_job = sa.select(BATCHES).join(SHARDS).where(SHARDS.c.job == job).order_by(BATCHES.c.id)
            batches = [_batch(row) for row in connection.execute(of_job).mappings()]
        grouped: dict[int, list[Batch]] = {}
        for batch in batches:
            grouped.setdefault(batch.shard_id, []).append(batch)
        return [Shard(**row, batches=tuple(grouped.get(row["id"], ()))) for row in rows]

    def shard(self, shard_id: int) -> Shard:
        """One shard with its attempts."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(SHARDS).where(SHARDS.c.id == shard_id)).mappings().one()
            found = connection.execute(
                sa.select(BATCHES).where(BATCHES.c.shard_id == shard_id).order_by(BATCHES.c.id)
            ).mappings()
            return Shard(**row, batches=tuple(_batch(one) for one in found))

    def next_round(self, job: str) -> int:
        """The first round number that no shard of the job has."""
        with self._transaction() as connection:
            last = connection.execute(sa.select(sa.func.max(SHARDS.c.round)).where(SHARDS.c.job == job)).scalar()
        return (last or 0) + 1

    def plan(self, record: JobRecord, shards: Sequence[NewShard], *, drop: Sequence[int] = ()) -> None:
        """Writes a build: the job as it is now, and its new shards, in place of some that were never sent (`drop`)."""
        values = {name: getattr(record, name) for name in record.__dataclass_fields__}
        unsent = [State.UPLOADING, State.UPLOADED, State.REFUSED]
        with self._transaction() as connection:
            sent = sa.select(BATCHES.c.id).where(BATCHES.c.shard_id.in_(drop), BATCHES.c.state.not_in(unsent))
            if connection.execute(sent).first():
                raise LedgerError(
                    "another process sent what was built anew here (was the machine asleep?): run it again"
                )
            begun = BATCHES.c.shard_id.in_(drop) & BATCHES.c.state.in_([State.UPLOADING, State.UPLOADED])
            connection.execute(sa.update(BATCHES).where(begun).values(state=State.REFUSED))
            connection.execute(sa.update(SHARDS).where(SHARDS.c.id.in_(drop)).values(settled=True))
            connection.execute(sa.delete(JOBS).where(JOBS.c.name == record.name))
            connection.execute(sa.insert(JOBS).values(**values))
            _insert_shards(connection, record.name, shards)
            _count(connection, FOLDERS.c.job == record.name)

    def take_over(
        self, job: str, record: JobRecord | None, shards: Sequence[NewShard], *, unsent: Sequence[str]
    ) -> None:
        """Writes down shards that another ledger planned.

        Args:
            job: whose they are.
            record: the job, where this ledger does not know it.
            shards: as their request files tell them.
            unsent: file names of those that no batch was made of: nothing is waited for, and nothing of them is sent.
        """
        with self._transaction() as connection:
            if record is not None:
                values = {name: getattr(record, name) for name in record.__dataclass_fields__}
                connection.execute(sa.insert(JOBS).values(**values))
            _insert_shards(connection, job, shards)
            for shard in shards:
                if shard.file_name in unsent:
                    which = (SHARDS.c.job == job, SHARDS.c.round == shard.round, SHARDS.c.number == shard.number)
                    connection.execute(sa.update(SHARDS).where(*which).values(settled=True))
            # What is collected from here on may have been sent again by the other ledger already.
            mine = sa.select(SHARDS.c.id).where(SHARDS.c.job == job)
            open_ones = BATCHES.c.shard_id.in_(mine) & BATCHES.c.state.in_(OPEN)
            connection.execute(sa.update(BATCHES).where(open_ones).values(recovered=True))
            connection.execute(sa.update(JOBS).where(JOBS.c.name == job).values(joined_at=None))

    def adopt(
        self, shard: Shard, token: str, batch_id: str, file_id: str | None, made_at: float, about: Mapping[str, Any]
    ) -> None:
        """Gives a shard a batch that the provider lists and no attempt of this ledger has.

        An attempt of the same token, which an older ledger knew before its create call, is taken on; any other that is
        open and was not sent gives way.
        """
        values = {"state": State.SUBMITTED, "batch_id": batch_id, "file_id": file_id, "creating_at": made_at,
                  "submitted_at": made_at, "recovered": True, **about}  # fmt: skip
        mine = BATCHES.c.shard_id == shard.id
        with self._transaction() as connection:
            open_ones = mine & BATCHES.c.state.in_(OPEN) & BATCHES.c.batch_id.is_(None) & (BATCHES.c.token != token)
            open_ones &= sa.not_(BATCHES.c.real_time)
            connection.execute(sa.update(BATCHES).where(open_ones).values(state=State.REFUSED))
            known = connection.execute(sa.update(BATCHES).where(mine, BATCHES.c.token == token).values(**values))
            if not known.rowcount:
                row = {"shard_id": shard.id, "token": token, "started_at": made_at, "creates": 1}
                connection.execute(sa.insert(BATCHES).values(**row, **values))
            connection.execute(sa.update(SHARDS).where(SHARDS.c.id == shard.id).values(settled=False))

    def stop(self, job: str, reason: str) -> None:
        """Sends nothing more of a job: shards without a batch at the provider are settled as they are.

        The next build takes the job up again.
        """
        mine = sa.select(SHARDS.c.id).where(SHARDS.c.job == job, sa.not_(SHARDS.c.settled))
        begun = BATCHES.c.shard_id.in_(mine) & BATCHES.c.state.in_([State.UPLOADING, State.UPLOADED])
        sent = sa.select(BATCHES.c.shard_id).where(BATCHES.c.state.in_(OPEN))
        with self._transaction() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.name == job).values(stopped=reason))
            connection.execute(sa.update(BATCHES).where(begun).values(state=State.REFUSED))
            unsent = SHARDS.c.id.in_(mine) & SHARDS.c.id.not_in(sent)
            connection.execute(sa.update(SHARDS).where(unsent).values(settled=True))

    def ask_to_stop(self, job: str, reason: str) -> None:
        """Tells whoever works on a job to send nothing more; what is planned is settled by `stop`, under the lease."""
        with self._transaction() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.name == job).values(stopped=reason))

    def joined(self, job: str, at: float, seconds: float) -> None:
        """Notes that the joined table holds all answers there are."""
        with self._transaction() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.name == job).values(joined_at=at, seconds=seconds))

    def start_attempt(
        self,
        shard_id: int,
        at: float,
        *,
        file_id: str | None = None,
        account: str | None = None,
        real_time: bool = False,
    ) -> Batch:
        """Opens an attempt, in `uploading`, or in `uploaded` where there is nothing to upload.

        That is so where the file of an earlier attempt is still good, and for requests in real time.

        Raises:
            LedgerError: the shard is settled, or has an open attempt already.
        """
        state = State.UPLOADED if file_id or real_time else State.UPLOADING
        with self._transaction() as connection:
            of_shard = sa.select(SHARDS.c.settled).where(SHARDS.c.id == shard_id).with_for_update()
            settled = connection.execute(of_shard).scalar_one()
            others = sa.select(BATCHES.c.id).where(BATCHES.c.shard_id == shard_id, BATCHES.c.state.in_(OPEN))
            if settled or connection.execute(others).first():
                raise LedgerError(f"shard {shard_id} is settled or has an open attempt: another process works on it")
            token = f"{REAL_TIME}{uuid4().hex}" if real_time else uuid4().hex
            values = {"shard_id": shard_id, "token": token, "state": state, "started_at": at, "file_id": file_id,
                      "account": account, "real_time": real_time}  # fmt: skip
            connection.execute(sa.update(SHARDS).where(SHARDS.c.id == shard_id).values(hold_until=None))
            row = connection.execute(sa.insert(BATCHES).values(**values).returning(*BATCHES.c)).mappings().one()
            return _batch(row)

    def move(self, batch: Batch, to: State, **values: Any) -> Batch:
        """Takes one step of the state machine.

        Raises:
            LedgerError: the step does not exist, or another process took one first.
        """
        with self._transaction() as connection:
            return _move(connection, batch, to, values)

    def begin_create(
        self, batch: Batch, owner: str, now: float, *, account: str | None = None, rates: dict[str, Any] | None = None
    ) -> Batch:
        """Takes the step before the paid call: to `creating`, and only while `owner` holds the job's lease.

        Args:
            batch: the attempt.
            owner: of the lease.
            now: Unix seconds.
            account: the fingerprint of the account that is to be billed.
            rates: what tokens cost now.

        Raises:
            LedgerError: the lease was lost, or another process took a step first.
        """
        # The lease is asked for in the transaction that writes the intent: a process that slept through its end finds
        # another owner here, and sends nothing.
        with self._transaction() as connection:
            job = sa.select(SHARDS.c.job).where(SHARDS.c.id == batch.shard_id).scalar_subquery()
            held = sa.select(LEASES.c.owner).where(LEASES.c.job == job, LEASES.c.until > now).with_for_update()
            if connection.execute(held).scalar() != owner:
                raise LedgerError("this process lost its lease on the job (was the machine asleep?): run it again")
            mine = sa.select(SHARDS.c.job).where(SHARDS.c.id == batch.shard_id).scalar_subquery()
            _count(connection, FOLDERS.c.job == mine)
            values = {"creating_at": now, "creates": batch.creates + 1, "account": account, "rates": rates}
            return _move(connection, batch, State.CREATING, values)

    def split(self, shard: Shard, pieces: Sequence[NewShard]) -> None:
        """Plans smaller shards in place of one that has no open attempt.

        Raises:
            LedgerError: it has one.
        """
        with self._transaction() as connection:
            others = sa.select(BATCHES.c.id).where(BATCHES.c.shard_id == shard.id, BATCHES.c.state.in_(OPEN))
            if connection.execute(others).first():
                raise LedgerError(f"shard {shard.file_name} has an open attempt: it cannot be split")
            connection.execute(sa.update(SHARDS).where(SHARDS.c.id == shard.id).values(settled=True))
            _insert_shards(connection, shard.job, list(pieces))

    def enqueued(self, provider: str, model: str) -> int:
        """Estimated tokens in the provider's queue, of all jobs of this ledger."""
        waiting = sa.select(sa.func.sum(SHARDS.c.tokens)).join(BATCHES).where(
            SHARDS.c.provider == provider, SHARDS.c.model == model, BATCHES.c.state.in_(AT_PROVIDER),
            sa.not_(BATCHES.c.real_time),
        )  # fmt: skip
        with self._transaction() as connection:
            return int(connection.execute(waiting).scalar() or 0)

    def learned_limit(self, provider: str, model: str, now: float) -> int | None:
        """The enqueued tokens that the provider was seen to take; None where it refused nothing for a day."""
        found = sa.select(LEARNED.c.tokens).where(
            LEARNED.c.provider == provider, LEARNED.c.model == model, LEARNED.c.at > now - _LEARNED_SECONDS
        )
        with self._transaction() as connection:
            return connection.execute(found).scalar()

    def learn_limit(self, provider: str, model: str, tokens: int, now: float) -> None:
        """Notes the enqueued tokens that the provider takes."""
        with self._transaction() as connection:
            _put(connection, LEARNED, {"provider": provider, "model": model, "tokens": tokens, "at": now})

    def hold(self, shard_id: int, until: float | None, reason: str) -> None:
        """Holds a shard back until a time (Unix seconds) or until there is room; the last reason is kept for good."""
        with self._transaction() as connection:
            held = {"hold_until": until, "hold_reason": reason}
            connection.execute(sa.update(SHARDS).where(SHARDS.c.id == shard_id).values(**held))

    def note(self, batch: Batch, **values: Any) -> None:
        """Updates what is known of a batch (counts, status) without a step."""
        with self._transaction() as connection:
            connection.execute(sa.update(BATCHES).where(BATCHES.c.id == batch.id).values(**values))

    def settle(self, batch: Batch, at: float, outcome: Mapping[str, Any], again: Iterable[NewShard], job: str) -> None:
        """Closes a collected attempt with its outcome (verdicts, usage), and plans the shards of what is sent again."""
        with self._transaction() as connection:
            ending = {"collected_at": at, "status": batch.status, **outcome}
            _move(connection, batch, State.COLLECTED, ending)
            connection.execute(sa.update(SHARDS).where(SHARDS.c.id == batch.shard_id).values(settled=True))
            connection.execute(sa.update(JOBS).where(JOBS.c.name == job).values(joined_at=None))
            _insert_shards(connection, job, list(again))

    def end(self, batch: Batch, **values: Any) -> bool:
        """Notes that a submitted batch has ended; False where another process did so first."""
        with self._transaction() as connection:
            return _try_move(connection, batch, State.ENDED, values) is not None

    def refuse(self, batch: Batch, at: float, hold_until: float, reason: str, kind: str = "other") -> None:
        """Closes an attempt that the provider turned away as a whole, and holds its shard back.

        Does nothing where another process was first.
        """
        with self._transaction() as connection:
            if _try_move(connection, batch, State.REFUSED, {"collected_at": at, "refused_for": kind}) is None:
                return
            held = {"hold_until": hold_until, "hold_reason": reason}
            connection.execute(sa.update(SHARDS).where(SHARDS.c.id == batch.shard_id).values(**held))

    def acquire(self, job: str, owner: str, now: float, until: float) -> str | None:
        """Takes or renews a job's lease; returns the owner who holds it instead, if any."""
        with self._transaction() as connection:
            free = (LEASES.c.owner == owner) | (LEASES.c.until <= now)
            _put(connection, LEASES, {"job": job, "owner": owner, "until": until}, free)
            holder = connection.execute(sa.select(LEASES.c.owner).where(LEASES.c.job == job)).scalar_one()
            return None if holder == owner else str(holder)

    def holds(self, job: str, owner: str, now: float) -> bool:
        """Whether an owner holds a job's lease: asked right before a paid call that has no intent of its own here.

        A machine that was asleep believes to hold it still: its own clock stood.
        """
        held = sa.select(LEASES.c.owner).where(LEASES.c.job == job, LEASES.c.until > now)
        with self._transaction() as connection:
            return connection.execute(held).scalar() == owner

    def release(self, job: str, owner: str) -> None:
        """Gives a job's lease back."""
        with self._transaction() as connection:
            connection.execute(sa.delete(LEASES).where(LEASES.c.job == job, LEASES.c.owner == owner))


def ledger_exists(home: Path) -> bool:
    """Whether opening the home's ledger would find one, rather than make one."""
    return bool(os.environ.get("OVERNIGHT_LEDGER_URL")) or is_shared(home) or (home / "ledger.db").exists()


def _put(
    connection: sa.Connection, table: sa.Table, values: Mapping[str, Any], where: sa.ColumnElement[bool] | None = None
) -> None:
    """Writes a row, in place of the one of its key where `where` holds of that.

    It is one statement, so that on PostgreSQL too no process comes between the look and the writing.
    """
    # A dialect that is not needed is not imported: PostgreSQL's takes 0.2 s.
    insert = import_module(f"sqlalchemy.dialects.{connection.dialect.name}").insert
    keys = [column.name for column in table.primary_key]
    others = {name: value for name, value in values.items() if name not in keys}
    connection.execute(
        insert(table).values(**values).on_conflict_do_update(index_elements=keys, set_=others, where=where)
    )


def _count(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Counts what must not be forgotten: the folder keeps the count too, and shows when a ledger is older than it."""
    connection.execute(sa.update(FOLDERS).where(which).values(counter=FOLDERS.c.counter + 1))


def _insert_shards(connection: sa.Connection, job: str, shards: Sequence[NewShard]) -> None:
    if shards:
        connection.execute(
            sa.insert(SHARDS),
            [
                {"job": job, "settled": False} | {name: getattr(shard, name) for name in NewShard.__dataclass_fields__}
                for shard in shards
            ],
        )


def _move(connection: sa.Connection, batch: Batch, to: State, values: Mapping[str, Any]) -> Batch:
    moved = _try_move(connection, batch, to, values)
    if moved is None:
        raise LedgerError(f"batch attempt {batch.id} is no longer {batch.state}: another process moved it on")
    return moved


def _try_move(connection: sa.Connection, batch: Batch, to: State, values: Mapping[str, Any]) -> Batch | None:
    if to not in STEPS[batch.state]:
        raise LedgerError(f"batch attempt {batch.id} cannot go from {batch.state} to {to}")
    step = (
        sa.update(BATCHES)
        .where(BATCHES.c.id == batch.id, BATCHES.c.state == batch.state, BATCHES.c.creates == batch.creates)
        .values(state=to, **values)
        .returning(*BATCHES.c)
    )
    row = connection.execute(step).mappings().first()
    return None if row is None else _batch(row)


def _batch(row: sa.RowMapping) -> Batch:
    values: dict[str, Any] = {str(name): value for name, value in row.items()}
    return Batch(**values | {"state": State(values["state"])})


_opening = threading.Lock()


def _open(url: str) -> Ledger:
    with _opening:
        return _cached(url)


@cache
def _cached(url: str) -> Ledger:
    return Ledger(url)

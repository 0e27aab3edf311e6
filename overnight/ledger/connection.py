"""The connection to the ledger's database: opened once and for all, waited for, and its errors told apart.

A database that restarts, or that another process holds, is waited for, and then trouble (`LedgerUnavailable`); one that
is damaged, or an address that is wrong, is told (`LedgerError`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from uuid import uuid4

import sqlalchemy as sa

from overnight.errors import LedgerError, LedgerUnavailable, OvernightError
from overnight.ledger.tables import IDENTITY, METADATA, add_new_columns

_OPENING_LOCK = 0x6F76_6572
"""Any number that all processes share, for PostgreSQL's advisory lock."""


_PATIENCE = 30.0
"""How long a database is waited for that restarts, or that another process holds."""


_PAUSE = 0.3


_PASSING = re.compile(r"locked|busy|connect|server closed|terminating|starting up|shutting down|timeout", re.IGNORECASE)


_WRONG_ADDRESS = re.compile(
    r"password authentication|does not exist|pg_hba|resolve host|name or service", re.IGNORECASE
)


class Database:
    """A database with the ledger's tables in it."""

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url, **_engine_options(url))
        except (sa.exc.ArgumentError, ImportError) as error:  # the URL itself may hold a password
            raise LedgerError(
                "OVERNIGHT_LEDGER_URL cannot be used: it has to start with sqlite:/// or postgresql+psycopg:// "
                f"({type(error).__name__})"
            ) from None
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        with self._transaction() as connection:
            if self._engine.dialect.name == "postgresql":
                # Two processes that make the tables at once: the second waits here, and finds them made.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_OPENING_LOCK})")
            METADATA.create_all(connection)
            add_new_columns(connection)
            found = connection.execute(sa.select(IDENTITY)).mappings().first()
            if found is None:
                new = {"id": 1, "ledger": uuid4().hex, "key": secrets.token_hex(32)}
                found = connection.execute(sa.insert(IDENTITY).values(**new).returning(*IDENTITY.c)).mappings().one()
        self.identity: str = found["ledger"]
        """Which database this is: a copy of it has the same."""
        self._key = bytes.fromhex(found["key"])

    def fingerprint(self, account: str) -> str:
        """A keyed hash of what tells accounts apart, a key among it: it can be compared, and tells nothing."""
        return hashlib.blake2b(account.encode(), key=self._key, digest_size=8).hexdigest()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """One transaction; it begins once the database answers, for which a restart of it is waited out.

        Nothing is repeated that was begun: a connection that breaks in the middle may have broken after the commit.
        """
        until = time.monotonic() + _PATIENCE
        try:
            with ExitStack() as stack:
                yield self._begun(stack, until)
        except sa.exc.DBAPIError as error:
            raise self._failure(error) from None

    def _begun(self, stack: ExitStack, until: float) -> sa.Connection:
        while True:
            try:
                return stack.enter_context(self._engine.begin())
            except sa.exc.DBAPIError as error:
                if not isinstance(self._failure(error), LedgerUnavailable) or time.monotonic() >= until:
                    raise
            time.sleep(_PAUSE)

    def _failure(self, error: sa.exc.DBAPIError) -> OvernightError:
        where, said = self._engine.url.render_as_string(hide_password=True), str(error.orig)
        kind = LedgerUnavailable if _PASSING.search(said) and not _WRONG_ADDRESS.search(said) else LedgerError
        return kind(f"the ledger {where} cannot be used: {said}. {_mend(said)}")

    def close(self) -> Self:
        """Closes the connections; the next call opens new ones."""
        self._engine.dispose()
        return self


def _mend(said: str) -> str:
    """What to do about a database's error."""
    if re.search("locked|busy", said):
        return "Another process holds it for long: run the job again when that has ended"
    if _PASSING.search(said) or _WRONG_ADDRESS.search(said):
        return "Check OVERNIGHT_LEDGER_URL and that the database server answers; then run the job again"
    if re.search("full|disk I/O|readonly|unable to open", said):
        return "Make room, or make it writable, and run the job again: it goes on where it was"
    return (
        "It is left as it is: restore it from a backup, or move it away together with the folder of runs to start anew"
    )


def _engine_options(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """WAL with full syncs: an intent to pay has to survive a power cut as well as a kill."""
    connection.isolation_level = None  # SQLAlchemy's own BEGIN IMMEDIATE stands in the listener beside this one
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        _execute_patiently(connection, f"PRAGMA {pragma}")


def _execute_patiently(connection: Any, statement: str) -> None:
    """Executes a statement once nobody else holds the database.

    Switching a new one to WAL does not wait for a process that does the same: SQLite's timeout is for transactions.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if not _PASSING.search(str(error)) or time.monotonic() >= until:
                raise
        else:
            return
        time.sleep(_PAUSE / 10)

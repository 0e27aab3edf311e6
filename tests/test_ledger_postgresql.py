"""The ledger on PostgreSQL, where several machines share it: what SQLite's one writer at a time cannot show."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from overnight.errors import LedgerError, LedgerUnavailable
from overnight.ledger.database import Ledger
from overnight.ledger.states import State
from tests.postgresql import Server, needs_postgresql
from tests.steps import opened_by_four
from tests.test_ledger import RECORD, new_shard

pytestmark = needs_postgresql


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    made.stop()
    shutil.rmtree(made.folder)


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    made = Ledger(url)
    yield made
    made.close()


def at_once(work: Callable[[int], object], threads: int = 4) -> list[object]:
    """What a function gives that several threads call at the same moment; a refusal is given as its text."""
    start, found = threading.Barrier(threads), list[object]()

    def run(number: int) -> None:
        start.wait()
        try:
            found.append(work(number))
        except LedgerError as error:
            found.append(str(error))

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return found


def test_of_several_processes_that_ask_for_a_lease_at_once_one_gets_it(ledger: Ledger) -> None:
    now = time.time()

    def ask(job: str, number: int) -> str | None:
        return ledger.acquire(job, f"host:{number}:x", now, now + 60)

    for attempt in range(20):
        told = at_once(partial(ask, f"job{attempt}"))
        assert told.count(None) == 1
        assert len(set(told)) == 2
    assert ledger.acquire("job0", "host:9:x", now + 61, now + 120) is None


def test_of_several_processes_that_start_an_attempt_at_once_one_does(ledger: Ledger) -> None:
    ledger.plan(RECORD, [new_shard(number) for number in range(10)])

    def start(shard_id: int, _: int) -> State:
        return ledger.start_attempt(shard_id, 1.0).state

    for shard in ledger.shards("job"):
        told = at_once(partial(start, shard.id))
        assert told.count(State.UPLOADING) == 1
        assert sum("another process works on it" in str(one) for one in told) == 3
        assert len(ledger.shard(shard.id).batches) == 1


def test_a_limit_that_several_processes_learn_at_once_is_one(ledger: Ledger) -> None:
    def learn(model: str, number: int) -> None:
        ledger.learn_limit("p", model, 100 + number, 0.0)

    for attempt in range(10):
        assert at_once(partial(learn, f"m{attempt}")) == [None] * 4
        assert ledger.learned_limit("p", f"m{attempt}", 0.0) in range(100, 104)


def test_the_paid_call_is_begun_by_one_of_several_processes(ledger: Ledger) -> None:
    ledger.plan(RECORD, [new_shard(99, round=9)])
    shard = ledger.shards("job")[-1]
    batch = ledger.move(ledger.start_attempt(shard.id, 1.0), State.UPLOADED, file_id="f")
    now = time.time()
    ledger.acquire("job", "host:1:x", now, now + 60)
    told = at_once(lambda _: ledger.begin_create(batch, "host:1:x", now).state)
    assert told.count(State.CREATING) == 1
    assert ledger.shard(shard.id).batches[0].creates == 1


def test_a_restart_of_the_database_is_waited_out(server: Server, ledger: Ledger) -> None:
    ledger.plan(RECORD, [new_shard(200, round=20)])
    server.stop()
    starting = threading.Timer(1.5, server.start)
    starting.start()
    try:
        assert ledger.job("job") is not None
        assert ledger.acquire("restarted", "host:1:x", time.time(), time.time() + 60) is None
    finally:
        starting.join()


def test_a_database_that_does_not_come_back_is_trouble_and_nothing_that_is_damaged(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.ledger.connection._PATIENCE", 0.5)
    server.stop()
    try:
        with pytest.raises(LedgerUnavailable, match="Check OVERNIGHT_LEDGER_URL and that the database server answers"):
            ledger.job("job")
        with pytest.raises(LedgerUnavailable, match="Check OVERNIGHT_LEDGER_URL"):
            Ledger(server.url)
    finally:
        server.start()
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(server.url.replace("/postgres", "/no_such_database"))


def test_four_processes_that_open_a_new_database_at_once_all_succeed(server: Server) -> None:
    assert len(set(opened_by_four(server.database()))) == 1

"""Lines that share a system prompt run next to each other; finished lines are on disk before they count."""

import asyncio
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.endpoint.storage.lines import Answer, Failure, result_line
from overnight.endpoint.storage.recorder import Finished, Recorder
from overnight.endpoint.storage.records import Batch
from overnight.endpoint.storage.store import DataError, Store
from overnight.endpoint.work.order import Order, prefix_key


def line(system: str | None, user: str = "hi", **body: Any) -> bytes:
    messages = ([{"role": "system", "content": system}] if system is not None else []) + [
        {"role": "user", "content": user}
    ]
    return json.dumps({"custom_id": user, "body": {"messages": messages, **body}}).encode()


def numbers(lines: list[bytes], finished: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment] # only read
    stream = io.BytesIO(b"\n".join(lines))
    return [found.number for found in Order(stream, finished).lines(stream)]


def test_groups_come_in_the_order_of_their_first_lines_and_stay_in_file_order() -> None:
    lines = [line("a"), line("b"), b"", line("a"), line(None), line("b"), line("a")]
    assert numbers(lines) == [1, 4, 7, 2, 6, 5]
    assert numbers(lines, finished={1, 6}) == [2, 4, 7, 5]


def test_without_a_shared_prompt_the_order_is_that_of_the_file() -> None:
    assert numbers([line(None, str(number)) for number in range(50)]) == list(range(1, 51))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(line("s", "a"), line("s", "b"), True, id="another question"),
        pytest.param(line("s"), line("t"), False, id="another system prompt"),
        pytest.param(line("s", tools=[1]), line("s", tools=[2]), False, id="other tools come first"),
        pytest.param(b'{"body":{"instructions":"x","input":"a"}}', b'{"body":{"instructions":"x","input":"b"}}', True, id="responses"),
        pytest.param(b'{"body":{"input":"a"}}', b'{"body":{"prompt":["b"]}}', True, id="nothing that leads"),
        pytest.param(b'{"body":{"messages":[7]}}', b"nonsense", True, id="nonsense"),
        pytest.param(b"[" * 5000, b'{"body":{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}}", True, id="too deep to be read"),
        pytest.param(b'{"body":{"tools":"\xe9"}}', b'{"body":{"instructions":"x","tools":"\xe9"}}', True, id="not UTF-8"),
    ],
)  # fmt: skip
def test_what_a_prompt_begins_with_is_its_key(one: bytes, other: bytes, same: bool) -> None:
    assert (prefix_key(one) == prefix_key(other)) == same


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=30), st.sets(st.integers(1, 30)))
def test_every_unfinished_line_runs_once_and_is_read_whole(systems: list[str | None], finished: set[int]) -> None:
    lines = [line(system, f"row {number}") for number, system in enumerate(systems, start=1)]
    stream = io.BytesIO(b"".join(data + b"\r\n" for data in lines))
    found = {read.number: read.data.strip() for read in Order(stream, finished).lines(stream)}
    assert found == {number: data for number, data in enumerate(lines, start=1) if number not in finished}


def new_batch(batch_id: str) -> Batch:
    return Batch(batch_id, "in_progress", "/v1/chat/completions", "file-1", "24h", 1, 2, total=9)


ANSWER = Answer(200, b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}', "req")


def test_lines_of_several_batches_are_stored_together_with_their_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for batch_id in ("a", "b"):
        store.add_batch(new_batch(batch_id))

    async def scenario() -> None:
        recorder = Recorder(store.database)
        lines = [
            Finished(batch, number, result_line("x", ANSWER), off_peak=number > 3)
            for batch in "ab"
            for number in range(1, 6)
        ]
        lines.append(Finished("a", 6, result_line("x", Failure("request_timeout", "late"))))
        await asyncio.gather(*(recorder.record(finished) for finished in lines))
        await recorder.close()

    asyncio.run(scenario())
    batch = store.batch("a")
    assert batch is not None
    assert (batch.completed, batch.failed, batch.total_tokens) == (5, 1, 25)
    assert (batch.off_peak_lines, batch.off_peak_tokens) == (2, 10)
    assert store.finished_lines("a") == {1, 2, 3, 4, 5, 6}
    store.close()


def test_an_answer_that_finds_the_disk_full_is_kept_until_there_is_room(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_batch(new_batch("a"))

    async def scenario() -> None:
        recorder = Recorder(store.database)
        (pages,) = recorder.connection.execute("PRAGMA page_count").fetchone()
        recorder.connection.execute(f"PRAGMA max_page_count = {pages}")
        large = Answer(200, json.dumps({"text": "x" * 100_000}).encode(), "req")
        stored = asyncio.create_task(recorder.record(Finished("a", 1, result_line("x", large))))
        while not recorder.refusals:
            await asyncio.sleep(0)
        assert (stored.done(), store.finished_lines("a")) == (False, set())
        recorder.connection.execute("PRAGMA max_page_count = 1000000")
        await stored
        await recorder.close()

    asyncio.run(scenario())
    assert store.finished_lines("a") == {1}
    store.close()


def test_a_line_that_the_database_cannot_take_is_told_so_and_others_are_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_batch(new_batch("a"))

    async def scenario() -> None:
        recorder = Recorder(store.database)
        with pytest.raises(OverflowError):
            await recorder.record(Finished("a", 2**70, result_line("x", ANSWER)))
        await recorder.record(Finished("a", 1, result_line("x", ANSWER)))
        await recorder.close()

    asyncio.run(scenario())
    assert store.finished_lines("a") == {1}
    store.close()


def test_a_data_directory_of_the_first_schema_is_brought_up_to_date_and_a_newer_one_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_batch(new_batch("a"))
    store.close()
    with sqlite3.connect(store.database) as database:
        database.executescript(
            "DROP TABLE idempotency_keys; ALTER TABLE files DROP COLUMN expires_at;"
            + "".join(f"ALTER TABLE batches DROP COLUMN {name};" for name in ("output_expires_after", "off_peak", "off_peak_lines", "off_peak_tokens"))
            + "PRAGMA user_version = 1;"
        )  # fmt: skip
    database.close()
    migrated = Store(tmp_path)
    assert migrated.batch("a") == new_batch("a")
    migrated.close()
    with sqlite3.connect(store.database) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(DataError, match="schema 99"):
        Store(tmp_path)

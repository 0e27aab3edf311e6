"""Request files that a ledger does not know, read back as the shards that they were."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from overnight.job.profiles import Profile
from overnight.job.prompt import definition_of
from overnight.ledger.records import JobRecord, NewShard, Shard
from overnight.ledger.request_files import request_path
from overnight.ledger.run import Run, self_contained
from overnight.ledger.shards import file_key
from overnight.rows.ids import IdSet
from overnight.rows.tokens import estimated_tokens
from overnight.store.home import JobFolder
from overnight.store.objects import is_shared, is_there, objects_of
from overnight.store.parquet import open_parquet, read_batches

_NAME = re.compile(r"(\d{4,})-(\d{4,})(?:-[0-9a-f]{32})?\.jsonl")


class _Body(msgspec.Struct):
    model: str


class _Line(msgspec.Struct):
    url: str
    body: _Body


_decode = msgspec.json.Decoder(_Line).decode


def unknown_files(folder: JobFolder, shards: Iterable[Shard]) -> Iterator[Path]:
    """The request files of a job that no shard of the ledger is, in the order in which they were written.

    Of objects of one round and number the last counts: a build put the others and was killed before they were planned.
    """
    known = {request_path(folder, shard).name for shard in shards}
    kept = sorted((one for one in objects_of(folder.path) if one.name.startswith("requests/")), key=lambda one: one.at)
    last = {_numbers(one.name): folder.path / one.name for one in kept}
    mine = last.values() if is_shared(folder.path) else folder.requests.glob("*.jsonl")
    yield from sorted(path for path in mine if _numbers(path.name) and path.name not in known and is_there(path))


def _numbers(name: str) -> tuple[str, str] | None:
    """The round and the number in a request file's name."""
    found = _NAME.fullmatch(Path(name).name)
    return (found[1], found[2]) if found else None


def shard_of(path: Path, profile: Profile) -> NewShard:
    """A request file as the shard that it was; which attempt of its requests it was is not known any more."""
    found = _NAME.fullmatch(path.name)
    assert found is not None  # noqa: S101 - `unknown_files` gives no others
    count, largest = 0, 0
    with path.open("rb") as lines:
        first = lines.readline()
        lines.seek(0)
        for line in lines:
            count, largest = count + 1, max(largest, len(line))
    about, size = _decode(first), path.stat().st_size
    return NewShard(
        round=int(found[1]),
        number=int(found[2]),
        key=file_key(path, about.url, profile),
        requests=count,
        bytes=size,
        largest=largest,
        tokens=estimated_tokens(count, size),
        model=about.body.model,
        url=about.url,
        provider=profile.queue,
    )


def _last_rows(folder: JobFolder) -> Path | None:
    """The map of rows of the last build: the only one on a disk, the latest object in a store."""
    maps = [kept for kept in objects_of(folder.path) if Path(kept.name).match("rows-*.parquet")]
    path = folder.path / max(maps, key=lambda kept: kept.at).name if maps else folder.rows(None)
    return path if is_there(path) else None


def record_of(run: Run, now: float) -> JobRecord | None:
    """A job's record out of its map of rows; None where it has none."""
    if (path := _last_rows(run.folder)) is None:
        return None
    with open_parquet(path) as opened:
        about = opened.schema_arrow.metadata or {}
        rows = int(opened.metadata.num_rows)
    ids = IdSet()
    for batch in read_batches(path, ["custom_id"]):
        ids.add_all(one for one in batch["custom_id"].to_pylist() if one is not None)
    return JobRecord(
        name=run.job.name,
        job=self_contained(run.job).model_dump(mode="json", by_alias=True),
        definition=definition_of(run.job),
        fingerprint=about.get(b"fingerprint", b"").decode(),
        rows=rows,
        requests=len(ids),
        built_at=now,
        build=about[b"build"].decode() if b"build" in about else None,
    )

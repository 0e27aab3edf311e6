"""Request files that a ledger does not know, read back as the shards that they were."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from overnight.job.profiles import Profile
from overnight.job.prompt import definition_of
from overnight.ledger.records import JobRecord, NewShard, Shard
from overnight.ledger.run import Run, self_contained
from overnight.ledger.shards import file_key
from overnight.rows.ids import IdSet
from overnight.rows.tokens import estimated_tokens
from overnight.store.parquet import open_parquet, read_batches

_NAME = re.compile(r"(\d{4,})-(\d{4,})\.jsonl")


class _Body(msgspec.Struct):
    model: str


class _Line(msgspec.Struct):
    url: str
    body: _Body


_decode = msgspec.json.Decoder(_Line).decode


def unknown_files(requests: Path, shards: Iterable[Shard]) -> Iterator[Path]:
    """The request files of a job that no shard of the ledger is, in the order in which they were written."""
    known = {shard.file_name for shard in shards}
    mine = [path for path in requests.glob("*.jsonl") if _NAME.fullmatch(path.name)]
    yield from sorted(path for path in mine if path.name not in known)


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


def record_of(run: Run, now: float) -> JobRecord | None:
    """A job's record out of its map of rows; None where it has none."""
    if not run.folder.rows.exists():
        return None
    with open_parquet(run.folder.rows) as opened:
        about = opened.schema_arrow.metadata or {}
        rows = int(opened.metadata.num_rows)
    ids = IdSet()
    for batch in read_batches(run.folder.rows, ["custom_id"]):
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

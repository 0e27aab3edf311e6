"""recover: takes up a job whose ledger is another one, or older than what was sent, from what the provider lists."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.journal import Journal, write_results
from overnight.answers.results import part_name
from overnight.errors import LedgerError, ProviderError, Transient
from overnight.ledger.database import REAL_TIME
from overnight.ledger.identity import reclaim_folder
from overnight.ledger.records import Batch, NewShard, Shard
from overnight.ledger.recovery import record_of, shard_of, unknown_files
from overnight.ledger.request_files import request_file, request_path
from overnight.ledger.run import Run
from overnight.ledger.states import State
from overnight.limits.prices import job_rates
from overnight.providers.account import account_of
from overnight.providers.adoption import marked_by_results, token_of
from overnight.providers.inline import InlineProvider
from overnight.providers.provider import Provider
from overnight.providers.replies import RemoteBatch, RemoteFile
from overnight.rows.lines import custom_id_of, custom_ids
from overnight.store.home import JobFolder
from overnight.store.objects import is_there, keep, move, objects_of
from tasks.credentials import provider_of

_UPLOAD = re.compile(r"overnight-([0-9a-f]{32})\.jsonl")
logger = logging.getLogger("overnight.recover")


@dataclass(frozen=True)
class Recovered:
    """What was found of a job, and taken up."""

    job: str
    files: int
    """Request files that the ledger did not know."""
    batches: int
    """Batches that are taken up: the next `collect` or `run` reads their answers."""
    unsent: int
    """Files of these that no batch was made of, as far as the provider lists them: their requests may be sent again."""
    rebound: int
    """Attempts that the ledger knew, whose account has another key by now."""
    without_file: int
    """Batches of the job whose request file is not here: their answers cannot be told apart."""
    results: int
    """Result files that were moved aside: they are made anew from what the provider sent."""


class Match(NamedTuple):
    """Whose batch is whose, as far as there is evidence."""

    known: list[tuple[Batch, RemoteBatch]]
    """Attempts of the ledger that the provider lists."""
    found: dict[str, tuple[str, RemoteBatch]]
    """By file name of a shard: the token and the batch that is its attempt."""
    without_file: int


class Candidate(NamedTuple):
    """A shard that may have a batch which no attempt of the ledger is."""

    file_name: str
    key: str
    bytes: int


def match(
    job: str, listed: Iterable[RemoteBatch], files: Iterable[RemoteFile], known: Iterable[Batch],
    candidates: Sequence[Candidate],
) -> Match:  # fmt: skip
    """Gives batches of a job to attempts and shards: by token first, then by the shard's key, one each, oldest first.

    Where a provider keeps no metadata, a batch is known by its input file, whose name holds the token, and by its size.

    Args:
        job: its name.
        listed: a complete listing of the account's batches, newest first.
        files: of the account; empty where they cannot be listed.
        known: the ledger's attempts of the job.
        candidates: shards without a batch, in the order in which they were written.
    """
    uploads = {file.id: file for file in files}
    by_token = {batch.token: batch for batch in known if batch.batch_id is not None}
    matched, found, lacking = list[tuple[Batch, RemoteBatch]](), dict[str, tuple[str, RemoteBatch]](), 0
    # Those that failed answered nothing, and an attempt after them has the same requests: they come last.
    oldest_first = [*listed]
    oldest_first.reverse()  # times may be whole seconds, or missing
    for remote in sorted(oldest_first, key=lambda one: (one.status == "failed", one.created_at or 0.0)):
        about, upload = remote.metadata or {}, uploads.get(remote.input_file_id or "")
        named = _UPLOAD.fullmatch(upload.name or "") if upload else None
        token = token_of(remote) or (named[1] if named else None)
        if token is None or about.get("overnight_job", job) != job:
            continue
        if token in by_token:
            matched.append((by_token[token], remote))
            continue
        same = [one for one in candidates if _is_shard_of(one, about.get("overnight_shard"), upload)]
        open_ones = [one for one in same if one.file_name not in found]
        if open_ones and remote.status != "failed":
            found[open_ones[0].file_name] = (token, remote)
        lacking += not same
    return Match(matched, found, lacking)


def _is_shard_of(candidate: Candidate, key: str | None, upload: RemoteFile | None) -> bool:
    """Whether a batch may be of a shard: by the key in its metadata, else by the size of its input file."""
    if key is not None:
        return candidate.key == key
    return upload is not None and candidate.bytes == upload.bytes


def recover(run: Run, provider: Provider, *, unsent: bool = False, same_account: bool = False) -> Recovered:
    """Takes a job up: its unknown request files become shards, and the provider's batches of them its attempts.

    Args:
        run: the job.
        provider: its account.
        unsent: a person's word that files without a listed batch were never sent, or may be paid for again.
        same_account: a person's word that the key is a new one of the account that the open attempts were sent with.

    Raises:
        LedgerError: files have no batch that the provider lists, and nobody said that they were never sent.
        ProviderError, ProviderUnavailable: the listing is not complete, and nothing may be concluded from it.
        BatchHeld: a batch without a name is at work: its results will tell whose it is.
    """
    ledger, folder, job, now = run.ledger, run.folder, run.job.name, time.time()
    listed, uploads = list(provider.batches()), _uploads(provider)  # before anything is written
    shards = ledger.shards(job)
    files = list(unknown_files(folder, shards))
    new = [shard_of(path, run.job.profile) for path in files]
    begun = [shard for shard in shards if all(batch.batch_id is None for batch in shard.batches)]
    # Shards that were taken over already are among them: a process may have died before it gave them their attempts.
    known_files = [(one, request_file(folder, one, run.job.profile)) for one in begun if not one.settled]
    every = [*zip(new, files, strict=True), *known_files]
    if isinstance(provider, InlineProvider):
        known = {one.batch_id: one.token for shard in shards for one in shard.batches if one.batch_id}
        listed = list(marked_by_results(provider, listed, job, every, known))
    candidates = [Candidate(one.file_name, one.key, one.bytes) for one in sorted([*begun, *new], key=_by_name)]
    attempts = [batch for shard in shards for batch in shard.batches]
    got = match(job, listed, uploads, attempts, candidates)
    tokens = {batch.token for batch in attempts} | {token for token, _ in got.found.values()}
    lacking = [(shard, path) for shard, path in every if shard.file_name not in got.found]
    answered = answers_here(folder, lacking, tokens)
    here = got.found.keys() | answered.keys()
    if (silent := [one.file_name for one in new if one.file_name not in here]) and not unsent:
        raise LedgerError(
            f"{folder.requests} has {', '.join(silent[:5])}{' …' if len(silent) > 5 else ''}, which the ledger does "
            f"not know, and {provider.address} lists no batch of them. Were they sent with another key, or so long ago "
            "that they are listed no more? If they never were, overnight recover --unsent lets their requests be sent"
        )
    account = account_of(ledger, provider)
    for path, shard in zip(files, new, strict=True):
        if (place := request_path(folder, shard)) != path:  # an object's key is that of the provider's address
            keep(path, at=place)
    ledger.take_over(job, None if ledger.job(job) else record_of(run, now), new, unsent=silent)
    rates = {model: job_rates(run.job, model) for model in {shard.model for shard in ledger.shards(job)}}
    for shard in ledger.shards(job):
        if (one := got.found.get(shard.file_name)) is not None:
            token, remote = one
            made_at = remote.created_at or now
            found = rates[shard.model]
            about = {"account": account, "rates": found.as_record() if found else None,
                     "deadline_at": made_at + run.job.limits.deadline_hours * 3600}  # fmt: skip
            ledger.adopt(shard, token, remote.id, remote.input_file_id, made_at, about)
            logger.info("shard %s: batch %s is taken up", shard.file_name, remote.id)
        if (mine := answered.get(shard.file_name)) is not None:
            logger.info("shard %s: its answers are here: %s", shard.file_name, mine)
            ended = {"state": State.ENDED, "status": "cancelled", "cancelled_by_us": True, "real_time": True,
                     "ended_at": now, "output_file_id": "real time", "account": account}  # fmt: skip
            ledger.adopt(shard, mine, mine, None, now, ended)
    rebound = _rebind(run, [batch for batch, _ in got.known], account, same_account=same_account)
    moved = _move_results(run, ledger.shards(job), now)
    reclaim_folder(run)
    taken = len(got.found) + len(answered)
    return Recovered(job, len(files), taken, len(silent), rebound, got.without_file, moved)


def answers_here(folder: JobFolder, files: Sequence[tuple[NewShard, Path]], known: set[str]) -> dict[str, str]:
    """Request files whose answers lie in the job's folder, though no batch of them is listed: asked in real time.

    What a journal tells is written down as a result file first; a request whose reply was lost counts as sent.

    Args:
        folder: the job's.
        files: shards that nobody knows a batch of, and their request files.
        known: tokens of attempts that are accounted for.

    Returns:
        By file name of a shard, the token that its result file is named after.
    """
    firsts: dict[str, str] = {}
    kept = {Path(one.name).name for one in objects_of(folder.path) if one.name.startswith(f"responses/{REAL_TIME}")}
    names = kept | {path.name for path in folder.responses.glob(f"{REAL_TIME}*.jsonl")}
    for name in sorted(names):  # a token's journal comes before its output, which is the later of the two
        token, kind, *_ = name.split(".")
        path = folder.responses / name
        if token in known or kind not in ("journal", "output") or not is_there(path):
            continue
        if kind == "journal":
            with Journal(path) as journal:
                found = [*journal.lines()]
                if not found and not journal.in_doubt:
                    continue
                path = folder.responses / f"{token}.output.jsonl"
                write_results(path, found, journal.in_doubt)
                keep(path)
        with path.open("rb") as lines, suppress(ValueError):
            firsts[custom_id_of(lines.readline())] = token
    return {
        shard.file_name: firsts[custom_id]
        for shard, path in files
        for custom_id in custom_ids(path)
        if custom_id in firsts
    }


def _by_name(shard: NewShard) -> str:
    return shard.file_name


def _rebind(run: Run, listed: list[Batch], account: str, *, same_account: bool) -> int:
    """Gives attempts that this account lists, or that a person says are its, the account's fingerprint as it is now."""
    seen = {batch.id for batch in listed}
    mine = [
        batch
        for shard in run.ledger.shards(run.job.name)
        for batch in shard.batches
        if batch.account not in (None, account) and (batch.id in seen or (same_account and batch is shard.open_batch))
    ]
    for batch in mine:
        run.ledger.note(batch, account=account)
    return len(mine)


def _uploads(provider: Provider) -> list[RemoteFile]:
    """The account's files; none where they cannot be listed, which only takes evidence away."""
    try:
        return list(provider.files())
    except (Transient, ProviderError) as error:
        logger.warning("files cannot be listed: %s", error)
        return []


def _move_results(run: Run, shards: Iterable[Shard], now: float) -> int:
    """Moves result parts aside that belong to attempts of the other ledger: numbers of attempts begin again here."""
    known = {part_name(shard, batch) for shard in shards for batch in shard.batches if batch.collected_at is not None}
    folder = run.folder
    names = [part.name for part in folder.results.glob("*.parquet")]
    names += [Path(kept.name).name for kept in objects_of(folder.path) if kept.name.startswith("results/")]
    strange = set(names) - known
    aside = folder.path / f"results-before-{now:.0f}"
    if strange:
        aside.mkdir(parents=True, exist_ok=True)
    for name in strange:
        move(folder.results / name, aside / name)
    return len(strange)


@task(name="recover", task_run_name="recover", cache_policy=NO_CACHE)
def recover_batches(run: Run, *, unsent: bool, same_account: bool) -> Recovered:
    """Takes up what the provider has of a job."""
    with provider_of(run, any_account=True) as provider:
        return recover(run, provider, unsent=unsent, same_account=same_account)

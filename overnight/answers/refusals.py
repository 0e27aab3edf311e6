"""What the refusal of a whole batch does to the ledger: its attempt is closed, and its shard waits or the job stops."""

from __future__ import annotations

import logging
import time

from overnight.answers.judge import Judgement, Step
from overnight.errors import ProviderError
from overnight.ledger.records import Batch
from overnight.ledger.run import Run
from overnight.ledger.states import AT_PROVIDER
from overnight.limits.queue import FULL_QUEUE_POLLS, learned_limit, named_limit, never_fits

logger = logging.getLogger("overnight.submit")


def close_refused(run: Run, batch: Batch, judged: Judgement) -> None:
    """Closes a batch that was turned away as a whole.

    Raises:
        ProviderError: it failed for a reason that every other batch would.
    """
    now = time.time()
    if judged.step is Step.WAIT_FOR_QUEUE:
        turn_away(run, batch, judged.why)
    elif judged.step is Step.WAIT_FOR_FILE:
        run.ledger.refuse(batch, now, now + run.job.profile.poll_seconds, judged.why, "file")
    else:
        run.ledger.refuse(batch, now, now, judged.why)
        raise ProviderError(f"batch {batch.batch_id} was refused: {judged.why}")


def turn_away(run: Run, batch: Batch, message: str) -> None:
    """A full queue: learns what it takes, and holds the shard back; one request above all of it fails."""
    ledger, shard, now = run.ledger, run.ledger.shard(batch.shard_id), time.time()
    if never_fits(message, shard):
        said = f"the request has about {shard.tokens:,} tokens; all that the provider takes is {named_limit(message):,}"
        logger.warning("shard %s: %s", shard.file_name, said)
        ledger.end(batch, status="failed", ended_at=now, errors=[["too_large", said, 1]])
        return
    mine = shard.tokens * (batch.state in AT_PROVIDER)
    others = max(0, ledger.enqueued(shard.provider, shard.model) - mine)  # another process may have taken it out
    limit = learned_limit(message, shard, others)
    if limit is not None:
        ledger.learn_limit(shard.provider, shard.model, limit, now)
    # A shard that is alone and above the limit is cut and sent again at once; any other waits for batches to end.
    alone = limit is not None and not others and shard.requests > 1
    pause = 0.0 if alone else run.job.profile.poll_seconds * FULL_QUEUE_POLLS
    logger.warning("shard %s: the queue is full, it waits: %s", shard.file_name, message)
    ledger.refuse(batch, now, now + pause, message, "queue")

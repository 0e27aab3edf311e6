"""The life of one batch attempt, as a state machine.

::

    uploading ──→ uploaded(file_id) ──→ creating ──→ submitted(batch_id) ──→ ended(status) ──→ collected
        │               │                  │  ↑          ↑ │
        │               │                  │  └─ none ─┐ │ └ found
        │               │                  └────→ unknown┴─┘
        └───────────────┴──────────────────┴───────────── turned away ──→ refused  (from submitted and ended too)

`creating` is written before the paid call, so an attempt found in it (or in `unknown`) may have a batch at the
provider: nothing is created again before a complete listing shows that there is none. `refused` ends an attempt that
the provider turned away as a whole, at the create call or later (a full queue): its shard is planned again. Two ways
are not drawn: an attempt that can never be taken, one request above the queue's limit, goes from `creating` to `ended`;
and so does one in real time, which has nothing to upload and begins as `uploaded`: while it is `creating` its journal
tells what was sent.

`lost` is no end: the provider's complete listings lack the batch, and it is looked for all the same, until it shows up
(`submitted` again), or its outputs would be deleted by now, or a person gives it up (`ended`).
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where one batch attempt stands."""

    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    CREATING = "creating"
    UNKNOWN = "unknown"
    SUBMITTED = "submitted"
    LOST = "lost"
    ENDED = "ended"
    COLLECTED = "collected"
    REFUSED = "refused"


STEPS: dict[State, frozenset[State]] = {
    State.UPLOADING: frozenset({State.UPLOADED, State.REFUSED}),
    State.UPLOADED: frozenset({State.CREATING, State.REFUSED}),
    State.CREATING: frozenset({State.SUBMITTED, State.UNKNOWN, State.REFUSED, State.ENDED}),
    State.UNKNOWN: frozenset({State.SUBMITTED, State.CREATING, State.REFUSED}),
    State.SUBMITTED: frozenset({State.ENDED, State.REFUSED, State.LOST}),
    State.LOST: frozenset({State.SUBMITTED, State.ENDED}),
    State.ENDED: frozenset({State.COLLECTED, State.REFUSED}),
    State.COLLECTED: frozenset(),
    State.REFUSED: frozenset(),
}
"""What may follow what. Every step is one transaction of the ledger."""

OPEN = frozenset(State) - {State.COLLECTED, State.REFUSED}
"""Attempts that still have a step to take."""
AT_PROVIDER = frozenset({State.CREATING, State.UNKNOWN, State.SUBMITTED})
"""Attempts that have, or may have, a batch in the provider's queue; or that are asked in real time."""

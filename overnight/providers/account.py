"""Whose batches they are: an attempt is looked for, collected and cleaned with the account that it was sent with.

What another account says of a batch (a 404, a listing without it) proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from overnight.errors import OtherAccount
from overnight.ledger.database import Ledger
from overnight.ledger.records import Batch, Shard
from overnight.providers.provider import Provider


def account_of(ledger: Ledger, provider: Provider) -> str:
    """The fingerprint of an account: its address, and a keyed hash of the key, organization and project."""
    if provider.profile.name == "local":  # the embedded endpoint has no accounts, and another port at every start
        return "local"
    return f"{provider.address} {ledger.fingerprint(provider.secret_identity)}"


def is_of(batch: Batch, account: str) -> bool:
    """Whether an attempt was sent with an account; those of older versions do not tell."""
    return batch.account in (None, account)


def check_account(ledger: Ledger, provider: Provider, shards: Iterable[Shard]) -> None:
    """Refuses to go on with open batches of another account.

    Raises:
        OtherAccount: says whose they are, and what to do.
    """
    account = account_of(ledger, provider)
    sent = [shard.open_batch for shard in shards if shard.sent and shard.open_batch is not None]
    strange = [batch for batch in sent if not is_of(batch, account)]
    if not strange:
        return
    addresses = ", ".join(sorted({str(batch.account).rsplit(" ", 1)[0] for batch in strange}))
    raise OtherAccount(
        f"{len(strange):,} open batches were sent with another account (at {addresses}) than the key, organization and "
        f"project that are set now (at {provider.address}): set those back. Where the same account has a new key, "
        "overnight recover takes over the batches that it lists (--same-account: all of them)"
    )

"""Where a key may go: only to the address that its owner meant it for. A job file may come from anybody."""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

from overnight.errors import JobError
from overnight.job.profiles import Profile, profile_names

PREFIX = "OVERNIGHT_KEY_"
"""Variables that begin like this are made for jobs, which may name them with any address."""
ALLOWED = "OVERNIGHT_ALLOWED_KEY_ENVS"
"""Names more variables, separated by commas, that jobs may name with any address."""


def check_key(profile: Profile) -> None:
    """Refuses to read a variable that is not meant for jobs, or to send a provider's key to somebody else.

    Raises:
        JobError: says which variable may be used.
    """
    name = profile.api_key_env
    if name is None or name.startswith(PREFIX) or name in _allowed():
        return
    owner = next((one for one in map(Profile.named, profile_names()) if one.api_key_env == name), None)
    if owner is None:
        raise JobError(
            f"provider.api_key_env names {name}, which is no variable for keys: name one that begins with {PREFIX}, or "
            f"list it in {ALLOWED}"
        )
    if profile.base_url and not _is_meant(owner, profile.base_url):
        meant = owner.base_url or " or ".join(f"*{ending}" for ending in owner.hosts)
        raise JobError(
            f"{name} is the key for {meant}, and is not sent to {profile.base_url}: put that address's key "
            f"into a variable {PREFIX}…, and name it as provider.api_key_env; or list {name} in {ALLOWED}"
        )


def check_block_address(given: str | None, block_address: str | None, name: str) -> None:
    """Refuses an address of a job beside a credentials block that means another.

    Args:
        given: where the job would have the key sent.
        block_address: what the block, or its profile, names; None where it names none: then the key may go to this
            machine alone.
        name: the block's.

    Raises:
        JobError: they differ.
    """
    if given is None or (block_address is None and _is_loopback(given)):
        return
    if block_address is not None and given.rstrip("/") == block_address.rstrip("/"):
        return
    meant = f"is for {block_address}" if block_address else "names no address"
    raise JobError(
        f"the block {name!r} {meant}, and its key is not sent to {given}: leave provider.base_url out of the job, or "
        "put the address into a block"
    )


def is_private(address: str) -> bool:
    """Whether an address is of this machine or of a private network, as far as its name resolves."""
    host = urlsplit(address).hostname or ""
    try:
        found = {ipaddress.ip_address(str(one[4][0]).split("%")[0]) for one in socket.getaddrinfo(host, None)}
    except (OSError, ValueError):
        return False  # nothing can be fetched from there either
    return any(not one.is_global for one in found)


def _allowed() -> set[str]:
    return {name.strip() for name in os.environ.get(ALLOWED, "").split(",")}


def _is_meant(owner: Profile, address: str) -> bool:
    """Whether a provider's key may go to an address: its own, by https where it is, or a server on this machine."""
    there = urlsplit(address)
    if _is_loopback(address) or not (owner.base_url or owner.hosts):
        return True
    if owner.base_url:
        own = urlsplit(owner.base_url)
        return (there.scheme, there.hostname, there.port) == (own.scheme, own.hostname, own.port)
    return there.scheme == "https" and (there.hostname or "").endswith(owner.hosts)


def _is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")

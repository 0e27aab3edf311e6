"""Cheap hours: what an `overnight endpoint --off-peak` says of them, before a job and after it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx2

from overnight.job.profiles import Profile

METADATA_KEY = "overnight_off_peak"
"""Where the endpoint tells, on a batch, how much of it ran at which hours."""
_SECONDS = 3.0
"""For an endpoint on this network to answer: a plan does not wait for one that is not there."""


def endpoint_hours(profile: Profile) -> dict[str, Any] | None:
    """The cheap hours of an endpoint of ours; None where the address is another server, or names none."""
    if profile.name != "custom" or not profile.base_url:
        return None
    try:
        health = httpx2.get(profile.base_url.removesuffix("/v1") + "/healthz", timeout=_SECONDS).json()
    except (httpx2.HTTPError, ValueError):
        return None
    hours = health.get("off_peak") if isinstance(health, dict) else None
    return hours if isinstance(hours, dict) else None


def hours_text(hours: Mapping[str, Any]) -> str:
    """The cheap hours for a plan."""
    discount = hours.get("discount")
    saving = (
        f"{discount:.0%} less outside its peak" if isinstance(discount, int | float) else "cheaper outside its peak"
    )
    opens_at = hours.get("opens_at")
    when = (
        "they are on" if opens_at is None else f"they begin {datetime.fromtimestamp(opens_at, UTC):%Y-%m-%d %H:%M} UTC"
    )
    source = f"; source: {hours['source']}" if hours.get("source") else ""
    return f"{hours.get('name')}: {saving} ({hours.get('peak')}); lines wait for the cheap hours, {when}{source}"


def hours_of(metadata: Mapping[str, str] | None) -> dict[str, int] | None:
    """What a batch's metadata tells of the hours that it ran in: off_peak_lines, peak_lines, and tokens of both."""
    try:
        told = json.loads((metadata or {}).get(METADATA_KEY) or "null")
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    return {name: value for name, value in told.items() if isinstance(value, int)}


def given_text(told: Iterable[Mapping[str, int]]) -> str | None:
    """What the clock gave to some batches, for a report; None where none tells."""
    total = Counter[str]()
    for one in told:
        total.update(one)
    lines = total["off_peak_lines"] + total["peak_lines"]
    tokens = total["off_peak_tokens"] + total["peak_tokens"]
    if not lines:
        return None
    share = f", with {total['off_peak_tokens'] / tokens:.0%} of the tokens" if tokens else ""
    return f"{total['off_peak_lines']:,} of {lines:,} requests ran in the cheap hours{share}"

"""Figures, tables and names as people read them."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""All but tab and new line; with them what turns the direction of text round."""


def dollars(amount: float | None) -> str:
    """An amount of USD for people: `unknown` where nobody knows it."""
    if amount is None:
        return "unknown"
    if amount == 0:
        return "$0"
    digits = 2 if amount >= 0.1 else min(8, 2 - math.floor(math.log10(amount)))
    return f"${amount:,.{digits}f}"


def counted_of(number: int, noun: str) -> str:
    """A count for people: `1 batch`, `1,200 batches`, `3 rows`."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def artifact_key(kind: str, name: str) -> str:
    """The key under which the Prefect page keeps a job's texts; it takes lower case letters, digits and dashes.

    A name with anything else in it gets a hash behind: `my_job` and `my-job` have keys of their own.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if slug != name:
        slug += "-" + hashlib.blake2b(name.encode(), digest_size=3).hexdigest()
    return f"{kind}-{slug}"


def printable(text: Any) -> str:
    """Text of rows, models and providers for a terminal: control characters are shown, never sent.

    A terminal takes some of them for orders, such as OSC 52, which writes its clipboard.
    """
    return _CONTROL.sub(_shown_control, str(text))


def _shown_control(found: re.Match[str]) -> str:
    number = ord(found[0])
    return chr(0x2400 + number) if number < 0x20 else "�"


def inline(text: Any) -> str:
    """Text of rows, models and providers inside Markdown: no link, image, code, HTML or new line comes of it."""
    plain = re.sub(r"\s+", " ", printable(text))
    plain = re.sub(r"([\\`\[\]])", r"\\\1", plain).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("://", "&#58;//").replace("www.", "www&#46;")


def short_id(text: str) -> str:
    """A provider's id as a graph has room for it: its beginning and its end."""
    return text if len(text) <= 18 else f"{text[:11]}…{text[-4:]}"


def code(text: Any) -> str:
    """An id as Markdown code."""
    return "`" + re.sub(r"[\s`]+", " ", printable(text)) + "`"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table. Its cells are Markdown: what comes from elsewhere has to go through `inline` or `code`."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in (cells[0], ["---"] * len(head), *cells[1:])]
    return "\n".join(lines)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause to put behind a message: `; did you mean 'labels'?`, or the names there are."""
    names = [str(one) for one in known]
    lowered = {one.lower(): one for one in reversed(names)}
    if near := difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6):
        return f"; did you mean {lowered[near[0]]!r}?"
    return f"; there are: {', '.join(names)}" if names else ""


def when(seconds: float | None) -> str:
    """A time for people, in UTC."""
    return "unknown" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")

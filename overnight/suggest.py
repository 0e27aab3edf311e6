"""The nearest name, for messages about a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause to put behind a message: `; did you mean 'labels'?`, or the names there are."""
    names = [str(one) for one in known]
    lowered = {one.lower(): one for one in reversed(names)}
    if near := difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6):
        return f"; did you mean {lowered[near[0]]!r}?"
    return f"; there are: {', '.join(names)}" if names else ""

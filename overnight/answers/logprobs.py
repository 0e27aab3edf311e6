"""Probabilities of an answer's tokens, where they were asked for (`logprobs`)."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

from overnight.answers.bodies import Body


def _tokens(body: Body) -> list[tuple[str, float]]:
    """Tokens of the first answer with their logarithms, of either endpoint."""
    found: Any = None
    if body.choices:
        about = body.choices[0].logprobs
        found = about.get("content") if isinstance(about, dict) else None
    else:
        parts = [part for item in body.output or () if isinstance(item, dict) for part in item.get("content") or ()]
        found = [token for part in parts if isinstance(part, dict) for token in part.get("logprobs") or ()]
    return [
        (str(one.get("token", "")), float(one["logprob"]))
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, dict) and isinstance(one.get("logprob"), int | float)
    ]


def mean_logprob(body: Body) -> float | None:
    """The mean over all tokens of the answer; None where they are not told."""
    tokens = _tokens(body)
    return math.fsum(value for _, value in tokens) / len(tokens) if tokens else None


def label_probability(body: Body, said: str) -> float | None:
    """The probability of the tokens that a label is made of: in a JSON object those of its value."""
    tokens = _tokens(body)
    text = "".join(token for token, _ in tokens)
    label = _value(said)
    start = text.rfind(label)
    if not tokens or not label or start < 0:
        return None
    ends = list(accumulate(len(token) for token, _ in tokens))
    spans = zip([0, *ends[:-1]], ends, tokens, strict=True)
    inside = [value for begin, end, (_, value) in spans if begin < start + len(label) and end > start]
    return math.exp(math.fsum(inside))


def _value(said: str) -> str:
    bare = said.strip()
    if bare.startswith("{") and bare.endswith("}"):
        return bare.rpartition(":")[2].strip(' "}\n')
    return bare

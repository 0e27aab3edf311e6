"""JSON that others wrote: read within bounds, and mended where an answer would have to be paid for again."""

import contextlib
import json
import math
import re
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 100
"""How deep JSON may nest. Decoders differ and some fail by how deep they were called: .NET's stops at 64, Rust's
serde_json at 128, Python's near 1000 less what is on its stack. A JSON schema of 40 nested objects needs less."""

UNREADABLE: Final = (ValueError, RecursionError)
"""What decoding raises: msgspec's and Unicode's errors are ValueErrors."""

_MOST_DIGITS: Final = 300
"""Longer integers are over what a double holds, and from 4300 on Python refuses to read them."""
_HALF_PAIRS: Final = re.compile("[\ud800-\udfff]")


class TooDeepError(ValueError):
    """JSON nests deeper than MAX_DEPTH."""

    def __init__(self) -> None:
        super().__init__(f"nested deeper than {MAX_DEPTH} levels")


def read_json(data: bytes) -> Any:
    """Decode strict JSON.

    Raises:
        TooDeepError: it nests too deep.
        ValueError: it is not JSON in UTF-8.
    """
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise TooDeepError from None
    # Most JSON has fewer brackets than levels are allowed, and is not walked through.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    return value


def mended(data: bytes, charset: str | None = None) -> bytes:
    """Return strict JSON for what Python's lenient reader makes of the data.

    NaN, infinities and numbers out of range become null. Halves of surrogate pairs, and bytes that fit neither the UTF
    that the data looks like nor `charset`, become U+FFFD.

    Raises:
        TooDeepError: it nests too deep.
        ValueError: it is not JSON in any reading.
    """
    try:
        value = json.loads(
            _text(data, charset), strict=False, parse_constant=lambda _: None, parse_float=_number, parse_int=_integer
        )
    except RecursionError:
        raise TooDeepError from None
    _check_depth(value)
    return whole_text(json.dumps(value, ensure_ascii=False, separators=(",", ":"))).encode()


def whole_text(text: str) -> str:
    """Replace halves of surrogate pairs, which UTF-8 cannot carry, with U+FFFD."""
    return text if text.isascii() else _HALF_PAIRS.sub("\ufffd", text)


def _text(data: bytes, charset: str | None) -> str:
    encoding = json.detect_encoding(data)
    for name in (encoding, charset or encoding):
        with contextlib.suppress(LookupError, ValueError):
            return data.decode(name)
    return data.decode(encoding, errors="replace")


def _number(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= _MOST_DIGITS else None


def _check_depth(value: Any) -> None:
    """Walk level by level: a walk that calls itself would need the stack that deep JSON exhausts."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise TooDeepError

"""The order in which a batch's lines run: those that share a system prompt next to each other.

Upstreams keep the state of a prompt's beginning for a while and answer faster, or cheaper, when the next request begins
the same way. Files are read by offset, so memory holds 16 bytes per line, not the lines.
"""

from array import array
from collections.abc import Collection, Iterator
from hashlib import blake2b
from typing import Any, BinaryIO, Final

import msgspec

from overnight.endpoint.storage.foreign_json import UNREADABLE
from overnight.endpoint.storage.lines import MAX_LINE_BYTES, NumberedLine, input_lines

_LEADING_ROLES: Final = ("system", "developer")


class _Prompt(msgspec.Struct):
    messages: Any = None
    instructions: Any = None
    tools: msgspec.Raw = msgspec.Raw(b"")


class _Body(msgspec.Struct):
    body: _Prompt


_decoder: Final = msgspec.json.Decoder(_Body)


class Order:
    """The unfinished lines of a file: where each starts, in the order in which they run."""

    def __init__(self, stream: BinaryIO, finished: Collection[int]) -> None:
        groups: dict[bytes, int] = {}
        group_of, numbers, offsets = array("I"), array("I"), array("Q")
        for line, offset in _with_offsets(stream):
            if line.number not in finished:
                group_of.append(groups.setdefault(prefix_key(line.data), len(groups)))
                numbers.append(line.number)
                offsets.append(offset)
        self._numbers, self._offsets = numbers, offsets
        self._sequence = array("I", sorted(range(len(numbers)), key=group_of.__getitem__))

    def __len__(self) -> int:
        return len(self._sequence)

    def lines(self, stream: BinaryIO) -> Iterator[NumberedLine]:
        """Yield the lines; those of a group stay in file order, and groups come in the order of their first lines."""
        for index in self._sequence:
            stream.seek(self._offsets[index])
            yield NumberedLine(self._numbers[index], stream.readline(MAX_LINE_BYTES + 1))


def prefix_key(data: bytes) -> bytes:
    """Return a digest of what a request line's prompt begins with; empty where it begins with nothing of its own."""
    try:
        prompt = _decoder.decode(data).body
        leading = _leading(prompt)
        beginning = msgspec.json.encode([bytes(prompt.tools).decode(), leading]) if leading else b""
    except UNREADABLE:
        return b""
    return blake2b(beginning, digest_size=16).digest() if beginning else b""


def _leading(prompt: _Prompt) -> list[Any]:
    leading = [prompt.instructions] if prompt.instructions else []
    for message in prompt.messages if isinstance(prompt.messages, list) else []:
        if not isinstance(message, dict) or message.get("role") not in _LEADING_ROLES:
            break
        leading.append(message.get("content"))
    return leading


def _with_offsets(stream: BinaryIO) -> Iterator[tuple[NumberedLine, int]]:
    """Yield lines with where they start; a valid file has none that is cut, so a line starts where the last ended."""
    for line in input_lines(stream):
        yield line, stream.tell() - len(line.data)

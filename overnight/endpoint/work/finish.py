"""Writing a batch's output and error files from its finished lines."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from overnight.endpoint.storage.lines import Failure, NumberedLine, custom_id_of, input_lines, result_line
from overnight.endpoint.storage.store import put_in_place, stored_results


class Line(NamedTuple):
    """A line of a result file, without its line break."""

    succeeded: bool
    data: bytes


def all_lines(
    requests: Iterable[NumberedLine], results: Iterator[tuple[int, bool, bytes]], rest: Failure
) -> Iterator[Line]:
    """Yield one line per request in file order: its stored result, else `rest`. Both inputs are in line order."""
    pending = next(results, None)
    for request in requests:
        if pending and pending[0] == request.number:
            yield Line(pending[1], pending[2])
            pending = next(results, None)
        else:
            yield Line(False, result_line(custom_id_of(request.data), rest).data)


def write_result_files(
    source: Path, database: Path, batch_id: str, rest: Failure, *, output: Path, error: Path
) -> None:
    """Write both files, each whole or not at all; a file that would be empty is not written.

    The stored results stay, so that it can be done again after a kill.
    """
    try:
        with source.open("rb") as stream:
            _write_parts(all_lines(input_lines(stream), stored_results(database, batch_id), rest), output, error)
        for path in (output, error):
            if _part(path).exists():
                put_in_place(_part(path), path)
    except OSError:
        # A full disk should not stay full of what could not be finished.
        for path in (output, error):
            _part(path).unlink(missing_ok=True)
        raise


def _write_parts(lines: Iterable[Line], output: Path, error: Path) -> None:
    with ExitStack() as stack:
        writers: dict[bool, BinaryIO] = {}
        for line in lines:
            if line.succeeded not in writers:
                path = output if line.succeeded else error
                writers[line.succeeded] = stack.enter_context(_part(path).open("wb"))
            writers[line.succeeded].write(line.data + b"\n")
        for writer in writers.values():
            writer.flush()
            os.fsync(writer.fileno())


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")

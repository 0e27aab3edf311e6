"""Reading a batch's files, as work that another process or machine can do: pure, and handed over as one small value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from overnight.answers.reconcile import Parsed, reconcile
from overnight.answers.responses import ResponseFiles
from overnight.errors import HomeError
from overnight.job.answer import Answer
from overnight.limits.prices import Rates
from overnight.store.home import home_path
from overnight.store.objects import address, is_shared, is_there


class Reading(NamedTuple):
    """All that it takes to read the files of a batch into a result part."""

    files: ResponseFiles
    request_file: Path
    part: Path
    answer: Answer
    rates: Rates | None
    home: Path
    """The folder that the paths lie in."""
    url: str | None = None
    """Of the home, for who does not see that folder: the files are brought from there, and the part put there."""

    @property
    def size(self) -> int:
        """Bytes to read."""
        files = (self.files.output, self.files.error)
        return sum(path.stat().st_size for path in files if path is not None)

    def for_elsewhere(self) -> Reading:
        """The same for a machine with another disk; a home in a folder is seen there too, or its files are missing."""
        return self._replace(url=address(self.home)) if is_shared(self.home) else self


def read(reading: Reading) -> Parsed:
    """Reads them; the same files give the same part, however often and wherever it is done.

    Raises:
        HomeError: a file is not to be seen from here.
        Unreconciled: the verdicts do not add up to the batch's requests.
    """
    if reading.url is not None:
        return _read_away(reading, home_path(reading.url))
    if not reading.request_file.exists():
        where = "give all machines a home in a bucket, or in a folder that they share"
        raise HomeError(f"{reading.request_file} cannot be seen by the worker: {where}")
    return reconcile(reading.files, reading.request_file, reading.part, reading.answer, reading.rates)


def _read_away(reading: Reading, here: Path) -> Parsed:
    """Reads them in this machine's working copy, and leaves nothing there: a worker lives longer than any file."""
    if here == reading.home:  # a cluster lost it, and who asked does it
        return read(reading._replace(url=None))
    brought = _brought(reading, reading.home, here)
    try:
        return read(brought)
    finally:
        for path in (brought.files.output, brought.files.error, brought.request_file, brought.part):
            if path is not None:
                path.unlink(missing_ok=True)


def _brought(reading: Reading, there: Path, here: Path) -> Reading:
    """The same with the paths of this machine, and the files at them."""

    def path(one: Path) -> Path:
        return here / one.relative_to(there)

    def file(one: Path | None) -> Path | None:
        return path(one) if one is not None and is_there(path(one)) else None

    files = replace(reading.files, output=file(reading.files.output), error=file(reading.files.error))
    return reading._replace(files=files, request_file=file(reading.request_file) or path(reading.request_file),
                            part=path(reading.part), home=here, url=None)  # fmt: skip

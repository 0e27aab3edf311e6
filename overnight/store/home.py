"""The home: where each file of a job lies, and who may write there."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from overnight.errors import HomeError
from overnight.store.files import make_private
from overnight.store.objects import address, is_shared, open_object_home

DEFAULT_HOME = "data/runs"


def home_path(given: str | Path | None = None) -> Path:
    """The home: as given, else `OVERNIGHT_HOME`, else `data/runs` under the working directory.

    Args:
        given: a folder, or the URL of a home on an object store (`s3://bucket/prefix`), which gets a working copy.

    Raises:
        HomeError: it cannot be made or written to.
    """
    text = str(given or os.environ.get("OVERNIGHT_HOME") or DEFAULT_HOME)
    if "://" in text:
        return open_object_home(text)
    path = Path(text).absolute()
    try:
        make_private(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise HomeError(
            f"cannot write to the home {text}: {error.strerror}; choose another with --home or OVERNIGHT_HOME"
        ) from None
    return path


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    home: Path
    job: str

    @property
    def path(self) -> Path:
        """The job's folder."""
        return self.home / self.job

    @property
    def staging(self) -> Path:
        """What a build writes, until it is validated and planned."""
        return self.path / ".staging"

    @property
    def spill(self) -> Path:
        """What a join has no memory for; gone when it ends."""
        return self.path / ".spill"

    @property
    def mark(self) -> Path:
        """Which ledger the job was sent by, and how much of it."""
        return self.path / ".ledger.json"

    def retries(self, round_: int) -> Path:
        """What is sent again in a round, until it is planned."""
        return self.path / f".round-{round_:04d}"

    @property
    def frame(self) -> Path:
        """A DataFrame that was handed over as the dataset."""
        return self.path / "dataset.parquet"

    def rows(self, build: str | None) -> Path:
        """Dataset row number → custom_id, of a build; an object's name tells which, as it is never written twice."""
        return self.path / (f"rows-{build}.parquet" if is_shared(self.path) else "rows.parquet")

    @property
    def requests(self) -> Path:
        """What was uploaded, byte for byte."""
        return self.path / "requests"

    @property
    def fragments(self) -> Path:
        """What a cluster's workers rendered for a build; each is gone once it is read."""
        return self.path / "fragments"

    @property
    def responses(self) -> Path:
        """What the provider sent back, byte for byte."""
        return self.path / "responses"

    @property
    def results(self) -> Path:
        """One row per request per attempt."""
        return self.path / "results"

    @property
    def joined(self) -> Path:
        """One row per dataset row, in the dataset's order."""
        return self.path / "joined.parquet"

    @property
    def failed(self) -> Path:
        """The rows without an answer."""
        return self.path / "failed.parquet"

    @property
    def report(self) -> Path:
        """The run's summary in Markdown."""
        return self.path / "report.md"


def shown(path: Path) -> str:
    """A path as a person reads it: relative to the working directory where it lies below, or its URL."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else address(path)

"""The files of a dataset: found, opened, decompressed, decoded."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

import fsspec
import pyarrow as pa

from overnight.errors import DatasetError
from overnight.store.objects import SCHEMES, local_path

_COMPRESSED = {"gz": "gzip", "gzip": "gzip", "bz2": "bz2", "zst": "zstd", "zstd": "zstd", "lz4": "lz4"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks, the longer first: one starts as another does."""
_PARTITION = re.compile(r"([^=/]+)=([^/]*)")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_READ_BYTES = 1 << 20


class File(NamedTuple):
    """One file of the dataset."""

    filesystem: Any
    path: str
    partitions: tuple[tuple[str, str | None], ...] = ()
    """Columns that its folders name (`lang=en/year=2023/`), and their values in it."""

    def open(self) -> io.BufferedIOBase:
        """Opens it for reading bytes."""
        return cast(io.BufferedIOBase, self.filesystem.open(self.path, "rb"))

    @property
    def kind(self) -> str:
        """What its name says of its format, without a compression's ending: `csv`."""
        parts = _name(self.path).lower().split(".")
        return parts[-2] if parts[-1] in _COMPRESSED and len(parts) > 2 else parts[-1]

    @property
    def compression(self) -> str | None:
        """How it is compressed, as Arrow calls it."""
        return _COMPRESSED.get(_name(self.path).lower().rsplit(".", 1)[-1])


def find_files(path: str, kinds: frozenset[str]) -> list[File]:
    """The files of a dataset in the order of their paths, without hidden ones and markers.

    Args:
        path: a file, a folder, a glob, or an fsspec URL of one.
        kinds: endings of files that are taken from a folder.

    Raises:
        DatasetError: there are none.
    """
    if not path:
        raise DatasetError("the job has no dataset: set dataset.path, or hand a DataFrame over as `dataset=`")
    try:
        filesystem, root = _filesystem(local_path(path))
        folder, found = _find(filesystem, root, kinds)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"cannot open {path}: {error}") from None
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None
    if not found:
        hint = "" if filesystem.isdir(root) else "; relative paths start at the working directory"
        raise DatasetError(f"there is no dataset at {path}{hint}")
    return [File(filesystem, one, _partitions(one[len(folder) :])) for one in sorted(found)]


def _filesystem(path: str) -> tuple[Any, str]:
    """Who reads a path: fsspec's own for its scheme where that is installed, else what the home is kept with."""
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(path)
    except ImportError:
        scheme = path.partition("://")[0]
        if scheme not in SCHEMES or find_spec("obstore") is None:
            raise
        import_module("obstore.fsspec").register(scheme)
        found = fsspec.core.url_to_fs(path)
    return found


def _find(filesystem: Any, root: str, kinds: frozenset[str]) -> tuple[str, list[str]]:
    """The folder that the search starts at, and the files."""
    if filesystem.isdir(root):
        folder = root.rstrip("/")
        found = [one for one in filesystem.find(root) if File(filesystem, one).kind in kinds]
    elif any(sign in root for sign in "*?[") and not filesystem.exists(root):
        folder = root[: re.search(r"[*?\[]", root).start()].rpartition("/")[0]  # type: ignore[union-attr] # has one
        found = [one for one in filesystem.glob(root) if not filesystem.isdir(one)]
    else:
        return root, [root] if filesystem.exists(root) else []
    return folder, [one for one in found if not _is_hidden(one[len(folder) :])]


def _is_hidden(path: str) -> bool:
    """Notebooks' checkpoints, other programs' markers and sums: names that start with a dot or an underscore."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.split("/"))


def _partitions(path: str) -> tuple[tuple[str, str | None], ...]:
    pairs = [_PARTITION.fullmatch(part) for part in path.split("/")[:-1]]
    return tuple(
        (unquote(pair[1]), None if pair[2] == _NO_PARTITION else unquote(pair[2])) for pair in pairs if pair is not None
    )


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


@contextmanager
def text_stream(file: File, encoding: str | None) -> Iterator[io.BufferedIOBase]:
    """A text file, decompressed, as UTF-8 without a byte-order mark.

    Args:
        file: which.
        encoding: as Python names it; else what its byte-order mark says, else UTF-8.

    Raises:
        DatasetError: the file ends early, or is not of this encoding.
    """
    with file.open() as raw:
        packed: Any = pa.CompressedInputStream(raw, file.compression) if file.compression else raw
        start = packed.read(4)
        found = (
            encoding or next((name for mark, name in _MARKS if start.startswith(mark)), None) or _without_mark(start)
        )
        yield io.BufferedReader(_Utf8(file, start, packed, found or "utf-8", sure=bool(found)), _READ_BYTES)


def _without_mark(start: bytes) -> str | None:
    """UTF-16 shows itself: every other byte of Latin text is zero."""
    if len(start) == 4 and start.count(0) == 2:
        return "utf-16-le" if start[1] == start[3] == 0 else "utf-16-be" if start[0] == start[2] == 0 else None
    return None


def _whole_lines(file: File) -> int:
    """Lines before the place where a compressed file breaks, read in small steps: a step that fails gives nothing."""
    lines = 0
    with suppress(OSError, EOFError, pa.ArrowException), file.open() as raw:
        packed = pa.CompressedInputStream(raw, file.compression)
        while some := packed.read(256):
            lines += some.count(b"\n")
    return lines


class _Utf8(io.RawIOBase):
    """Text of any encoding, read as UTF-8; it is checked on the way."""

    def __init__(self, file: File, start: bytes, packed: Any, encoding: str, *, sure: bool) -> None:
        super().__init__()
        self._file, self._packed, self._encoding, self._sure = file, packed, encoding, sure
        try:
            self._decoder = codecs.getincrementaldecoder(encoding)()
        except LookupError:
            raise DatasetError(f"dataset.encoding: Python knows no encoding {encoding!r}") from None
        self._lines = 1
        self._rest = self._decoded(start) if start else b""
        self._ended = not start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and not self._ended:
            try:
                more = self._packed.read(_READ_BYTES)
            except (OSError, EOFError, pa.ArrowException) as error:
                raise DatasetError(
                    f"{self._file.path} is cut or damaged: it breaks after line {_whole_lines(self._file):,} "
                    f"({error}); get it again"
                ) from None
            self._ended = not more
            self._rest = self._decoded(more)
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _decoded(self, some: bytes) -> bytes:
        try:
            text = self._decoder.decode(some, not some)
        except UnicodeDecodeError as error:
            line = self._lines + error.object[: error.start].count(b"\n")
            hint = f"it is not {self._encoding} there: name the right one" if self._sure else (
                "it is not UTF-8 text: name its encoding"
            )  # fmt: skip
            raise DatasetError(
                f"{self._file.path}:{line}: {hint}, such as dataset: {{encoding: cp1252}} ({error.reason})"
            ) from None
        encoded = text.encode()
        self._lines += encoded.count(b"\n")
        return encoded

"""Images, documents and recordings of a row as parts of a message: by address, or inside it as base64.

What a file is, its first bytes say; one that is none of the kinds that providers read, or is cut off, is an error of
its row (`bad_image`, `bad_file`, `bad_audio`).
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsspec

Kind = Literal["image", "file", "audio"]
_ADDRESSES = ("http://", "https://")
_REMOTE = frozenset(
    {"http", "https", "ftp", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "sftp", "hdfs", "memory"}
)
"""Not among them: what reads this machine's files in other ways (`zip://`, `git://`, one address within another)."""
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mp3"),
    (b"\xff\xfb", "audio/mp3"),
    (b"\xff\xf3", "audio/mp3"),
    (b"\xff\xf2", "audio/mp3"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
)
_ENDS = {"image/png": b"IEND\xaeB`\x82", "image/jpeg": b"\xff\xd9", "image/gif": b"\x3b", "application/pdf": b"%%EOF"}
"""What a whole file has near its end."""
_END_BYTES = 2048
_TAKEN: dict[Kind, str] = {
    "image": "PNG, JPEG, GIF or WebP", "file": "PDF or text, or named with an ending that tells", "audio": "WAV or MP3",
}  # fmt: skip


class BadMedia(Exception):
    """A row's image, document or recording cannot be sent."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.code = f"bad_{kind}"


class Loaded(NamedTuple):
    """A file's bytes and what they are."""

    content: bytes
    media_type: str
    name: str

    @property
    def data_uri(self) -> str:
        """As an address that holds the file itself."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.content).decode()}"


def media_values(value: Any) -> list[Any]:
    """What one cell names: none, one, or a list of them."""
    if value is None or value == "":
        return []
    return [one for one in value if one is not None] if isinstance(value, list | tuple) else [value]


def part_of(kind: Kind, value: Any, *, responses: bool, fetched: bool, folders: Sequence[Path]) -> dict[str, Any]:
    """One part of a message.

    Args:
        kind: what the value is.
        value: an address, a data URI, a path (fsspec), bytes, or a mapping with `bytes` or `path` as datasets of images
            have it.
        responses: in the form of the Responses API; else of chat completions.
        fetched: whether the provider fetches addresses.
        folders: which local files may lie in; relative paths start at the first.

    Raises:
        BadMedia: it cannot be read, or is none of the kinds that are taken.
    """
    direct = isinstance(value, str) and value.startswith(_ADDRESSES) and fetched
    if kind == "image":
        address = value if direct else load(kind, value, folders).data_uri
        return {"type": "input_image", "image_url": address} if responses else (
            {"type": "image_url", "image_url": {"url": address}}
        )  # fmt: skip
    if kind == "audio":
        loaded = load(kind, value, folders)
        form = loaded.media_type.rpartition("/")[2]
        return {"type": "input_audio",
                "input_audio": {"data": base64.b64encode(loaded.content).decode(), "format": form}}  # fmt: skip
    if direct and responses:
        return {"type": "input_file", "file_url": value}
    loaded = load(kind, value, folders)
    about = {"filename": loaded.name, "file_data": loaded.data_uri}
    return {"type": "input_file", **about} if responses else {"type": "file", "file": about}


def load(kind: Kind, value: Any, folders: Sequence[Path]) -> Loaded:
    """Reads a file and looks at what it is; `part_of` has the arguments.

    Raises:
        BadMedia: it cannot be read, or is none of the kinds that are taken.
    """
    content, name = _content(kind, value, folders)
    shown = name or f"{len(content):,} bytes"
    if not content:
        raise BadMedia(kind, f"{shown}: it is empty")
    media_type = _media_type(content) or (_guessed(content, name) if kind == "file" else None)
    if media_type is None or not _fits(kind, media_type):
        raise BadMedia(kind, f"{shown}: it is {media_type or 'of no known kind'}, not {_TAKEN[kind]}")
    if (end := _ENDS.get(media_type)) and end not in content[-_END_BYTES:]:
        raise BadMedia(kind, f"{shown}: the {media_type} is cut off")
    if media_type == "image/webp" and len(content) < int.from_bytes(content[4:8], "little") + 8:
        raise BadMedia(kind, f"{shown}: the {media_type} is cut off")
    return Loaded(content, media_type, name or f"file{mimetypes.guess_extension(media_type) or ''}")


def _content(kind: Kind, value: Any, folders: Sequence[Path]) -> tuple[bytes, str]:
    if isinstance(value, Mapping):
        inner = value.get("bytes")
        return _content(kind, inner if inner is not None else value.get("path") or value.get("url"), folders)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), ""
    if not isinstance(value, str) or not value:
        raise BadMedia(kind, f"{value!r:.60} is no address, path or bytes")
    if value.startswith("data:"):
        head, _, data = value.partition(",")
        try:
            return base64.b64decode(data, validate=True) if head.endswith(";base64") else data.encode(), ""
        except (ValueError, binascii.Error):
            raise BadMedia(kind, f"{value[:40]}…: not base64") from None
    try:
        with fsspec.open(_allowed(kind, value, folders), "rb") as stream:
            return stream.read(), value.split("?")[0].rstrip("/").rpartition("/")[2]
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
        raise BadMedia(kind, f"cannot read {value}: {why}") from None


def _allowed(kind: Kind, value: str, folders: Sequence[Path]) -> str:
    """An address to read, or the path of a local file that lies in one of the folders.

    Raises:
        BadMedia: it leads elsewhere.
    """
    protocol, _, local = value.rpartition("://")
    if protocol in _REMOTE:
        return value
    if protocol not in ("", "file"):
        raise BadMedia(kind, f"{value}: {protocol}:// is not read from a row; known are {', '.join(sorted(_REMOTE))}")
    path = (folders[0] / Path(local).expanduser()).resolve()
    if not any(path.is_relative_to(folder) for folder in folders):
        there = " or ".join(map(str, dict.fromkeys(folders)))
        raise BadMedia(kind, f"{value} lies outside of {there}: name the folder of such files in task.media_folder")
    return str(path)


def _media_type(content: bytes) -> str | None:
    if content[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(content[8:12])
    return next((kind for start, kind in _STARTS if content.startswith(start)), None)


def _guessed(content: bytes, name: str) -> str | None:
    if found := mimetypes.guess_type(name)[0]:
        return found
    try:
        content[:4096].decode()
    except UnicodeDecodeError:
        return None
    return "text/plain"


def _fits(kind: Kind, media_type: str) -> bool:
    if kind == "file":
        return True
    return media_type.startswith(f"{kind}/") and media_type not in ("audio/flac", "audio/ogg")

"""Receiving an upload: multipart, streamed to disk, with a limit that holds while bytes arrive."""

import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, Final

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from overnight.endpoint.api.batch_request import ExpiresAfter
from overnight.endpoint.errors import ApiError
from overnight.endpoint.storage.disk import Disk
from overnight.endpoint.storage.records import StoredFile, new_id
from overnight.endpoint.storage.store import Store, put_in_place

MAX_UPLOAD_BYTES: Final = 512 * 1024 * 1024
# The other form fields and the multipart borders.
_ENVELOPE_BYTES: Final = 1024 * 1024


async def receive_file(request: Request, store: Store, disk: Disk, now: int, keep_seconds: int | None) -> StoredFile:
    """Store an uploaded file and register it; it is kept for `keep_seconds`, None for ever, unless the form says.

    Raises:
        ApiError: 400 for a form that is no upload, 413 for one over MAX_UPLOAD_BYTES, 507 where the disk has no room.
    """
    form = await _form(request, disk)
    try:
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise ApiError(400, "Missing required parameter: 'file'.", "file", "missing_required_parameter")
        if not isinstance(purpose, str):
            raise ApiError(400, "Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter")
        if purpose != "batch":
            raise ApiError(400, f"'{purpose[:64]}' is not supported here: use 'batch'.", "purpose", "invalid_value")
        if (upload.size or 0) > MAX_UPLOAD_BYTES:
            raise _too_large()
        keep = _expires_after(form) or keep_seconds
        disk.check(upload.size or 0)
        file_id = new_id("file-")
        size = await run_in_threadpool(_save, upload.file, store.path(file_id))
        filename = (upload.filename or "file")[:512].encode(errors="replace").decode()
        file = StoredFile(file_id, size, now, filename, purpose, now + keep if keep else None)
        store.add_file(file)
        return file
    finally:
        await form.close()


def _expires_after(form: FormData) -> int | None:
    """Read `expires_after[anchor]` and `expires_after[seconds]`, as OpenAI's SDK spells them in a form."""
    sent = {name: form.get(f"expires_after[{name}]") for name in ("anchor", "seconds")}
    if all(value is None for value in sent.values()):
        return None
    try:
        return ExpiresAfter.model_validate(sent).seconds
    except ValidationError as error:
        first = error.errors()[0]
        param = f"expires_after.{first['loc'][0]}"
        raise ApiError(400, f"Invalid '{param}': {first['msg']}.", param, "invalid_value") from error


async def _form(request: Request, disk: Disk) -> FormData:
    limit = MAX_UPLOAD_BYTES + _ENVELOPE_BYTES
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() and len(length) < 20 else 0
    if announced > limit:
        raise _too_large()
    disk.check(announced)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "Send the file as multipart/form-data with the fields 'file' and 'purpose'.", "file")
    try:
        return await MultiPartParser(
            request.headers, _limited(request, limit, disk), max_files=1, max_fields=16
        ).parse()
    except MultiPartException as error:
        raise ApiError(400, f"The multipart form cannot be read: {error.message}", "file") from error


async def _limited(request: Request, limit: int, disk: Disk) -> Any:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large()
        disk.check()
        yield chunk


def _too_large() -> ApiError:
    return ApiError(413, f"The file is larger than the limit of {MAX_UPLOAD_BYTES} bytes.", "file", "file_too_large")


def _save(source: BinaryIO, target: Path) -> int:
    part = target.with_name(f"{target.name}.part")
    with part.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
        size = sink.tell()
    put_in_place(part, target)
    return size

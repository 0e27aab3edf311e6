"""xAI's calls, where they are others than those of everybody with files: results are pages of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from overnight.errors import DownloadCut, ProviderUnavailable
from overnight.providers.dialects.xai import token
from overnight.providers.provider import Provider
from overnight.store.files import atomic_path

_PAGE = 1000


class XaiProvider(Provider):
    """The same calls; a batch's result file has the batch's id."""

    _cancels = ":cancel"

    def _download_once(self, file_id: str, path: Path) -> int:
        """Writes each result as it came, a line each; there have to be as many as the batch counts."""
        call, written, after = f"download {file_id}", 0, None
        with atomic_path(path) as part, part.open("wb") as lines:
            while True:
                asked = {"limit": _PAGE} | ({"pagination_token": after} if after else {})
                with self._translated(call):
                    address = f"{self._path(file_id)}/results"
                    found: Any = self._client.get(address, cast_to=object, options={"params": asked})
                if not isinstance(found, dict) or not isinstance(results := found.get("results"), list):
                    raise ProviderUnavailable(f"{call}: a page of results cannot be read")
                lines.writelines(msgspec.json.encode(one) + b"\n" for one in results)
                written += len(results)
                after, before = token(found), after
                if not results or after in (None, before):
                    break
            counted = self.retrieve(file_id)
            if written < (counted.done or 0) + (counted.failed or 0):
                raise DownloadCut(f"{file_id}: {written:,} results came of {counted.done} and {counted.failed}")
            return lines.tell()

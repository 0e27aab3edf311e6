"""The room on the disk of the data directory."""

import shutil
from pathlib import Path

from overnight.endpoint.errors import ApiError


class Disk:
    """The room on the disk of a directory, of which some stays free."""

    def __init__(self, directory: Path, min_free_bytes: int) -> None:
        self._directory, self._min_free = directory, min_free_bytes

    def shortage(self, extra: int = 0) -> str | None:
        """Say what is missing for so many bytes more; None when there is room."""
        free = shutil.disk_usage(self._directory).free - extra
        if free >= self._min_free:
            return None
        return (
            f"The endpoint's disk is nearly full: {free >> 20} MiB would be free, {self._min_free >> 20} must stay. "
            "Delete files, or free space."
        )

    def check(self, extra: int = 0) -> None:
        """Refuse what there is no room for.

        Raises:
            ApiError: 507.
        """
        if message := self.shortage(extra):
            raise ApiError(507, message, code="insufficient_storage")

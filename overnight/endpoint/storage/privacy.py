"""Prompts and answers lie in plain text in the data directory: none of it is for other accounts of the machine."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

log: Final = logging.getLogger(__name__)

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
_OURS: Final = ("endpoint.*", "log.txt", "files", "files/*")
"""What lies in a data directory; another's files, in a folder that somebody chose to share, are left as they are."""


@contextmanager
def private_to_owner(directory: Path) -> Iterator[None]:
    """Close a data directory to others, and whatever this process writes meanwhile, by whichever library."""
    before = os.umask(0o777 & ~FOLDER_MODE)
    try:
        close_to_others(directory)
        yield
    finally:
        os.umask(before)


def close_to_others(directory: Path) -> None:
    """Give the owner alone what lies there; what cannot be changed, such as a volume of root's, is said in the log."""
    directory = directory.resolve()  # links in it are not followed, but it may be one
    for path in (directory, *(found for pattern in _OURS for found in directory.glob(pattern))):
        try:
            _close(path)
        except FileNotFoundError:
            pass  # another server's, which is about to be seen at the lock
        except OSError as error:
            log.warning("%s stays readable by others: %s", path, error.strerror)


def _close(path: Path) -> None:
    found = path.lstat().st_mode
    mode = FOLDER_MODE if stat.S_ISDIR(found) else FILE_MODE
    if not stat.S_ISLNK(found) and stat.S_IMODE(found) != mode:
        path.chmod(mode)

"""The folder of uploaded files: it belongs to this process and is removed with it.

A process that is killed leaves its folder behind. Each folder holds a lock, which the system releases when the process
ends; the next start removes the folders without a held lock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, LOCK, FILES = "omnidrop-app-", "lock", "files"
YOUNG = 60.0  # seconds in which a folder may have no lock yet


@contextmanager
def uploads() -> Iterator[Path]:
    """The folder for the length of the `with`, below the system's folder of temporary files."""
    from filelock import FileLock

    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    try:
        with FileLock(folder / LOCK):
            files = folder / FILES
            files.mkdir()
            yield files
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the folders of processes that are gone; what another user or a running process owns stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _left(folder):
                shutil.rmtree(folder)


def _left(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    about = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
        return False
    lock = folder / LOCK
    if not lock.is_file():
        return time.time() - about.st_mtime > YOUNG
    try:
        FileLock(lock, timeout=0).acquire().lock.release()
    except Timeout:
        return False
    return True

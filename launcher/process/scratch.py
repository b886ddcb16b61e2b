"""Temporary directories that do not stay for ever when their owner is killed.

Nobody can clean up after ``kill -9`` at once. So each directory holds a file that its owner has locked. The kernel
drops the lock with the owner, and whoever makes the next directory removes those that are not locked any more.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_LOCK = "lock"


class Scratch:
    """A directory below the system's temporary directory that is this process's until ``remove``."""

    def __init__(self, prefix: str) -> None:
        """Make it, and remove those with the same ``prefix`` that dead owners have left."""
        base = Path(tempfile.gettempdir())
        for left in base.glob(f"{prefix}*"):
            _remove_if_left(left)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
            fd = _lock(self.path, create=True)
            if fd is not None:
                self._fd = fd
                return
            # Somebody who was cleaning up has taken the new directory for one that was left.

    def remove(self) -> None:
        """Remove the directory with all that is in it. Safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _remove_if_left(path: Path) -> None:
    try:
        ours = path.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return
    fd = _lock(path, create=False) if ours else None
    if fd is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def _lock(directory: Path, *, create: bool) -> int | None:
    """Lock the directory and return the lock's descriptor, or ``None`` when it is somebody else's or gone."""
    path = directory / _LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None

"""The few operations on a file system that checkpoints are made of, for a local or shared disk.

Names are relative to the path of the checkpoints, with ``/`` between folder and file. A file is written whole: under
its name there is either nothing or all of it, on the disk, whenever the machine stops.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from tlaunch.checkpoint.direct import write_all
from tlaunch.checkpoint.errors import CheckpointError, Unusable

Buffer: TypeAlias = "bytes | bytearray | memoryview"

DRAFT = ".draft-"
"""How names start of files that are still being written."""

TRASH = ".trash-"
"""How names start of folders that are being removed."""


class Files(Protocol):
    """What a place for checkpoints can do. Every method raises ``OSError`` as the operating system does."""

    @property
    def root(self) -> str:
        """The path or URL, for messages."""
        ...

    def make(self, folder: str) -> None:
        """Make a folder, with those above it, unless it is there."""
        ...

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """Write a file; when this returns, it is complete and durable under its name. An older one is replaced.

        Raises:
            FileNotFoundError: its folder is not there (any more).
        """
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a small file that must not be there yet; of several callers only one succeeds.

        Whoever looks meanwhile, or after a crash, may find the name with less than all of the data.

        Raises:
            FileExistsError: it is there.
        """
        ...

    def settle(self, folder: str) -> None:
        """Make durable which names are in a folder, also those that other processes have written."""
        ...

    def space(self) -> int | None:
        """Return how many bytes can still be written; ``None`` when that is not known. The path must be there."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """Return a small file's bytes, at most ``limit`` of them."""
        ...

    def read_into(self, name: str, begin: int, *buffers: memoryview) -> int:
        """Fill buffers, one after the other, with the bytes from ``begin`` on.

        Returns how many there were: fewer only at the file's end.
        """
        ...

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """Return the plain names in a folder, sorted; none when it does not exist."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it: at once, or so that whoever looks sees none of it.

        Nothing happens when it is not there.
        """
        ...


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that stays open for several readings."""

    fd: int

    def read_into(self, begin: int, *buffers: memoryview) -> int:
        """Fill buffers as :meth:`Files.read_into` does."""
        left, at = list(buffers), begin
        while any(left):
            count = os.preadv(self.fd, left, at)
            if count == 0:
                break
            at += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]
        return at - begin


class LocalFiles:
    """A folder of a file system that the operating system mounts: a local disk, NFS, Lustre."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)

    @property
    def root(self) -> str:
        return str(self._root)

    def make(self, folder: str) -> None:
        missing = []
        path = self._root / folder
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        # Whoever has made it may have died before its name was durable.
        with contextlib.suppress(PermissionError):  # not ours, then
            self._sync(path.parent)
        for made in reversed(missing):
            self._mkdir(made)
            self._sync(made.parent)

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        path = self._root / name
        # Process numbers repeat: on every node, in every container.
        draft = path.with_name(f"{DRAFT}{secrets.token_hex(8)}-{path.name}")
        try:
            self._fill(draft, chunks)
            self._rename(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._unlink(draft)
            raise
        self._sync(path.parent)

    def create(self, name: str, data: bytes) -> None:
        path = self._root / name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.close(fd)
        try:
            self._fill(path, [data])
        except BaseException:
            with contextlib.suppress(OSError):
                self._unlink(path)
            raise
        self._sync(path.parent)

    def settle(self, folder: str) -> None:
        self._sync(self._root / folder)

    def space(self) -> int | None:
        found = os.statvfs(self._root)
        return found.f_bavail * found.f_frsize

    def read(self, name: str, limit: int) -> bytes:
        with (self._root / name).open("rb") as file:
            return file.read(limit)

    def read_into(self, name: str, begin: int, *buffers: memoryview) -> int:
        with self.opened(name) as file:
            return file.read_into(begin, *buffers)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[OpenFile]:
        """Keep a file open: of one that is read in order, the operating system reads ahead."""
        fd = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield OpenFile(fd)
        finally:
            os.close(fd)

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size

    def names(self, folder: str = "") -> list[str]:
        try:
            return sorted(path.name for path in (self._root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        path = self._root / name
        if not path.is_dir() or path.is_symlink():
            self._unlink(path)
            return
        # Renamed first: nobody sees half of it, and whoever still wants to write into it finds no folder.
        trash = path
        if not path.name.startswith(TRASH):
            trash = path.with_name(f"{TRASH}{secrets.token_hex(8)}-{path.name}")
            try:
                self._rename(path, trash)
            except FileNotFoundError:
                return  # somebody else was faster
            self._sync(path.parent)
        self._rmtree(trash)

    # --- what changes the disk, one step each, so that tests can stop between any two of them ----------------------

    def _mkdir(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def _fill(self, path: Path, chunks: Iterable[Buffer]) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, chunks)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _rmtree(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def _sync(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and need not
                raise
        finally:
            os.close(fd)


def read_foreign(files: Files, name: str, most: int, what: str) -> bytes:
    """Return a small file that another program has written. ``what``: what is done with it, for messages.

    Raises:
        Unusable: it is larger than ``most`` bytes.
        CheckpointError: it cannot be read.
    """
    where = f"{files.root}/{name}"
    try:
        data = files.read(name, most + 1)
    except OSError as error:
        raise why(error, what, where) from error
    if len(data) > most:
        raise Unusable(f"{where}: larger than {most >> 20} MiB")
    return data


def why(error: OSError, what: str, where: str) -> CheckpointError:
    """Return an error of the operating system as one line: what was tried, on which file, and why it failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(f"{where}: {what} failed: no space is left; checkpoints that stood before still do")
    return CheckpointError(f"{where}: {what} failed: {error.strerror or error}")

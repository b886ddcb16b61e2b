"""Small checkpoints to try things out on, and a disk that forgets what was not synced."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.files import Buffer, Files, LocalFiles
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import Manifest
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece

WORLD = 2


def numbers(step: int, rank: int, count: int = 8) -> bytes:
    """Return the float32 data that a rank has at a step."""
    return struct.pack(f"<{count}f", *(step * 1000.0 + rank * 100 + index for index in range(count)))


def part_of(address: Address, rank: int, world: int = WORLD) -> Manifest:
    """Return a part as a rank brings it, before its tensors are written."""
    values = {"epoch": address.step // 10} if rank == 0 else {}
    return Manifest(address.step, address.generation, world, (rank,), "2026-01-01T00:00:00Z", values=values)


def pieces_of(address: Address, rank: int, world: int = WORLD) -> list[Piece]:
    """Return a rank's rows of the tensor ``w``, 8 elements each, and on rank 0 the scalar ``scale``."""
    rows = Piece("w", "F32", (world, 8), Region((rank, 0), (1, 8)), memoryview(numbers(address.step, rank)))
    scale = Piece("scale", "F32", (), Region.whole(()), memoryview(numbers(address.step, 9, 1)))
    return [rows, scale] if rank == 0 else [rows]


def save(files: Files, address: Address, world: int = WORLD) -> bool:
    """Write and commit a checkpoint; true when it is committed."""
    done = False
    for rank in range(world):
        write_part(files, part_of(address, rank, world), pieces_of(address, rank, world))
        done = try_commit(files, address, world)
    return done


class Crash(BaseException):
    """The machine stops here."""


class Machine(LocalFiles):
    """A disk whose machine stops at the ``stop_at``-th operation, and which then forgets what was not synced.

    Of a file that was not synced, a random part of its bytes is kept; of names that were not synced in their folder,
    some are kept and some are not. That is what POSIX allows.
    """

    def __init__(self, root: Path, stop_at: int | None = None, seed: int = 0) -> None:
        super().__init__(root)
        self._folder = root
        self._stop_at = stop_at
        self._random = random.Random(seed)
        self.operations = 0
        self._synced: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}

    def _operation(self, do: Callable[[], object]) -> None:
        self.operations += 1
        if self._stop_at is not None and self.operations >= self._stop_at:
            if self._random.random() < 0.5:
                do()
            raise Crash
        do()

    def make(self, folder: str) -> None:
        self._operation(lambda: super(Machine, self).make(folder))

    def remove(self, name: str) -> None:
        self._operation(lambda: super(Machine, self).remove(name))

    def _fill(self, path: Path, chunks: Iterable[Buffer]) -> None:
        data = b"".join(bytes(chunk) for chunk in chunks)
        self._operation(lambda: path.write_bytes(data[: self._random.randrange(len(data) + 1)]))
        self._operation(lambda: path.write_bytes(data))

        def sync() -> None:
            self._synced[path.stat().st_ino] = data

        self._operation(sync)

    def _rename(self, draft: Path, path: Path) -> None:
        self._operation(lambda: super(Machine, self)._rename(draft, path))

    def _sync(self, folder: Path) -> None:
        def sync() -> None:
            self._names[folder] = {entry.name: entry.stat().st_ino for entry in folder.iterdir()}

        self._operation(sync)

    def restart(self) -> LocalFiles:
        """Come up again: what was not synced is there in part, or not at all."""
        for path in sorted(self._folder.rglob("*"), reverse=True):
            synced_names = self._names.get(path.parent, {})
            inode = path.stat().st_ino
            if synced_names.get(path.name) != inode and self._random.random() < 0.5:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif path.is_file() and inode not in self._synced:
                data = path.read_bytes()
                path.write_bytes(data[: self._random.randrange(len(data) + 1)])
        return LocalFiles(self._folder)


def everything(folder: Path) -> Mapping[str, bytes]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

"""Small checkpoints to try things out on."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.files import Files
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


def everything(folder: Path) -> Mapping[str, bytes]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

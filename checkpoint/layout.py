"""Where things lie below the path of a job's checkpoints.

- ``generation-00000003.json``: who has written here, one for each writer; the highest number is the newest
- ``step-000000100.g00003/``: one checkpoint, committed as soon as it holds ``manifest.json``. In it:
- ``rank-00000.safetensors``: what one rank has written
- ``rank-00000.json``: its part of the manifest, until the checkpoint is committed
- ``absent.json``: a rank does not write its part; the checkpoint will never be committed
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MANIFEST = "manifest.json"
ABSENT = "absent.json"

METADATA = ".metadata"
"""By this file a directory of ``torch.distributed.checkpoint`` is known."""

SUFFIX = ".safetensors"

RANKS = "ranks"
RESERVED = (RANKS, "dcp")
"""First parts of names that are not the state's: what each rank has for itself, and what planners of torch add."""

DCP_PATHS = "dcp.paths"
"""The value that holds the paths of torch's planner: how its flat names were made from a nested state."""

STEPS = 10**15
"""Steps are below this, as that many digits fit."""

_STEP = re.compile(r"step-(\d{9,15})\.g(\d{5,12})")
_PART = re.compile(r"rank-(\d{5,9})\.json")
_GENERATION = re.compile(r"generation-(\d{8,12})\.json")


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Which checkpoint: newer ones are greater. What a newer writer has saved is newer, whatever its step."""

    generation: int
    step: int

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"step-{self.step:09d}.g{self.generation:05d}"

    @property
    def manifest(self) -> str:
        """Where its manifest lies."""
        return f"{self.folder}/{MANIFEST}"

    def shard(self, rank: int) -> str:
        """Where a rank's tensors lie."""
        return f"{self.folder}/{shard_name(rank)}"

    def part(self, rank: int) -> str:
        """Where a rank's part of the manifest lies."""
        return f"{self.folder}/{part_name(rank)}"

    @property
    def absence(self) -> str:
        """Where it is said that a rank writes no part."""
        return f"{self.folder}/{ABSENT}"


def shard_name(rank: int) -> str:
    """Return the name of the file with a rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def part_name(rank: int) -> str:
    """Return the name of the file with a rank's part of the manifest."""
    return f"rank-{rank:05d}.json"


def address_of(folder: str) -> Address | None:
    """Return which checkpoint a folder of this name holds, if any."""
    match = _STEP.fullmatch(folder)
    if match is None:
        return None
    address = Address(int(match[2]), int(match[1]))
    return address if address.folder == folder else None


def rank_of(part: str) -> int | None:
    """Return whose part of the manifest a file of this name is, if any."""
    match = _PART.fullmatch(part)
    return None if match is None else int(match[1])


def generation_file(generation: int) -> str:
    """Return the name of the file by which a writer has taken a generation."""
    return f"generation-{generation:08d}.json"


def generation_of(name: str) -> int | None:
    """Return which generation a file of this name stands for, if any."""
    match = _GENERATION.fullmatch(name)
    return None if match is None else int(match[1])


def is_plain(name: str) -> bool:
    """Whether a name that a file gives is that of another file beside it, and of none anywhere else."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def is_reserved(name: str) -> bool:
    """Whether a tensor or value of this name is ours, not the user's."""
    return name.partition(".")[0] in RESERVED

"""``share.py save|load FOLDER``: ranks of one node that read a checkpoint of many blocks together."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tlaunch.checkpoint import resharding, restoring
from tlaunch.checkpoint.catalog import find, manifest_of
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.manifest import BLOCK
from tlaunch.checkpoint.reading import Comparer
from tlaunch.checkpoint.sharing import Cuts, Range

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
WITHIN = 30.0
ROWS = 1200
"""Neither shards of two ranks nor of three end where blocks do."""

compared: list[Range] = []


class Noting(Comparer):
    """Notes what is read first."""

    def compare(self, blocks: Range, cuts: Cuts) -> dict[Range, int]:
        compared.append(blocks)
        return super().compare(blocks, cuts)


def state(*, empty: bool) -> dict[str, torch.Tensor]:
    """Make three tensors, sharded in rows, in columns, and not at all."""
    mesh = init_device_mesh("cpu", (WORLD,))
    placements = {"rows": Shard(0), "columns": Shard(1), "all": Replicate()}
    numbers = torch.zeros(ROWS, 700) if empty else torch.arange(ROWS * 700.0).view(ROWS, 700)
    return {name: distribute_tensor(numbers + 1, mesh, [place]) for name, place in placements.items()}


def check(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Compare this rank's shards."""
    for name, tensor in found.items():
        assert torch.equal(tensor.to_local(), right[name].to_local()), name  # type: ignore[attr-defined]


def flip(folder: Path, byte: int) -> None:
    """Change a bit of the last shard, as one rank for all."""
    dist.barrier()
    if RANK == 0:
        shard = max(folder.glob("step-*/*.safetensors"))
        data = bytearray(shard.read_bytes())
        data[byte] ^= 1
        shard.write_bytes(data)
    dist.barrier()


def load(folder: Path, checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load it when it is whole, with more to tell than may be told, and when it is damaged before and meanwhile."""
    files = LocalFiles(folder)
    address = find(files)
    assert address is not None
    sizes = [file.size for file in manifest_of(files, address).files]
    blocks = {(file, begin) for file, size in enumerate(sizes) for begin in range(0, size, BLOCK)}
    right, empty = state(empty=False), state(empty=True)
    monkeypatch.setattr("tlaunch.checkpoint.reading.Comparer", Noting)

    def read_by_all() -> list[tuple[int, int]]:
        mine = [(one.file, begin) for one in compared for begin in range(one.begin, one.end, BLOCK)]
        compared.clear()
        told: list[list[tuple[int, int]]] = [[]] * WORLD
        dist.all_gather_object(told, mine)
        return [block for one in told for block in one]

    found = state(empty=True)
    assert checkpointer.restore(found) == 1
    check(found, right)
    assert sorted(read_by_all()) == sorted(blocks), "all that is wanted, each block by one rank"

    found = state(empty=True)
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_TOLD", 100)
        assert checkpointer.restore(found) == 1
    check(found, right)
    read = read_by_all()
    assert set(read) == blocks
    assert len(read) > len(blocks), "each rank looks at all that it wants"

    found = state(empty=True)
    for byte in (3, BLOCK + 5, sizes[-1] - 1):
        flip(folder, byte)
        with pytest.raises(Damaged, match=r"rank-00001\.safetensors: bytes \d+ to \d+ have changed"):
            checkpointer.restore(found)
        flip(folder, byte)
    check(found, empty)

    compare = cast("Any", resharding.compare)

    def compare_and_flip(*args: object, **more: object) -> object:
        sums = compare(*args, **more)
        flip(folder, BLOCK + 5)
        return sums

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "compare", compare_and_flip)
        with pytest.raises(Damaged, match=r"have changed: .*; the state is partly loaded now"):
            checkpointer.restore(found)
    flip(folder, BLOCK + 5)
    assert checkpointer.restore(found) == 1
    check(found, right)


dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=RANK, world_size=WORLD)
with Checkpointer(sys.argv[2]) as checkpointer:
    if sys.argv[1] == "save":
        assert checkpointer.save(1, state(empty=False)).result(WITHIN)
    else:
        with pytest.MonkeyPatch.context() as monkeypatch:
            load(Path(sys.argv[2]), checkpointer, monkeypatch)
dist.destroy_process_group()

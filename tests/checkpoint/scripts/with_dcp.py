"""``with_dcp.py WHAT FOLDER``: save and load with ``torch.distributed.checkpoint``, across worlds and with our own."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tlaunch.checkpoint import Checkpointer, Unusable
from tlaunch.checkpoint.dcp import Reader, Writer

WHOLE = torch.arange(77.0).view(11, 7)


def state(value: float, *, other: bool) -> dict[str, Any]:
    """Return a nested state whose tensors are whole multiples; ``other`` shards it the other way round."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows, columns = [Shard(0)], [Shard(1)]
    return {
        "model": {
            "w": distribute_tensor(WHOLE * value, mesh, columns if other else rows),
            "v": distribute_tensor(WHOLE * value * 2, mesh, [Replicate()] if other else columns),
            "plain": WHOLE * value * 3,
        },
        "optimizer": {"param_groups": [{"lr": 0.5 * value, "betas": (0.9, value)}]},
        "step": int(value),
    }


def check(found: dict[str, Any]) -> None:
    """Compare with what ``state(1)`` is."""
    for name, factor in (("w", 1), ("v", 2), ("plain", 3)):
        tensor = found["model"][name]
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        torch.testing.assert_close(whole, WHOLE * factor, rtol=0, atol=0)
    assert found["optimizer"]["param_groups"] == [{"lr": 0.5, "betas": (0.9, 1.0)}]
    assert found["step"] == 1


def main() -> None:
    """Do what is asked for."""
    what, folder = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=world)
    zeros = state(0.0, other=True)
    if what == "save":
        save(state(1.0, other=False), storage_writer=Writer(folder, step=3))
        future = async_save(state(1.0, other=False), storage_writer=Writer(folder, step=4))
        future.result()  # type: ignore[union-attr]
    elif what == "load":
        load(zeros, storage_reader=Reader(folder))
        check(zeros)
    elif what == "own":
        with Checkpointer(folder) as checkpointer:
            flat = {name: zeros[name] for name in ("model", "step")}
            assert checkpointer.restore(flat, strict=False) == 4
            check({**state(1.0, other=False), **flat})
            assert checkpointer.save(9, state(1.0, other=False)).result(60)
    elif what == "nothing":
        with pytest.raises((Unusable, CheckpointException), match="there is no checkpoint"):
            load(zeros, storage_reader=Reader(folder))
    dist.destroy_process_group()


main()

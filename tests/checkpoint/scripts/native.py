"""``native.py save|load FOLDER``: torch's own format, written by ``dcp.save``, read by ``tlaunch.checkpoint.load``."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.checkpoint.sharded import LEARNING_RATE, build, check, expected, fill, tensors
from tlaunch.checkpoint import load


def main() -> None:
    """Save, or load and compare."""
    what, folder = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=world)
    model, optimizer = build("fsdp")
    columns = distribute_tensor(torch.zeros(6, 8), init_device_mesh("cpu", (world,)), [Shard(1)])
    own = tensors(model, optimizer) | {"columns": columns}
    across = expected("across", torch.Size((4, 3))).t()
    if what == "save":
        fill(own)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state, "columns": columns, "across": across, "step": 7}
        save(state, checkpoint_id=folder)
    else:
        optimizer.param_groups[0]["lr"] = 0.1
        given: dict[str, Any] = {"model": model, "optimizer": optimizer, "columns": columns, "step": 0}
        given["across"] = torch.zeros(3, 4)
        assert load(folder, given) is None
        check(own)
        assert torch.equal(given["across"], across)
        assert given["step"] == 7
        assert optimizer.param_groups[0]["lr"] == LEARNING_RATE
    dist.destroy_process_group()


main()

"""Trains or checks a small model, sharded as asked for: ``reshard.py save|check FOLDER ddp|fsdp|hsdp|tp``."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from tests.checkpoint.sharded import LEARNING_RATE, build, check, fill, tensors
from tlaunch.checkpoint.checkpointer import Checkpointer


def main() -> None:
    """Save, or restore and compare."""
    what, folder, kind = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=world)
    model, optimizer = build(kind)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "epoch": 0, "own": torch.zeros(3)}
    with Checkpointer(folder) as checkpointer:
        if what == "save":
            fill(tensors(model, optimizer))
            state["own"] += 3
            state["epoch"] = 7
            assert checkpointer.save(20, state).result(60)
        else:
            optimizer.param_groups[0]["lr"] = 0.1
            assert checkpointer.restore(state) == 20
            check(tensors(model, optimizer))
            assert state["epoch"] == 7
            assert state["own"].tolist() == [3.0] * 3
            assert optimizer.param_groups[0]["lr"] == LEARNING_RATE
    dist.destroy_process_group()


main()

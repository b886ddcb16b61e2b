"""Trains or checks a small model, sharded as asked for: ``reshard.py save|check FOLDER ddp|fsdp|hsdp|tp``.

Every parameter and optimizer state has values that follow from its name and position alone, so that whoever restores
them under another sharding knows what each element must be.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tlaunch.checkpoint.checkpointer import Checkpointer


def expected(name: str, shape: torch.Size) -> torch.Tensor:
    """Return what the tensor of this name holds."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) + sum(name.encode())).view(shape)


def build(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make the model, shard it, and make one step, so that the optimizer has states."""
    torch.manual_seed(dist.get_rank())
    model: nn.Module = nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 5), nn.BatchNorm1d(5))
    world = dist.get_world_size()
    if kind == "ddp":
        model = DistributedDataParallel(model)
    elif kind == "tp":
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(model, mesh=mesh["dp"])
    else:
        shape, names = ((world,), ("dp",)) if kind == "fsdp" else ((2, world // 2), ("replica", "shard"))
        fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.randn(4, 7)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return all that has values of its own, by the name of its parameter."""
    found: dict[str, torch.Tensor] = {}
    for full_name, parameter in model.named_parameters():
        name = full_name.removeprefix("module.")
        found[name] = parameter.data
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{name}.{key}"] = optimizer.state[parameter][key]
    found.update({name.removeprefix("module."): buffer for name, buffer in model.named_buffers() if buffer.dim()})
    return found


def main() -> None:
    """Save, or restore and compare."""
    what, folder, kind = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=world)
    model, optimizer = build(kind)
    state: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "epoch": 7 if what == "save" else 0,
        "own": torch.zeros(3),
    }
    with Checkpointer(folder) as checkpointer:
        if what == "save":
            for name, tensor in tensors(model, optimizer).items():
                whole = expected(name, tensor.shape)
                if isinstance(tensor, DTensor):
                    (chunk,) = tensor.__create_chunk_list__()
                    box = (slice(a, a + b) for a, b in zip(chunk.offsets, chunk.sizes, strict=True))
                    tensor.to_local().copy_(whole[tuple(box)])
                    torch.testing.assert_close(tensor.full_tensor(), whole, rtol=0, atol=0)
                else:
                    tensor.copy_(whole)
            state["own"] += 3
            state["epoch"] = 7
            assert checkpointer.save(20, state).result(60)
        else:
            optimizer.param_groups[0]["lr"] = 0.1
            assert checkpointer.restore(state) == 20
            for name, tensor in tensors(model, optimizer).items():
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                torch.testing.assert_close(whole, expected(name, tensor.shape), rtol=0, atol=0)
            assert state["epoch"] == 7
            assert state["own"].tolist() == [3.0] * 3
            assert optimizer.param_groups[0]["lr"] == 0.5
    dist.destroy_process_group()


main()

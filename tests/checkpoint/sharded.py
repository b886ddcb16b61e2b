"""A small model under AdamW, sharded as asked for, on the ranks of a process group.

Every parameter and optimizer state has values that follow from its name and position alone, so that whoever loads them
under another sharding knows what each element must be.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

LEARNING_RATE = 0.5


def expected(name: str, shape: torch.Size) -> torch.Tensor:
    """Return what the tensor of this name holds."""
    return (torch.arange(shape.numel(), dtype=torch.float32) + sum(name.encode())).view(shape)


def build(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make the model, shard it as ``ddp``, ``fsdp``, ``hsdp`` or ``tp``; and one step, so that it has states."""
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model(torch.randn(4, 7)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return all that has values of its own, by its name in a checkpoint."""
    found: dict[str, torch.Tensor] = {}
    for full_name, parameter in model.named_parameters():
        name = full_name.removeprefix("module.")
        found[f"model.{name}"] = parameter.data
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"optimizer.state.{name}.{key}"] = optimizer.state[parameter][key]
    buffers = ((name.removeprefix("module."), buffer) for name, buffer in model.named_buffers())
    return found | {f"model.{name}": buffer for name, buffer in buffers if buffer.dim()}


def fill(found: Mapping[str, torch.Tensor]) -> None:
    """Give each tensor what its name asks for."""
    for name, tensor in found.items():
        whole = expected(name, tensor.shape)
        if isinstance(tensor, DTensor):
            (chunk,) = tensor.__create_chunk_list__()
            box = (slice(a, a + b) for a, b in zip(chunk.offsets, chunk.sizes, strict=True))
            tensor.to_local().copy_(whole[tuple(box)])
        else:
            tensor.copy_(whole)
    check(found)


def check(found: Mapping[str, torch.Tensor]) -> None:
    """Look whether each tensor has what its name asks for."""
    for name, tensor in found.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        torch.testing.assert_close(whole, expected(name, tensor.shape), rtol=0, atol=0)

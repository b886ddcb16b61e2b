"""``native.py save|load FOLDER``: torch's own format, written by ``dcp.save``, read by ``tlaunch.checkpoint.load``.

Every element follows from its tensor's name and its position, so that whoever reads knows what it must be.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tlaunch.checkpoint import load


def expected(name: str, shape: torch.Size) -> torch.Tensor:
    """Return what the tensor of this name holds."""
    return (torch.arange(shape.numel(), dtype=torch.float32) + sum(name.encode())).view(shape)


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make a sharded model, and one step, so that its optimizer has states."""
    model = nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 5))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.randn(4, 7)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return all that has values of its own, by its name in a checkpoint."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        found[f"model.{name}"] = parameter.data
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"optimizer.state.{name}.{key}"] = optimizer.state[parameter][key]
    return found


def main() -> None:
    """Save, or load and compare."""
    what, folder = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=world)
    model, optimizer = build()
    columns = distribute_tensor(torch.zeros(6, 8), init_device_mesh("cpu", (world,)), [Shard(1)])
    own = tensors(model, optimizer) | {"columns": columns}
    if what == "save":
        for name, tensor in own.items():
            assert isinstance(tensor, DTensor)
            tensor.copy_(distribute_tensor(expected(name, tensor.shape), tensor.device_mesh, tensor.placements))
        model_state, optimizer_state = get_state_dict(model, optimizer)
        across = expected("across", torch.Size((4, 3))).t()
        state = {"model": model_state, "optimizer": optimizer_state, "columns": columns, "across": across, "step": 7}
        save(state, checkpoint_id=folder)
    else:
        optimizer.param_groups[0]["lr"] = 0.1
        given: dict[str, Any] = {"model": model, "optimizer": optimizer, "columns": columns, "step": 0}
        given["across"] = torch.zeros(3, 4)
        assert load(folder, given) is None
        for name, tensor in own.items():
            assert isinstance(tensor, DTensor)
            torch.testing.assert_close(tensor.full_tensor(), expected(name, tensor.shape), rtol=0, atol=0)
        assert torch.equal(given["across"], expected("across", torch.Size((4, 3))).t())
        assert given["step"] == 7
        assert optimizer.param_groups[0]["lr"] == 0.5
    dist.destroy_process_group()


main()

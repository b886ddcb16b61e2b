"""Checkpoints under any launcher: train a little, be killed, and go on, with any number of ranks.

torchrun --nproc-per-node 3 examples/checkpoint/standalone.py /tmp/run7 --steps 20
tlaunch --nodes 2 --gpus-per-node 1 examples/checkpoint/standalone.py /tmp/run7 --steps 40

Random data stands for a data set; it depends on the step alone.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tlaunch.checkpoint import Checkpointer, Keep


def main() -> None:
    """Train to the given step from wherever the last run has come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="where checkpoints are kept: a folder or a URL")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between two checkpoints")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 32))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    with Checkpointer(options.path, every=options.every, keep=Keep(last=2)) as checkpointer:
        state = {"model": model, "optimizer": optimizer}
        start = checkpointer.restore(state) or 0
        if dist.get_rank() == 0:
            print(f"{dist.get_world_size()} ranks go on after step {start}")
        loss = torch.tensor(float("nan"))
        for step in range(start + 1, options.steps + 1):
            data = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
            loss = (model(data) - data).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            checkpointer.save(step, state)
    if dist.get_rank() == 0:
        print(f"step {options.steps}: loss {loss.item():.4f}" if start < options.steps else "nothing to do")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

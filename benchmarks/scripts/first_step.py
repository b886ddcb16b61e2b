"""A small DDP step on every rank; rank 0 then writes one byte to the file that it is given, and all wait."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train for one step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(8, 64)).sum().backward()
    optimizer.step()
    dist.barrier()
    if dist.get_rank() == 0:
        with Path(sys.argv[1]).open("wb", buffering=0) as ready:
            ready.write(b"1")
    time.sleep(600)


if __name__ == "__main__":
    main()

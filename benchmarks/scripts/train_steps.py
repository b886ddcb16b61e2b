"""A small DDP training with a checkpoint of its own, as for any launcher; it says when it has come how far.

Usage: train_steps.py FOLDER

FOLDER/checkpoint.pt  model, optimizer and step, written by rank 0 after each step
FOLDER/marks          a fifo that takes one JSON line for each mark

``what`` a mark is for is ``script`` (the first line of this file), ``torch`` (imported), ``group`` (process group
formed), ``ddp`` (model wrapped), or ``step``; ``at`` is the machine's monotonic clock in seconds; ``place`` is the
slot (tlaunch) or the node (others).
"""

import time

STARTED = time.monotonic()

import json  # noqa: E402 - the clock comes first
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

STEP_SECONDS = 0.01
"""What stands in for the work of a step."""


def main() -> None:
    """Train until killed."""
    folder = Path(sys.argv[1])
    marks = os.open(folder / "marks", os.O_WRONLY | os.O_CLOEXEC)
    place = os.environ.get("TLAUNCH_SLOT") or os.environ.get("BENCHMARK_NODE", "")
    who = {"pid": os.getpid(), "rank": int(os.environ["RANK"]), "world": int(os.environ["WORLD_SIZE"]), "place": place}

    def mark(what: str, at: float, step: int = 0) -> None:
        os.write(marks, json.dumps({**who, "what": what, "at": at, "step": step}).encode() + b"\n")

    mark("script", STARTED)
    mark("torch", time.monotonic())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mark("group", time.monotonic())
    model = DistributedDataParallel(torch.nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mark("ddp", time.monotonic())
    checkpoint, step = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    while True:
        step += 1
        optimizer.zero_grad()
        model(torch.ones(8, 64)).square().mean().backward()
        optimizer.step()
        if dist.get_rank() == 0:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(saved, folder / "checkpoint.draft")
            (folder / "checkpoint.draft").replace(checkpoint)
        mark("step", time.monotonic(), step)
        time.sleep(STEP_SECONDS)


if __name__ == "__main__":
    main()

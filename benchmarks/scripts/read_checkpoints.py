"""Saves a sharded state on some ranks, or reads it on others; one JSON line for each measurement.

Usage: read_checkpoints.py save|load FOLDER BYTES ROUNDS, with RANK and WORLD_SIZE set

The model is sharded by FSDP2 when there are several ranks. Each round reads the checkpoint once in each way, in random
order, first with none of it in the page cache, then with all of it there. ``raw`` reads the bytes of the files, each
rank as many, into memory of that size which is used again and again, as are the parameters that the others fill.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from measuring import Report
from tlaunch.checkpoint import Checkpointer

WIDTH = 1536
BYTES_EACH = 12
AT_ONCE = 16 << 20


def training(size: int) -> dict[str, Any]:
    """Make a model and its optimizer, whose states are there."""
    layers = max(1, round(size / BYTES_EACH / (WIDTH * WIDTH + WIDTH)))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    if dist.get_world_size() > 1:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-5)}


def step(state: dict[str, Any]) -> None:
    """Make one step."""
    state["model"](torch.randn(1, WIDTH)).square().mean().backward()
    state["optimizer"].step()
    state["optimizer"].zero_grad()


def files_of(folder: Path) -> list[Path]:
    """Return the files with tensors."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".distcp"))


def forget(folder: Path) -> None:
    """Take the files out of the page cache."""
    for path in files_of(folder):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def share(folder: Path, world: int) -> int:
    """Return how many bytes one rank reads at most."""
    return sum(path.stat().st_size // world + 1 for path in files_of(folder))


def raw(folder: Path, rank: int, world: int, out: memoryview) -> None:
    """Read this rank's part of all bytes, each to a place of its own in ``out``."""
    done = 0
    for path in files_of(folder):
        size = path.stat().st_size
        fd = os.open(path, os.O_RDONLY)
        at, end = size * rank // world, size * (rank + 1) // world
        while at < end:
            count = os.preadv(fd, [out[done : done + min(AT_ONCE, end - at)]], at)
            at, done = at + count, done + count
        os.close(fd)


def touch(folder: Path) -> None:
    """Bring all files into the page cache."""
    buffer = bytearray(AT_ONCE)
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def dcp_load(folder: Path, state: dict[str, Any]) -> None:
    """Load with torch's own checkpoints."""
    model, optimizer = get_state_dict(state["model"], state["optimizer"])
    found: dict[str, Any] = {"model": model, "optimizer": optimizer}
    load(found, storage_reader=FileSystemReader(folder))
    set_state_dict(
        state["model"], state["optimizer"], model_state_dict=found["model"], optim_state_dict=found["optimizer"]
    )


def seconds(do: Callable[[], object]) -> float:
    """Do something on all ranks; returns when the last has done it."""
    dist.barrier()
    start = time.perf_counter()
    do()
    dist.barrier()
    return time.perf_counter() - start


def measure(folder: Path, state: dict[str, Any], rounds: int) -> None:
    """Read in each way."""
    rank, world = dist.get_rank(), dist.get_world_size()
    report = Report(folder / f"report-{world}.jsonl") if rank == 0 else None
    ours, theirs = folder / "tlaunch", folder / "dcp"
    order = random.Random(0)
    out = memoryview(bytearray(share(ours, world)))
    out[::4096] = bytes(len(out[::4096]))  # so that it is there
    with Checkpointer(ours) as checkpointer:
        ways: dict[str, tuple[Path, Callable[[], object]]] = {
            "raw": (ours, lambda: raw(ours, rank, world, out)),
            "tlaunch": (ours, lambda: checkpointer.restore(state)),
            "dcp": (theirs, lambda: dcp_load(theirs, state)),
        }
        forget(ours)
        first = seconds(ways["tlaunch"][1])
        if report is not None:
            report(f"2 to {world} ranks, first restore", "tlaunch", first, "s")
        step(state)
        for name in ways:
            seconds(ways[name][1])  # each is slower the first time
        for _ in range(rounds):
            for cache in ("cold", "cached"):
                took = {}
                for name in order.sample(sorted(ways), len(ways)):
                    place, do = ways[name]
                    if cache == "cold" and rank == 0:
                        forget(place)
                    elif cache == "cached" and rank == 0:
                        touch(place)
                    took[name] = seconds(do)
                if report is not None:
                    for name, value in took.items():
                        report(f"2 to {world} ranks, {cache}", name, value, "s")
                        report(f"2 to {world} ranks, {cache}: raw / it", name, took["raw"] / value, "")


def main() -> None:
    """Save, or read and measure."""
    what, folder, size, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{what}-{world}", rank=rank, world_size=world)
    state = training(size)
    if what == "load":
        measure(folder, state, rounds)
    else:
        step(state)
        with Checkpointer(folder / "tlaunch") as checkpointer:
            assert checkpointer.save(1, state).result(300.0)
        model, optimizer = get_state_dict(state["model"], state["optimizer"])
        save({"model": model, "optimizer": optimizer}, storage_writer=FileSystemWriter(folder / "dcp"))
    dist.barrier()


if __name__ == "__main__":
    main()
    os._exit(0)  # torch's threads do not always end well

"""Flips one bit at a time in checkpoints, and looks who notices; one JSON line for each flip.

Usage: flip_bits.py FOLDER FLIPS

Bits are drawn at random from all bytes of all files. ``found`` is 1 where loading failed with an error, 0 where it went
well; ``wrong`` is 1 where it went well and other numbers came out.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from measuring import Report
from tlaunch.checkpoint import Checkpointer

State = dict[str, torch.Tensor]
ELEMENTS = 1 << 18


def numbers() -> State:
    """Make a state of 2 MB."""
    torch.manual_seed(0)
    return {"a": torch.randn(ELEMENTS), "b": torch.randn(ELEMENTS).view(512, -1)}


def blank() -> State:
    """Make room for it."""
    return {name: torch.zeros_like(tensor) for name, tensor in numbers().items()}


def from_dcp(folder: Path) -> State:
    """Load with torch's own checkpoints."""
    state = blank()
    load(dict(state), storage_reader=FileSystemReader(folder))
    return state


def sweep(name: str, folder: Path, read: Callable[[], State], flips: int, report: Report) -> None:
    """Flip bits, and read each time."""
    right = numbers()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    ends = list(itertools.accumulate(path.stat().st_size for path in files))
    draw = random.Random(0)
    for _ in range(flips):
        byte, bit = draw.randrange(ends[-1]), draw.randrange(8)
        index = next(index for index, end in enumerate(ends) if byte < end)
        at = byte - (ends[index - 1] if index else 0)
        flip(files[index], at, bit)
        try:
            found = read()
        except (Exception, CheckpointException):  # noqa: BLE001 - however it says so; the latter is no Exception
            report("found", name, 1, "")
            report("wrong", name, 0, "")
        else:
            report("found", name, 0, "")
            report("wrong", name, float(any(not torch.equal(found[key], right[key]) for key in right)), "")
        flip(files[index], at, bit)


def flip(path: Path, at: int, bit: int) -> None:
    """Turn one bit over."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))


def main() -> None:
    """Save in each way, and sweep."""
    folder, flips = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-bits", rank=0, world_size=1)
    report = Report(folder / "report-bits.jsonl")
    ours = folder / "bits-tlaunch"
    with Checkpointer(ours) as checkpointer:
        assert checkpointer.save(1, numbers()).result(60.0)

        def restored() -> State:
            state = blank()
            checkpointer.restore(state)
            return state

        (saved,) = ours.glob("step-*")
        sweep("tlaunch", saved, restored, flips, report)
    theirs = folder / "bits-dcp"
    save(dict(numbers()), storage_writer=FileSystemWriter(theirs))
    sweep("dcp", theirs, lambda: from_dcp(theirs), flips, report)
    plain = folder / "bits-torch"
    plain.mkdir()
    torch.save(numbers(), plain / "state.pt")
    sweep("torch.save", plain, lambda: torch.load(plain / "state.pt", weights_only=True), flips, report)


if __name__ == "__main__":
    main()
    os._exit(0)  # torch's threads do not always end well

"""An unmodified torchrun-style script: it sums ranks step by step, resumes, and misbehaves on request.

Usage: steps.py FOLDER [--steps N] [--timeout SECONDS] [--hide]

--hide: when a peer is lost, say so in words of its own, a while later, as scripts do that clean up

FOLDER/checkpoint    the last complete step, written by rank 0
FOLDER/trace-<rank>  one JSON line for each completed step
FOLDER/trouble       JSON {"rank": r, "how": "raise" | "exit" | ...}: that rank does it, once; see
                       ``trouble``
FOLDER/always        the same, but on every try; with "slot" in place of "rank": whoever runs there
FOLDER/finish        end after the present step
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--hide", action="store_true")
    parser.add_argument("--timeout", type=float, default=1800.0)
    given = parser.parse_args()
    try:
        train(given)
    except RuntimeError:
        if not given.hide:
            raise
        time.sleep(0.1)
        raise ValueError("this step was no good") from None


def train(given: argparse.Namespace) -> None:
    folder: Path = given.folder
    dist.init_process_group("gloo", timeout=timedelta(seconds=given.timeout))
    rank, world = dist.get_rank(), dist.get_world_size()
    checkpoint = folder / "checkpoint"
    start = torch.zeros(1, dtype=torch.int64)
    if rank == 0 and checkpoint.exists():
        start[0] = int(checkpoint.read_text())
    dist.broadcast(start, 0)
    with (folder / f"trace-{rank}").open("a", buffering=1) as trace:
        for step in range(int(start) + 1, given.steps + 1):
            trouble(folder, rank)
            total = torch.tensor([rank, int((folder / "finish").exists()) if rank == 0 else 0])
            dist.all_reduce(total)
            assert int(total[0]) == world * (world - 1) // 2
            if rank == 0:
                draft = folder / "checkpoint.draft"
                draft.write_text(str(step))
                draft.replace(checkpoint)
            trace.write(json.dumps(entry(step, rank, world)) + "\n")
            if total[1]:
                break
            time.sleep(0.01)
    dist.destroy_process_group()


def entry(step: int, rank: int, world: int) -> dict[str, object]:
    names = (
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "TORCHELASTIC_RESTART_COUNT",
        "TLAUNCH_SLOT",
        "MASTER_PORT",
    )
    found = {name: os.environ[name] for name in names}
    return {"step": step, "rank": rank, "world": world, "pid": os.getpid(), "time": time.time(), **found}


def trouble(folder: Path, rank: int) -> None:
    slot = os.environ["TLAUNCH_SLOT"]
    for name in ("trouble", "always"):
        try:
            wanted = json.loads((folder / name).read_text())
        except FileNotFoundError:
            continue
        if wanted.get("rank", rank) != rank or wanted.get("slot", slot) != slot:
            continue
        if name == "trouble":
            (folder / name).unlink()
        misbehave(wanted["how"], folder)


def misbehave(how: str, folder: Path) -> None:
    match how:
        case "raise":
            raise ValueError("the loss is not a number")
        case "exit":
            sys.exit(7)
        case "leave":
            sys.exit(0)
        case "segv" | "kill":
            os.kill(os.getpid(), {"segv": signal.SIGSEGV, "kill": signal.SIGKILL}[how])
        case "hang" | "lock":
            hang(hold_interpreter=how == "lock")
        case "family":
            start_family(folder)
            raise RuntimeError("it leaves them behind")
        case "flood":
            flood(1 << 30)
        case "print":
            flood(4 << 20)
        case "hog":
            hoard()


def hang(*, hold_interpreter: bool) -> None:
    """Wait for ever, in C with the interpreter's lock held or in Python."""
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    while hold_interpreter:
        libc.pthread_mutex_lock(mutex)
    threading.Event().wait()


def flood(size: int) -> None:
    """Print so many bytes, in lines."""
    line = b"x" * 127 + b"\n"
    block = line * (1 << 13)
    for _ in range(size // len(block)):
        sys.stdout.buffer.write(block)
    sys.stdout.flush()


def hoard() -> None:
    memory = []
    while True:
        memory.append(b"x" * (1 << 26))


def start_family(folder: Path) -> None:
    """Start a child, and a daemon: a session of its own, and its parent has ended."""
    child = subprocess.Popen(["sleep", "600"])
    inner = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=-3).pid)"
    daemon = subprocess.run([sys.executable, "-c", inner], stdout=subprocess.PIPE, text=True, check=True).stdout
    (folder / "family").write_text(json.dumps([child.pid, int(daemon)]))


if __name__ == "__main__":
    main()

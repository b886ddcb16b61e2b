"""Trains a model of a given size and saves it in several ways in turn; one JSON line for each measurement.

Usage: train_and_save.py FOLDER BYTES ROUNDS EVERY ARM...

Each round has one window of 2 x EVERY training steps for each arm, in random order, in which a save begins before every
EVERY-th step unless one is still being written; before and after it there are EVERY steps without saves. Then each arm
saves once while nothing is trained, beside a plain write of as many bytes with ``fsync``. An arm that fails says why,
and is left out.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from checkpoint_arms import ARMS, Arm
from measuring import Report

WIDTH = 2048
TOKENS = 72
BYTES_EACH = 12
"""Of a parameter: itself and two moments, of four bytes each."""
CHUNK = 4 << 20


class Training:
    """A stack of linear layers under AdamW, on one thread."""

    def __init__(self, size: int) -> None:
        width = WIDTH if size >= 500_000_000 else 512
        layers = max(1, round(size / BYTES_EACH / (width * width + width)))
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.state: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        self._batch = torch.randn(TOKENS, width)
        self.steps = 0

    def step(self, arm: Arm | None = None) -> float:
        """Make one step. Returns the seconds that the optimizer had to wait for the arm."""
        self.optimizer.zero_grad()
        self.model(self._batch).square().mean().backward()
        start = time.perf_counter()
        if arm is not None:
            arm.before_step()
        waited = time.perf_counter() - start
        self.optimizer.step()
        self.steps += 1
        return waited


def window(training: Training, arm: Arm | None, every: int, steps: int) -> tuple[float, list[float]]:
    """Train for some steps. Returns seconds for a step, and how long each save has blocked."""
    blocked: list[float] = []
    start = time.perf_counter()
    since = every
    for _ in range(steps):
        before = time.perf_counter()
        begun = arm is not None and since >= every and arm.done()
        if arm is not None and begun:
            arm.save(training.steps + 1)
            since = 0
        took = time.perf_counter() - before
        waited = training.step(arm)
        since += 1
        if begun:
            blocked.append(took + waited)
    return (time.perf_counter() - start) / steps, blocked


def raw_write(path: Path, data: memoryview) -> float:
    """Write and sync; returns the seconds."""
    start = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for begin in range(0, len(data), CHUNK):
            os.write(fd, data[begin : begin + CHUNK])
        os.fsync(fd)
    finally:
        os.close(fd)
    took = time.perf_counter() - start
    path.unlink()
    return took


def first_saves(training: Training, folder: Path, names: list[str], report: Report) -> Iterator[tuple[str, Arm]]:
    """Make the arms and have each save once, which is slower than later; yields those that can."""
    for name in names:
        place = folder / name.replace(" ", "-").replace(",", "")
        place.mkdir()
        try:
            arm = ARMS[name](place, training.state)
            start = time.perf_counter()
            arm.save(training.steps + 1)
            arm.before_step()
            report("first save blocks", name, time.perf_counter() - start, "s")
            arm.wait()
            os.sync()
        except Exception as error:  # noqa: BLE001 - the reason is part of the result
            report.cannot(name, error)
        else:
            yield name, arm


def main() -> None:
    """Measure."""
    folder, size, rounds, every = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    training = Training(size)
    for _ in range(2):
        training.step()
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    report = Report(folder / "report.jsonl")
    arms = dict(first_saves(training, folder, sys.argv[5:], report))
    held = sum(t.numel() * 4 for t in training.model.parameters()) * BYTES_EACH // 4
    report("state", "", held / 1e9, "GB")
    window(training, None, every, every)  # the first is slower
    order = random.Random(0)
    before, _ = window(training, None, every, every)
    for _ in range(rounds):
        for name in order.sample(sorted(arms), len(arms)):
            arm = arms[name]
            training.steps += 1
            seconds, blocked = window(training, arm, every, 2 * every)
            arm.wait()
            os.sync()  # what one arm has left unsynced is not to disturb the next
            after, _ = window(training, None, every, every)
            report("step undisturbed", "", after, "s")
            report("step while saving", name, seconds, "s")
            # The machine may become faster or slower: what was measured in the middle is compared with both sides.
            report("throughput while saving", name, (before + after) / 2 / seconds, "")
            before = after
            report("saves in a window", name, len(blocked), "")
            for took in blocked:
                report("blocked", name, took * 1000, "ms")
    data = memoryview(bytearray(os.urandom(1 << 20) * (held >> 20)))
    for _ in range(rounds):
        for name in order.sample(sorted(arms), len(arms)):
            raw = raw_write(folder / "raw", data)
            training.steps += 1
            start = time.perf_counter()
            arms[name].save(training.steps)
            arms[name].wait()
            took = time.perf_counter() - start
            os.sync()
            report("raw write + fsync", "", raw, "s")
            report("durable write", name, took, "s")
            report("durable write / raw", name, raw / took, "")
    report("memory of the trainer", "", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB")
    for arm in arms.values():
        arm.close()


if __name__ == "__main__":
    main()
    for left in multiprocessing.active_children():
        left.kill()  # DLRover's saver has no other way to end, and would be in the way of the next one
    os._exit(0)  # torch's threads do not always end well

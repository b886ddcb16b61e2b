"""How long it takes until all ranks train again, after one was killed and after a node was lost.

    python benchmarks/recovery.py [--repeats N] [--systems "tlaunch;torchrun;..."] [--scenes worker,node] [--json FILE]

Each launcher runs the same small DDP script, which has a checkpoint of its own (``benchmarks/scripts/train_steps.py``).
Measured is from SIGKILL until every rank has completed a step again. ``worker``: one node of 2 ranks, rank 1 is killed.
``node``: 3 nodes of 2 slots of which one is spare; the agent and the ranks of one are killed. The arms take turns, so
that a slow moment of the machine hits all of them. What has not recovered after 60 s counts as never.

The phases are cumulative, in seconds from the kill, for the last rank that comes to it: ``noticed`` and ``decided``
where the launcher shows them, then what the script itself sees: its first line, torch imported, process group formed,
model wrapped by DDP, first step completed.

The peers live in an environment of their own that is made at first use: see ``benchmarks/peers.py``.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from measuring import BIN, SCRIPTS, Family, Mark, Marks, Sample, cell, write_json
from peers import Missing, peers_bin
from systems import SYSTEMS, Job, System

SCRIPT = SCRIPTS / "train_steps.py"
NEVER = 60.0
START_SECONDS = 90.0
STEPS_BEFORE = 10
SLOTS = 2
PHASES = ("noticed", "decided", "script", "torch", "group", "ddp", "step")
SCENES = {"worker": 1, "node": 3}
"""How many nodes."""


class NeverTrained(Exception):
    """A job did not come to its first steps."""


def whole_step(marks: Sequence[Mark]) -> tuple[int, list[Mark]] | None:
    """Return the first step that all ranks of a world have completed, and their marks."""
    by_step: dict[tuple[int, int], dict[int, Mark]] = defaultdict(dict)
    for mark in marks:
        if mark.what == "step":
            ranks = by_step[mark.world, mark.step]
            ranks[mark.rank] = mark
            if len(ranks) == mark.world:
                return mark.step, list(ranks.values())
    return None


def train(marks: Marks, job: Job) -> list[Mark]:
    """Wait until the job is well under way; returns the marks of a step that all have completed."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        marks.news(0.5)
        found = whole_step([mark for mark in marks.all if mark.step >= STEPS_BEFORE])
        if found is not None:
            return found[1]
    raise NeverTrained(f"no step of all ranks within {START_SECONDS:g} s; last said: {last_words(job)}")


def last_words(job: Job) -> str:
    """Return the last lines that the launchers have printed."""
    return " | ".join(line for _, line in job.family.said[-3:]) or "nothing"


def recovered(marks: Marks, killed: float) -> list[Mark] | None:
    """Wait until all ranks have completed a step in processes that began after the kill; returns their marks."""
    deadline = killed + NEVER
    while time.monotonic() < deadline:
        marks.news(deadline - time.monotonic())
        fresh = {mark.pid for mark in marks.all if mark.what == "script" and mark.at > killed}
        found = whole_step([mark for mark in marks.all if mark.pid in fresh])
        if found is not None:
            return found[1]
    return None


def measure(system: System, scene: str, bin_folder: Path) -> list[Sample]:
    """Measure one arm once, with another job where in one nothing can be lost that the arm is about."""
    while not (samples := list(attempt(system, scene, bin_folder))):
        pass
    return samples


def attempt(system: System, scene: str, bin_folder: Path) -> Iterator[Sample]:
    """Start a job, do the harm, and measure. Yields nothing where tlaunch's controller is not on a node with ranks."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    job = Job(Family(), folder, (str(SCRIPT), str(folder)), SCENES[scene], SLOTS)
    try:
        with Marks(folder) as marks:
            system.start(job, bin_folder)
            before = train(marks, job)
            killed = strike(system, job, before, scene)
            if killed is None:
                return
            after = recovered(marks, killed)
            took = max(mark.at for mark in after) - killed if after else None
            yield Sample(f"{scene}: step", system.name, took, "s")
            if after is None:
                print(f"{system.name} has not recovered; last said: {last_words(job)}", file=sys.stderr)
                return
            yield Sample(f"{scene}: ranks", system.name, len(after), f"of {len(before)}")
            yield Sample(f"{scene}: ranks kept", system.name, float(kept_all(before, after)), "")
            for phase, at in {**system.phases(job, killed), **seen_by_script(marks, after)}.items():
                yield Sample(f"{scene}: {phase}", system.name, at - killed, "s")
    finally:
        job.family.close()
        shutil.rmtree(folder)


def strike(system: System, job: Job, before: Sequence[Mark], scene: str) -> float | None:
    """Kill a rank or a node; returns when, or ``None`` where no node is to be had that the arm is about."""
    if scene == "worker":
        victim = next(mark.pid for mark in before if mark.rank == 1)
        at = time.monotonic()
        psutil.Process(victim).kill()
        return at
    nodes = sorted({node_of(mark) for mark in before})
    lost = next((node for node in nodes if system.may_lose(job, node)), None)
    if lost is None:
        return None
    return system.kill_node(job, lost, [mark.pid for mark in before if node_of(mark) == lost])


def node_of(mark: Mark) -> str:
    """Return the node that a rank runs on."""
    return mark.place.partition("/")[0]


def kept_all(before: Sequence[Mark], after: Sequence[Mark]) -> bool:
    """Whether every rank that is still where it was, or on a node that was not lost, has its old number."""
    old, new = ({mark.rank: node_of(mark) for mark in marks} for marks in (before, after))
    stayed = set(old.values()) & set(new.values())
    return all(new.get(rank) == node for rank, node in old.items() if node in stayed)


def seen_by_script(marks: Marks, after: Sequence[Mark]) -> dict[str, float]:
    """Return when the last rank of the new world came to each mark before its first step."""
    pids = {mark.pid for mark in after}
    phases = [phase for phase in PHASES if phase not in ("noticed", "decided", "step")]
    return {phase: max(m.at for m in marks.all if m.what == phase and m.pid in pids) for phase in phases}


def show(samples: Sequence[Sample], systems: Iterable[str], scenes: Iterable[str]) -> None:
    """Print a table for each scene."""
    by: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        by[sample.what, sample.who].append(sample)
    for scene in scenes:
        title = {"worker": "one rank of two killed", "node": "one node of three lost, one is spare"}[scene]
        columns = (*PHASES, "range", "ranks", "numbers kept")
        table = Table("", *columns, title=f"{title}: seconds from the kill, medians")
        for who in systems:
            found = {phase: by[f"{scene}: {phase}", who] for phase in PHASES}
            if found["step"]:
                ranks = sorted({f"{s.value:.0f} {s.unit}" for s in by[f"{scene}: ranks", who] if s.value is not None})
                numbers = [bool(s.value) for s in by[f"{scene}: ranks kept", who]]
                medians = (middle(samples) for samples in found.values())
                kept = f"{sum(numbers)} of {len(numbers)}"
                table.add_row(who, *medians, cell(found["step"]).partition(" ")[2], ", ".join(ranks), kept)
        Console(width=max(140, Console().width)).print(table)


def middle(samples: Sequence[Sample]) -> str:
    """Write a median."""
    return cell(samples).partition(" ")[0].removesuffix(":")


def arms(systems: Sequence[System], scenes: Sequence[str]) -> list[tuple[str, System]]:
    """Return what is measured in each round. Where no node is lost, it is all the same which one would be."""
    return [(s, system) for s, system in itertools.product(scenes, systems) if s == "node" or "node" not in system.name]


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure how long it takes until all ranks train again.")
    names = [system.name for system in SYSTEMS]
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--systems", default=";".join(names), help="which launchers, separated by semicolons")
    parser.add_argument("--scenes", default=",".join(SCENES), help="worker, node, or both")
    parser.add_argument("--json", type=Path, help="also write every single measurement to this file")
    given = parser.parse_args()
    given.systems = [system for system in SYSTEMS if system.name in given.systems.split(";")]
    given.scenes = [scene for scene in SCENES if scene in given.scenes.split(",")]
    if not given.systems or not given.scenes or given.repeats < 1:
        parser.error(f"nothing to measure; systems: {'; '.join(names)}; scenes: {', '.join(SCENES)}")
    return given


def main() -> None:
    """Measure and print."""
    given = options()
    absent: dict[str, str] = {}
    folder = BIN
    if any(system.peer for system in given.systems):
        try:
            folder = peers_bin()
        except Missing as error:
            absent = {system.name: str(error) for system in given.systems if system.peer}
    present = [system for system in given.systems if system.name not in absent]
    samples: list[Sample] = []
    order = random.Random(0)
    for turn in range(given.repeats):
        queue = arms(present, given.scenes)
        order.shuffle(queue)
        for scene, system in queue:
            print(f"{turn + 1}/{given.repeats} {scene}: {system.name}", file=sys.stderr, flush=True)
            try:
                samples += measure(system, scene, folder if system.peer else BIN)
            except (NeverTrained, OSError) as error:
                print(f"{system.name}: {error}", file=sys.stderr)
                samples.append(Sample(f"{scene}: step", system.name, None, "s"))
            if given.json:
                write_json(given.json, samples)
    show(samples, [system.name for system in present], given.scenes)
    for name, why in absent.items():
        print(f"{name} is missing: {why}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    main()

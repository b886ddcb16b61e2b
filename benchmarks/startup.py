"""How long it takes until a job trains, and what the launcher itself costs.

    python benchmarks/startup.py [--repeats N] [--ranks 4,16,64] [--json FILE]

Each arm is measured ``--repeats`` times, the arms in turn, so that a slow moment of the machine hits all of them.
Printed are medians and the range. ``first step`` is from the command to the first step that rank 0 of a small DDP
script (``benchmarks/scripts/first_step.py``) has completed; memory is PSS, which counts shared pages once, of the
launcher with all that runs below it at that moment. The peer is torchrun of the installed torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from measuring import BIN, SCRIPTS, Sample, cell, write_json

SCRIPT = SCRIPTS / "first_step.py"
DEADLINE = 300.0
MEGABYTE = 1 << 20


def seconds_of(*command: str) -> float:
    """Run a command to its end and return its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def help_page() -> Iterable[Sample]:
    """Time the help pages."""
    for who in ("tlaunch", "torchrun"):
        yield Sample("--help", who, seconds_of(str(BIN / who), "--help"), "s")


def command(who: str, ranks: int, ready: Path, folder: str) -> list[str]:
    """Return the command that runs the script with so many ranks, 4 to a node, under a launcher."""
    script = [str(SCRIPT), str(ready)]
    if who == "torchrun":
        return [str(BIN / who), "--standalone", f"--nproc-per-node={ranks}", *script]
    options = ["--nodes", str(-(-ranks // 4)), "--gpus-per-node", str(min(4, ranks)), "--log-dir", f"{folder}/logs"]
    return [str(BIN / who), *options, *script]


def first_step(who: str, ranks: int) -> Iterable[Sample]:
    """Start a job, and measure when its first step is done and what it holds then."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        os.mkfifo(ready)
        # Opened for both directions: no open or read waits for a rank that died.
        fifo = os.open(ready, os.O_RDWR)
        start = time.perf_counter()
        job = subprocess.Popen(command(who, ranks, ready, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            os.read(fifo, 1)
            yield Sample(f"first step, {ranks} ranks", who, time.perf_counter() - start, "s")
            yield from memory(who, ranks, job.pid)
        finally:
            os.close(fifo)
            job.send_signal(signal.SIGINT)
            job.wait(DEADLINE)


def memory(who: str, ranks: int, pid: int) -> Iterable[Sample]:
    """Measure what a launcher and all below it hold now."""
    launcher = psutil.Process(pid)
    family = [launcher, *launcher.children(recursive=True)]
    yield Sample(f"memory, {ranks} ranks", who, sum(map(pss, family)) / MEGABYTE, "MB")
    agents = [process for process in family if "tlaunch.launcher.control" in process.cmdline()]
    for agent in agents:
        assert not any("libtorch" in library.path for library in agent.memory_maps()), "an agent has loaded torch"
    if agents:
        yield Sample("largest agent, resident", who, max(agent.memory_info().rss for agent in agents) / MEGABYTE, "MB")


def pss(process: psutil.Process) -> int:
    """Return the proportional share of a process in bytes; 0 when it has ended."""
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024


def arms(ranks: Iterable[int]) -> list[Callable[[], Iterable[Sample]]]:
    """Return everything that is to be measured, as calls."""
    launches = [(who, count) for count in ranks for who in ("tlaunch", "torchrun")]
    return [help_page, *(lambda who=who, count=count: first_step(who, count) for who, count in launches)]


def show(samples: Iterable[Sample]) -> None:
    """Print the medians side by side."""
    values: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        values[sample.what][sample.who].append(sample)
    table = Table("", "tlaunch", "torchrun", title=f"start-up, median (range), {os.cpu_count()} cores")
    for what, by_who in values.items():
        table.add_row(what, *(cell(by_who[who]) for who in ("tlaunch", "torchrun")))
    Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how long it takes until a job trains.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", default="4,16,64", help="numbers of ranks, separated by commas")
    parser.add_argument("--json", type=Path, help="also write every single measurement to this file")
    given = parser.parse_args()
    signal.alarm(int(DEADLINE * given.repeats * 4))  # a benchmark that hangs ends all the same
    measured = arms([int(count) for count in given.ranks.split(",")])
    samples = [sample for _ in range(given.repeats) for arm in measured for sample in arm()]
    show(samples)
    if given.json:
        write_json(given.json, samples)


if __name__ == "__main__":
    main()

"""Random kills in a row under one job: each must be recovered from, and nothing may pile up.

    python -m tests.e2e.soak [--kills 200] [--seed 0]        (``make soak``)

The job is 3 nodes of 2 slots with ranks on two of them. What is killed is drawn with the seed:

* ``rank``: one of the ranks;
* ``zygote``: the zygote and a rank, so that the standbys for what follows have to come from another zygote;
* ``node``: the node that is away comes back as a spare, then the agent of another one is killed, and its ranks with it.

Half of the kills wait until the job is warm again, the others follow upon the first step of all ranks. Between kills
one node is away, so that there is no spare: where there is one, a slot that fails again and again would be taken for
bad hardware, which is another test's matter.

After each recovery everything that is held is counted: processes, descriptors, shared memory, temporary files, keys
in etcd. Printed are the times, and what was held first, at most, and last; the exit code is 1 if anything is off. Logs
are kept then, and grow with the generations in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table

from tests.e2e.job import Job, command_lines, node_of, running
from tests.support.leaks import MARK, Holdings, Run, new_shared_memory
from tlaunch.launcher.store import Endpoints, connect

Kind = Literal["rank", "zygote", "node"]
WEIGHTS: Mapping[Kind, int] = {"rank": 14, "zygote": 2, "node": 4}
OPTIONS = ("--nodes", "3", "--gpus-per-node", "2", "--spares", "2", "--max-restarts", "1000000")
WORLD = 4
WARM = 12
"""Processes of a job that is warm: launcher, etcd, zygote, 2 agents with 2 ranks and a standby each, a TCPStore."""
KEPT = "node-00"
"""Its agent is never killed: the launcher ends a job whose agents have all ended, and knows only those it started."""
PATIENCE = 60.0
YOUNG = 12.0
"""Seconds. A zygote that dies younger is not replaced."""
SLACK = {"keys": 0, "bytes": 5_000}
"""By how much what is held may vary; 3 of anything else. The plans that are kept differ in what they have to tell."""
MOST = {"keys": 80, "bytes": 100_000}


@dataclass(frozen=True)
class Kill:
    """One kill. ``seconds``: until all ranks had completed a step again."""

    kind: Kind
    seconds: float


@dataclass
class Report:
    """What has happened. ``off``: what should not have, a sentence each."""

    kills: list[Kill] = field(default_factory=list)
    held: list[Mapping[str, int]] = field(default_factory=list)
    off: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Look for growth: a third of the way through, everything has been there once."""
        early, late = self.held[: len(self.held) // 3], self.held[-(len(self.held) // 3) :]
        for name in self.held[-1] if self.held else ():
            most = max(held[name] for held in self.held)
            if most > MOST.get(name, most):
                self.off.append(f"{name}: {most}, expected at most {MOST[name]}")
            if len(early) <= 16:
                continue
            before, after = (max(held[name] for held in part) for part in (early, late))
            if after > before + SLACK.get(name, 3):
                self.off.append(f"{name} grew from {before} to {after}")

    def show(self) -> None:
        """Print two tables and what is off."""
        times = Table("killed", "times", "median", "95 %", "longest", title="seconds until all ranks trained again")
        for kind in (*WEIGHTS, "all"):
            seconds = sorted(kill.seconds for kill in self.kills if kind in (kill.kind, "all"))
            if seconds:
                shown = (statistics.median(seconds), seconds[math.ceil(0.95 * len(seconds)) - 1], seconds[-1])
                times.add_row(kind, str(len(seconds)), *(f"{value:.2f}" for value in shown))
        held = Table("held", "first", "most", "last")
        for name in self.held[-1] if self.held else ():
            numbers = [each[name] for each in self.held]
            held.add_row(name, *map(str, (numbers[0], max(numbers), numbers[-1])))
        console = Console()
        console.print(times, held)
        for line in self.off:
            console.print(f"off: {line}", markup=False)


@dataclass
class Soak:
    """One job, and what is done to it."""

    job: Job
    run: Run
    before: Holdings
    seed: int
    report: Report = field(default_factory=Report)
    _away: str = "node-02"
    _returned: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _commands: dict[str, tuple[list[str], dict[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def go(self, kills: int) -> None:
        """Kill so often."""
        seats = self.job.seats(0, WORLD)
        spare = {f"node-{number:02d}" for number in range(3)} - {node_of(slot) for slot in seats.values()}
        self._away = spare.pop()
        if self._away == KEPT:  # the job has not started as it always does
            raise AssertionError(f"{KEPT} is the spare node: {seats}")
        self._kill_agent(self._away)
        self._settle()
        for _ in range(kills):
            self._one()
        self.job.another_step(WORLD)

    def _one(self) -> None:
        kind = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        victim = self._random.randrange(WORLD)
        if kind == "zygote" and time.time() - self._zygote().create_time() < YOUNG:
            kind = "rank"
        before = self._newest()
        if kind == "node":
            self._come_back()
            lost = next(node for node in sorted({self._node(rank) for rank in range(WORLD)}) if node != KEPT)
            start = time.monotonic()
            self._kill_agent(lost)
        else:
            pid = int(self._last(victim)["pid"])
            zygote = self._zygote() if kind == "zygote" else None
            start = time.monotonic()
            if zygote is not None:
                zygote.kill()
            os.kill(pid, signal.SIGKILL)
        self._recovered(before)
        self.report.kills.append(Kill(kind, time.monotonic() - start))
        print(f"{len(self.report.kills)} {kind}: {self.report.kills[-1].seconds:.2f} s", file=sys.stderr, flush=True)
        if self._random.random() < 0.5 or kind == "node":
            self._settle()

    def _recovered(self, before: int) -> None:
        """Wait until all ranks have completed a step in the same, later generation."""

        def all_there() -> bool:
            counts = {int(self._last(rank)["TORCHELASTIC_RESTART_COUNT"]) for rank in range(WORLD)}
            return len(counts) == 1 and counts.pop() > before

        number = len(self.report.kills) + 1
        self.job.until(all_there, f"all ranks to train again after kill {number}")

    def _newest(self) -> int:
        return max(int(self._last(rank)["TORCHELASTIC_RESTART_COUNT"]) for rank in range(WORLD))

    def _node(self, rank: int) -> str:
        return node_of(str(self._last(rank)["TLAUNCH_SLOT"]))

    def _last(self, rank: int) -> Mapping[str, str]:
        """Return the last step of a rank; its file is long."""
        with (self.job.folder / f"trace-{rank}").open("rb") as trace:
            trace.seek(max(0, trace.seek(0, os.SEEK_END) - 4096))
            entry: Mapping[str, str] = json.loads(trace.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        return entry

    def _zygote(self) -> psutil.Process:
        """Return the zygote, which the launcher replaces when it dies."""
        found: list[psutil.Process] = []

        def there() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(self.job.process.pid).children()
                found[:] = [child for child in children if "zygote" in " ".join(child.cmdline()[:3])]
            return bool(found)

        self.job.until(there, "a zygote")
        return found[0]

    def _kill_agent(self, node: str) -> None:
        agent = psutil.Process(self.job.agent_pid(node))
        command = [word for word in agent.cmdline() if not word.startswith("--lifeline-fd")]
        self._commands[node] = (command, agent.environ())
        agent.kill()
        if node in self._returned:
            self._returned.pop(node).wait(PATIENCE)
        self._away = node

    def _come_back(self) -> None:
        """Start the agent that is away, as an operator would; it has registered when the store says so."""
        node = self._away
        command, env = self._commands[node]
        key = f"agents/{node}"
        with (self.job.logs / "agents" / f"{node}.log").open("ab") as log:
            self._returned[node] = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )
        pid = self._returned[node].pid
        self.job.until(lambda: json.loads(self._keys().get(key, b"{}")).get("pid") == pid, f"{node} to come back")

    def _keys(self) -> dict[str, bytes]:
        """Return everything that stands in etcd, the job's keys without their root."""
        return asyncio.run(self._list())

    async def _list(self) -> dict[str, bytes]:
        endpoints = Endpoints.given(env=next(iter(self._commands.values()))[1])
        assert endpoints is not None
        store = await connect(endpoints)
        root = f"/tlaunch/v1/{self.job.job_id}/"
        try:
            listing = await store.list("/")
        finally:
            await store.close()
        return {kv.key.removeprefix(root): kv.value for kv in listing.items}

    def _settle(self) -> None:
        """Wait until just the processes of a warm job run, and count everything."""
        # While the lease of the node that is away runs on, it still counts as a spare.
        self.job.until(lambda: f"agents/{self._away}" not in self._keys(), f"{self._away} to be missed")
        deadline = time.monotonic() + PATIENCE
        ours = dict(self._processes())
        while len(ours) != WARM:
            if time.monotonic() > deadline:
                told = "; ".join(sorted(ours.values()))
                self.report.off.append(f"{len(ours)} processes instead of {WARM}: {told}")
                break
            time.sleep(0.02)
            ours = dict(self._processes())
        keys = self._keys()
        self.report.held.append(
            {
                "processes": len(ours),
                **{f"descriptors: {name}": number for name, number in self._descriptors().items()},
                "shared memory": len(new_shared_memory(self.before, self.run.take())),
                "temporary files": sum(1 for _ in self.run.temporary.rglob("*")),
                "keys": len(keys),
                "bytes": sum(map(len, keys.values())),
            }
        )

    def _processes(self) -> Iterator[tuple[int, str]]:
        for process, told in self.run.take().processes.items():
            if process not in self.before.processes:
                yield process.pid, told

    def _descriptors(self) -> dict[str, int]:
        """Count the open files of the launcher, of the agent with most of them, of the zygote and of etcd."""
        found: dict[str, int] = {"launcher": 0, "agent": 0, "zygote": 0, "etcd": 0}
        mine = dict(self._processes())
        for pid, words in command_lines():
            text = b" ".join(words[:6]).decode(errors="replace")
            roles = {
                "launcher": pid == self.job.process.pid,
                "agent": "tlaunch.launcher.control" in text,
                "zygote": "zygote" in text,
                "etcd": text.partition(" ")[0].endswith("/etcd"),
            }
            for role in (role for role, fits in roles.items() if fits and pid in mine):
                with contextlib.suppress(OSError):
                    found[role] = max(found[role], len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208
        return found

    def end(self) -> None:
        """Have the job end well; its agents follow."""
        self.job.finish()
        for agent in self._returned.values():
            agent.wait(PATIENCE)


def soak(folder: Path, run: Run, kills: int, seed: int) -> Report:
    """Run a job, kill, and judge."""
    before = run.take()
    with running(folder, *OPTIONS) as job:
        trial = Soak(job, run, before, seed)
        try:
            trial.go(kills)
            trial.end()
        except AssertionError as error:
            trial.report.off.append(str(error))
    trial.report.judge()
    trial.report.off += run.leaked(before, patience=10.0)
    return trial.report


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Kill at random, many times, and see that nothing piles up.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tl-soak-"))
    os.environ[MARK] = uuid.uuid4().hex
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    (folder / "tmp").mkdir()
    (folder / "job").mkdir()
    report = soak(folder / "job", Run(os.environ[MARK], folder / "tmp"), given.kills, given.seed)
    report.show()
    if report.off or len(report.kills) != given.kills:
        print(f"see {folder}", file=sys.stderr)
        return 1
    print(f"{len(report.kills)} kills, {len(report.kills)} recoveries")
    return 0


if __name__ == "__main__":
    sys.exit(main())

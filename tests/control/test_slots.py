"""The processes of one node, forked from a real zygote: what runs is what the assignment asks for, nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tlaunch.launcher.control.endings import LONGEST_MESSAGE, LONGEST_TRACEBACK
from tlaunch.launcher.control.output import Output
from tlaunch.launcher.control.program import Program
from tlaunch.launcher.control.records import Rendezvous
from tlaunch.launcher.control.slots import Slots
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.zygotes import ZygoteSource, base_environment
from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.launcher.core.codec import encode
from tlaunch.topology.model import Node

NODE = Node("node-00", 2)
NOWHERE = Rendezvous("127.0.0.1", 1)
SCRIPT = """
import atexit, os, sys, time
rank, generation = os.environ["RANK"], os.environ["TLAUNCH_GENERATION"]
open(f"{sys.argv[1]}/{generation}-{rank}-{os.getpid()}", "w").close()
if len(sys.argv) > 2:
    atexit.register(time.sleep, 0.5)
    raise ValueError(int(sys.argv[2]) * "x")
time.sleep(600)
"""


class Stage:
    """Slots with two places, and what they have started so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        (folder / "script.py").write_text(SCRIPT)
        env = base_environment(os.environ, 2)
        self.zygotes = ZygoteSource(None, env, folder / "zygote.log", Timing())
        self.program = Program(
            job="job",
            argv=(str(folder / "script.py"), str(self.work), *arguments),
            module=False,
            start="fork",
            cwd=str(folder),
            env=env,
            log_dir=folder / "logs",
            gpus=False,
        )
        self.output = Quiet()
        self.changed = asyncio.Event()
        self.slots = Slots(NODE, self.program, self.zygotes.get, self.output, timing=Timing(), changed=self.changed.set)

    async def run(self, generation: int, *indices: int) -> None:
        """Have the slots run generation ``generation`` on these slots, rank = index."""
        head = Generation(generation, len(indices), 1, 0, 3)
        seats = tuple(AssignedSeat(index, index, local, generation) for local, index in enumerate(indices))
        assignment = Assignment(generation, 0, seats)
        await self.slots.yield_stale(head, assignment)
        await self.slots.start(head, assignment, NOWHERE)

    async def started(self, generation: int, rank: int) -> int:
        """Wait until a rank has come to its script, and return its pid."""
        async with asyncio.timeout(30):
            while not (found := list(self.work.glob(f"{generation}-{rank}-*"))):  # noqa: ASYNC110  a file has no event
                await asyncio.sleep(0.01)
        return int(found[0].name.rpartition("-")[2])


class Quiet(Output):
    """Follows nothing."""

    def __init__(self) -> None:
        self.full = False

    def follow(self, rank: int, stream: str, path: str) -> None:
        if self.full:
            raise OSError(24, "Too many open files", path)

    def finish(self, rank: int) -> None:
        pass


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.slots.stop(0.1)
    await stage.zygotes.close()


async def test_an_operators_kill_is_reported_as_such(stage: Stage) -> None:
    await stage.run(1, 0, 1)
    for rank in (0, 1):
        await stage.started(1, rank)
    assert stage.slots.kill(0, trial=True)
    assert stage.slots.kill(1)
    async with asyncio.timeout(30):
        while len(stage.slots.report.exits) < 2:
            stage.changed.clear()
            await stage.changed.wait()
    exits = stage.slots.report.exits
    assert (exits[0].trial, exits[0].signal, exits[0].message) == (True, signal.SIGKILL, "killed by an operator")
    assert (exits[1].trial, exits[1].signal, exits[1].message) == (False, signal.SIGKILL, None)


async def test_a_new_generation_ends_the_old_processes_before_it_starts_its_own(stage: Stage) -> None:
    await stage.run(1, 0, 1)
    old = [await stage.started(1, rank) for rank in (0, 1)]
    await stage.run(2, 0, 1)
    assert not any(map(alive, old))
    new = [await stage.started(2, rank) for rank in (0, 1)]
    assert all(map(alive, new))
    assert stage.slots.report.exits == {}, "what we end ourselves is no news"


async def test_a_node_that_the_plan_leaves_out_runs_nothing(stage: Stage) -> None:
    await stage.run(1, 0, 1)
    old = [await stage.started(1, rank) for rank in (0, 1)]
    await stage.run(2)
    assert not any(map(alive, old))


async def test_a_killed_rank_is_reported_for_its_generation_only(stage: Stage) -> None:
    await stage.run(1, 0, 1)
    os.kill(await stage.started(1, 1), signal.SIGKILL)
    async with asyncio.timeout(10):
        await stage.changed.wait()
    assert stage.slots.report.generation == 1
    assert {rank: ended.signal for rank, ended in stage.slots.report.exits.items()} == {1: signal.SIGKILL}
    await stage.run(2, 0, 1)
    assert stage.slots.report.exits == {}


async def test_a_bad_slot_is_reported_and_emptied_and_never_used_again(stage: Stage) -> None:
    await stage.run(1, 0, 1)
    pid = await stage.started(1, 0)
    stage.slots.fail(0, "XID 79")
    assert stage.slots.report.bad == {0: "XID 79"}
    async with asyncio.timeout(10):
        while alive(pid):  # noqa: ASYNC110  nobody tells of the end of a process that we end ourselves
            await asyncio.sleep(0.01)
    assert stage.slots.report.exits == {}
    assert stage.slots.to_start(Assignment(2, 0, (AssignedSeat(0, 0, 0, 2),))) == ()


async def test_a_rank_that_cannot_be_started_is_reported_and_its_standby_is_not_left_behind(stage: Stage) -> None:
    stage.output.full = True
    await stage.run(1, 0)
    (ended,) = stage.slots.report.exits.values()
    assert ended.message is not None
    assert "could not be started: [Errno 24] Too many open files" in ended.message
    assert ended.time > 0, "or it would count as the first cause of all"
    stage.output.full = False
    await stage.run(2, 0)
    await stage.started(2, 0)
    assert stage.slots.report.exits == {}


async def test_a_failure_is_reported_with_its_moment_and_no_more_words_than_fit(tmp_path: Path) -> None:
    stage = Stage(tmp_path, str(4 << 20))
    await stage.run(1, 0)
    async with asyncio.timeout(30):
        await stage.changed.wait()
    (ended,) = stage.slots.report.exits.values()
    assert ended.message is not None
    assert ended.traceback is not None
    assert len(ended.message) <= LONGEST_MESSAGE
    assert len(ended.traceback) <= LONGEST_TRACEBACK
    assert ended.time < time.time() - 0.4, "it failed when it raised, not when its process had ended"
    encode(stage.slots.report)
    await stage.slots.stop(0.1)
    await stage.zygotes.close()


async def test_a_standby_waits_in_each_free_slot_and_one_for_a_restart_in_place(stage: Stage) -> None:
    await stage.slots.warm(None)
    assert len(stage.slots.standbys) == 2
    await stage.run(1, 0)
    await stage.slots.warm(Assignment(1, 0, (AssignedSeat(0, 0, 0, 1),)))
    assert sorted(stage.slots.standbys) == [-1, 1]
    dead = stage.slots.standbys[1]
    os.kill(dead.pid, signal.SIGKILL)
    await dead.ended
    await stage.slots.warm(Assignment(1, 0, (AssignedSeat(0, 0, 0, 1),)))
    assert stage.slots.standbys[1] is not dead

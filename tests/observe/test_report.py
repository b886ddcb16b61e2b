"""Who is told of when several ranks fail: the first one, with all that helps; the others in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.world import World, racks
from tests.observe.jobs import END, FAILURE, JOB, RESTART, SWAP
from tlaunch.launcher.core.events import Exit, StopRequested
from tlaunch.launcher.observe.events import EventLog, entry
from tlaunch.launcher.observe.report import account, first_failure, row, summary

TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 62, in main\nValueError: bad batch'


@pytest.fixture
def world() -> World:
    """A job that rank 2 has ended with an exception, after it had been restarted once."""
    world = World.started(racks(1, 2, 2), "dp=4", max_restarts=1)
    for ended in (
        Exit(signal=11, output="step 1\nFatal Python error: Segmentation fault", host="gb07", time=1.0, ran=61.4),
        Exit(3, None, "ValueError: bad batch", TRACEBACK, "step 1\nstep 2", "gb07", 1.0, 2.0),
    ):
        world.crash_all(first=2)
        world.ended(2, ended)
        world.look()
        world.ack()
    return world


def test_a_recovery_is_told_with_the_last_lines_of_the_rank_that_failed_first(world: World) -> None:
    assert account(world.plans[1]) == [
        "  ranks 0-1,3 failed as a consequence of rank 2; that is not counted",
        "  rank 2 had run for 61 s on host gb07; its last lines:",
        "  | step 1",
        "  | Fatal Python error: Segmentation fault",
    ]


def test_the_end_names_the_first_failure_and_shows_its_traceback_once(world: World) -> None:
    slot = world.plans[1].seats[2].slot
    why = (
        f"rank 2 on {slot} failed: exit code 3: ValueError: bad batch; --max-restarts 1 reached: 2 failures of the "
        "job's own code counted (rank 2: 2), replaced hardware not; to forgive more, raise --max-restarts"
    )
    crash = f"rank 2 on {slot} failed: killed by SIGSEGV (segmentation fault)"
    assert summary(JOB, world.plans, world.result) == [
        "what happened:",
        f"  generation 2: {crash} -> restart rank 2 in place on {slot} (restart 1 of 1)",
        f"job gpt-a1 ended with exit code 3 after 2 generations: {why}",
        f"the first failure: rank 2 on {slot}: exit code 3",
        "  ranks 0-1,3 failed as a consequence of rank 2; that is not counted",
        "  rank 2 had run for 2.0 s on host gb07; its last lines:",
        "  | step 1",
        "  | step 2",
        *TRACEBACK.splitlines(),
    ]


def test_programs_read_the_same(world: World, tmp_path: Path) -> None:
    with EventLog(tmp_path, pytest.fail) as log:
        log.write(world.plan, 0)
    assert entry(world.plan, 0, 1.0)["first_failure"] == {
        "rank": 2,
        "host": "gb07",
        "node": "r0-n1",
        "slot": "r0-n1/gpu-0",
        "code": 3,
        "signal": None,
        "hang": False,
        "message": "ValueError: bad batch",
        "ran": 2.0,
        "last_lines": ["step 1", "step 2"],
        "traceback": TRACEBACK,
    }


def test_lost_hardware_and_wishes_have_no_rank_that_failed_first() -> None:
    assert first_failure(SWAP) is None
    assert first_failure(END) is None
    assert account(SWAP) == ["  same rack"]
    stopped = replace(RESTART, events=(StopRequested("ctrl-c", 130), FAILURE))
    assert first_failure(stopped) is None
    assert account(stopped) == []


def test_of_one_that_hangs_it_is_shown_where() -> None:
    stack = 'Stack (most recent call last):\n  File "train.py", line 7, in load\n'
    hung = Exit(message="for 60 s at train.py:7 in load", traceback=stack, ran=3.0, hang="cause")
    plan = replace(RESTART, events=(replace(FAILURE, exit=hung),), reasons=())
    assert account(plan) == [
        "  rank 1 had run for 3.0 s; it printed nothing else",
        "  Stack (most recent call last):",
        '    File "train.py", line 7, in load',
    ]
    assert row(plan).cause.endswith(" failed: hang: for 60 s at train.py:7 in load")


def test_one_that_said_nothing() -> None:
    silent = replace(RESTART, events=(replace(FAILURE, exit=Exit(signal=9, ran=3.0)),), reasons=())
    assert account(silent) == ["  rank 1 had run for 3.0 s; it printed nothing"]

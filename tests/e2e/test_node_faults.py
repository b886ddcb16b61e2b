"""A whole node fails, or looks as if it had: what is gone is replaced, and what is only slow or odd is left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.faults import fault
from tests.e2e.job import STEPS, Job, node_of, running
from tests.support.clock import Clock, clock
from tests.support.proxy import Proxy
from tlaunch.launcher.control.timing import Timing

SMALL = ("--nodes", "3", "--gpus-per-node", "2", "--spares", "2")
ALONE = STEPS.with_name("alone.py")
LEASE = Timing().lease
HOUR = 3600

all_at_once = fault(
    "node",
    "lost all at once",
    noticed="at once: peers report broken connections, a probe of the node is refused; else when its lease ends",
    decision="the node's ranks move to the nearest spares; all others stay where they are",
    lost="steps since the checkpoint",
)


def everything_on(job: Job, node: str, seats: dict[int, str]) -> list[int]:
    """Return the pids of a node's agent and ranks."""
    return [job.agent_pid(node), *(job.last(rank)["pid"] for rank, slot in seats.items() if node_of(slot) == node)]


@all_at_once
def test_a_lost_node_is_replaced_and_the_others_stay_where_they_are(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        lost = next(node for node in map(node_of, before.values()) if node != job.controller())
        assert job.command("kill", "--node", lost, "--job-id", job.job_id).returncode == 0
        after = job.seats(1, 4)
        for rank, slot in before.items():
            assert (after[rank] == slot) == (node_of(slot) != lost)
        job.finish()
        assert lost in job.events()[1]["causes"][0], "one generation, with the node as the first cause"


@all_at_once
def test_a_node_dies_and_the_zygote_with_it(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        lost = next(node for node in map(node_of, before.values()) if node != job.controller())
        processes = psutil.Process(job.process.pid).children(recursive=True)
        zygotes = [process.pid for process in processes if " ".join(process.cmdline()) == "tlaunch zygote"]
        assert zygotes
        for pid in (*everything_on(job, lost, before), *zygotes):
            os.kill(pid, signal.SIGKILL)
        after = job.seats(1, 4)
        for rank, slot in before.items():
            assert (after[rank] == slot) == (node_of(slot) != lost)
        job.finish()


@pytest.mark.slow
@fault(
    "node",
    "slow",
    noticed="not at all, while it gets a turn within each lease (4 s)",
    decision="nothing: nobody counts as dead",
    lost="nothing",
)
@pytest.mark.parametrize("leads", [True, False])
def test_a_node_that_is_starved_is_left_alone(tmp_path: Path, *, leads: bool) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        leader = job.controller()
        others = [node for node in map(node_of, before.values()) if node != leader]
        pids = everything_on(job, leader if leads else others[0], before)
        until = time.monotonic() + 2 * LEASE
        while time.monotonic() < until:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(LEASE / 2)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            job.another_step(4)
        assert len(job.events()) == 1, job.told()
        job.finish()


@pytest.fixture
def moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A clock that is an hour ahead, for whatever the test starts."""
    with clock(tmp_path) as moving:
        for name, value in moving.env.items():
            monkeypatch.setenv(name, value)
        moving.move(HOUR)
        yield moving


@pytest.mark.slow
@fault(
    "node",
    "clock moved by an hour",
    noticed="not at all: durations are measured with clocks that nobody sets",
    decision="nothing; which rank failed first is found all the same",
    lost="nothing",
)
def test_clocks_that_move_change_nothing(tmp_path: Path, moving: Clock) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        assert HOUR - 60 < job.events()[0]["time"] - time.time() <= HOUR, "the clock does what it is asked to"
        node = node_of(before[1])
        moving.move(2 * HOUR, everything_on(job, node, before))
        job.goes_on(1.1 * LEASE, 4)
        moving.move(3 * HOUR)  # for all the others: now this node is behind
        job.goes_on(1.1 * LEASE, 4)
        moving.move(HOUR)
        job.goes_on(1.1 * LEASE, 4)
        job.trouble(1, "raise")
        assert job.seats(1, 4) == before
        assert job.events()[1]["causes"][0].startswith("rank 1 ")
        job.finish()


@pytest.mark.slow
@fault(
    "node",
    "cut off from etcd and its peers",
    noticed="when its lease has run out (4 s)",
    decision="its ranks move to spares; when it is back it kills the ones that it still has, and is a spare itself",
    lost="steps since the checkpoint; what the old ranks did meanwhile",
)
def test_a_node_that_was_cut_off_kills_its_stale_ranks(tmp_path: Path, relay: Proxy) -> None:
    with running(tmp_path, *SMALL, "--etcd", relay.host, script=ALONE) as job:
        before = job.seats(0, 4)
        lost = next(node for node in map(node_of, before.values()) if node != job.controller())
        agent, *stale = map(psutil.Process, everything_on(job, lost, before))
        relay.cut(agent.pid)
        after = job.seats(1, 4)
        for rank, slot in before.items():
            assert (after[rank] == slot) == (node_of(slot) != lost)
        assert stale
        assert all(process.is_running() for process in stale), "it goes on alone, not knowing better"
        relay.heal()
        assert psutil.wait_procs(stale, timeout=30)[1] == []
        job.until(lambda: job.spare(lost), "the node to be a spare again")
        assert agent.is_running()
        assert len(job.events()) == 2
        job.finish()

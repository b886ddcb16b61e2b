"""The controller fails while it makes a plan: another one goes on from what stands in the store."""

from __future__ import annotations

import json
import os
import signal
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults import fault
from tests.e2e.job import Job, node_of, running
from tests.store.members import Member, ctl
from tests.support.proxy import Proxy
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.core.assign import Assignment
from tlaunch.launcher.core.codec import decode

pytestmark = pytest.mark.slow  # a lease has to run out in each
SMALL = ("--nodes", "3", "--gpus-per-node", "2", "--spares", "2")

ROOMY = ("--nodes", "4", "--gpus-per-node", "2", "--spares", "4")
"""Whichever node the controller dies with, there are spares on another one."""

POLICY = '''
import os, pathlib, signal
import tlaunch

class Fatal(tlaunch.Policy):
    """The first who is asked dies of it, before anything is decided."""

    def on_failure(self, failure, cluster):
        try:
            pathlib.Path("work/asked").touch(exist_ok=False)
        except FileExistsError:
            return super().on_failure(failure, cluster)
        os.kill(os.getpid(), signal.SIGKILL)
'''

NARROW = """
import sys
if "tlaunch.launcher.control" in sys.orig_argv:
    import tlaunch.launcher.control.commit as commit
    commit.TXN_PUTS = 2
"""
"""Makes agents write assignments before the plan, as they do for a hundred nodes or more."""

in_each_phase = fault(
    "controller",
    "killed in each phase of a plan",
    noticed="when its lease has run out (4 s)",
    decision="another agent is elected; it goes on from what stands in the store, and ranks of the lost node move",
    lost="steps since the checkpoint",
)


def fail(job: Job, rank: int) -> None:
    os.kill(job.last(rank)["pid"], signal.SIGKILL)


def stored(member: Member, key: str) -> list[dict[str, Any]]:
    """Return what etcd says of a key itself."""
    found = json.loads(ctl([member], "get", key, "-w", "json"))
    return list(found.get("kvs", []))


def recovers(job: Job, before: dict[int, str], lost: str) -> None:
    """Check that all ranks go on, with one generation for the failure and at most one for the lost controller."""
    runs_without(job, before, lost)
    job.finish()


def runs_without(job: Job, before: dict[int, str], lost: str) -> None:
    after: dict[int, str] = {}

    def everybody() -> bool:
        events = job.events()
        entries = [job.last(rank) for rank in before]
        after.update({entry["rank"]: entry["TLAUNCH_SLOT"] for entry in entries})
        return (
            all(entry["TORCHELASTIC_RESTART_COUNT"] == str(events[-1]["restart_count"]) for entry in entries)
            and len(events) > 1
            and lost not in map(node_of, after.values())
        )

    job.until(everybody, f"all ranks to go on without {lost}")
    assert {rank: slot for rank, slot in after.items() if node_of(before[rank]) != lost} == {
        rank: slot for rank, slot in before.items() if node_of(slot) != lost
    }
    assert [event["generation"] for event in job.events()] == list(range(1, len(job.events()) + 1))
    assert len(job.events()) <= 3, job.told()
    job.until(lambda: job.controller() not in {lost, "None"}, "another controller")  # nobody needs it before


@fault(
    "controller",
    "killed",
    noticed="0.3 s after ranks elsewhere have failed, by a probe that is refused; else when its lease ends (4 s)",
    decision="another agent is elected and goes on; ranks of its node move to spares",
    lost="nothing more than with any other agent",
)
def test_the_controller_is_lost_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        leader = job.controller()
        os.kill(job.agent_pid(leader), signal.SIGKILL)
        restarts = 0
        if leader in map(node_of, before.values()):  # else it was the spare node, and no rank is affected
            restarts = 1
            before = job.seats(1, 4)
            assert leader not in map(node_of, before.values())
        job.until(lambda: job.controller() not in {leader, "None"}, "another controller")
        os.kill(job.last(3)["pid"], signal.SIGKILL)
        assert job.seats(restarts + 1, 4) == before
        job.finish()


@in_each_phase
def test_before_the_decision(tmp_path: Path) -> None:
    (tmp_path / "fatal.py").write_text(POLICY)
    with running(tmp_path, *SMALL, "--policy", "fatal:Fatal") as job:
        before, leader = job.seats(0, 4), job.controller()
        fail(job, 1)
        recovers(job, before, leader)


@in_each_phase
def test_between_the_assignments_and_the_plan(
    tmp_path: Path, member: Member, relay: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NARROW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running(tmp_path, *ROOMY, "--etcd", relay.host) as job:
        before, leader = job.seats(0, 4), job.controller()
        keys, bad = Keys(job.job_id), node_of(before[1])
        sent = relay.catch(b"plans/00000002")
        assert job.command("kill", "--gpu", before.pop(1), "--job-id", job.job_id).returncode == 0
        pid = sent.pid()
        (assigned,) = stored(member, keys.assign(bad))
        assert decode(Assignment, b64decode(assigned["value"]), "").generation == 2
        assert stored(member, keys.plan(2)) == []
        os.kill(pid, signal.SIGKILL)
        sent.drop()
        recovers(job, before, leader)


@in_each_phase
def test_while_the_plan_is_on_its_way(tmp_path: Path, member: Member, relay: Proxy) -> None:
    with running(tmp_path, *SMALL, "--etcd", relay.host) as job:
        before, leader = job.seats(0, 4), job.controller()
        sent = relay.catch(b"plans/00000002")
        fail(job, 1)
        assert sent.pid() == job.agent_pid(leader)
        os.kill(sent.pid(), signal.SIGKILL)
        assert stored(member, Keys(job.job_id).plan(2)) == []
        sent.drop()
        recovers(job, before, leader)


@in_each_phase
def test_after_the_commit_which_it_has_not_heard_of(tmp_path: Path, member: Member, relay: Proxy) -> None:
    with running(tmp_path, *SMALL, "--etcd", relay.host) as job:
        before, leader = job.seats(0, 4), job.controller()
        sent = relay.catch(b"plans/00000002", answered=True)
        fail(job, 1)
        pid = sent.pid()
        job.until(lambda: bool(stored(member, Keys(job.job_id).plan(2))), "the plan to be written")
        os.kill(pid, signal.SIGKILL)
        sent.drop()
        recovers(job, before, leader)


@in_each_phase
def test_while_acks_are_outstanding(tmp_path: Path, relay: Proxy) -> None:
    with running(tmp_path, *ROOMY, "--etcd", relay.host) as job:
        before, leader = job.seats(0, 4), job.controller()
        # Only a node whose assignment has changed acks: here the one whose rank moves away.
        rank, slot = next((rank, slot) for rank, slot in before.items() if node_of(slot) != leader)
        ack = relay.catch(Keys(job.job_id).ack(node_of(slot)).encode())
        assert job.command("kill", "--gpu", slot, "--job-id", job.job_id).returncode == 0
        assert ack.pid() == job.agent_pid(node_of(slot))
        os.kill(job.agent_pid(leader), signal.SIGKILL)
        ack.release()
        recovers(job, {other: place for other, place in before.items() if other != rank}, leader)


@fault(
    "controller",
    "stopped and woken",
    noticed="when its lease has run out (4 s)",
    decision="another agent is elected, and ranks of the stopped node move; what the old controller still writes is "
    "refused, and its node is a spare again",
    lost="steps since the checkpoint",
)
def test_a_controller_that_was_stopped_and_wakes_writes_nothing(tmp_path: Path, member: Member, relay: Proxy) -> None:
    with running(tmp_path, *SMALL, "--etcd", relay.host) as job:
        before, leader = job.seats(0, 4), job.controller()
        key = Keys(job.job_id).plan(2)
        sent = relay.catch(b"plans/00000002")  # the last thing that it does before it stops
        fail(job, 1)
        pid = sent.pid()
        os.kill(pid, signal.SIGSTOP)
        job.until(lambda: bool(stored(member, key)), "another controller to plan in its place")
        sent.release()  # etcd gets the old controller's plan only now
        os.kill(pid, signal.SIGCONT)
        runs_without(job, before, leader)
        assert [found["version"] for found in stored(member, key)] == [1], "written once, by one of them"
        job.until(lambda: job.spare(leader), "its node to be a spare again")
        job.finish()

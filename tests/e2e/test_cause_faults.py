"""Which failure came first, whose fault it was, and what becomes of several at once: with real jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.faults import fault
from tests.e2e.job import node_of, running
from tlaunch.launcher.core.events import Exit

SMALL = ("--nodes", "3", "--gpus-per-node", "2", "--spares", "2")
HOUR = 3600

VICTIMS = """
import datetime, os, signal, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
rank = dist.get_rank()
dist.barrier()
if rank == 3:
    os.kill(os.getpid(), signal.SIGSEGV)
match rank:
    case 0:
        dist.recv(torch.ones(1), 3)
    case 1:
        while True:
            dist.send(torch.ones(1_000_000), 3)
    case 2:
        while True:
            dist.monitored_barrier()
"""
"""Ranks that lose another one, each in a different call."""


@fault(
    "job",
    "the same exception at the same place on every try",
    noticed="with the third try in a row that ends alike within ten minutes",
    decision="stop with the script's own exit code, though restarts are left; the traceback is shown once",
    lost="nothing that a restart could have saved",
)
def test_the_same_exception_on_every_try_ends_the_job(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        job.seats(0, 4)
        job.trouble(1, "raise", always=True)
        assert job.ended() == 1
        assert len(job.events()) == 4, "three tries and the end"
        end = job.events()[-1]
        assert "3 tries in a row ended alike, so the fault is the script's" in end["result"]["reason"]
        assert "steps.py" in end["result"]["reason"]
        assert not [move for plan in job.events() for move in plan["decisions"] if "swap" in move]
        failure = end["first_failure"]
        assert (failure["rank"], failure["code"], failure["host"]) == (1, 1, os.uname().nodename)
        report = (tmp_path / "console").read_text().split("the first failure:")[1]
        assert report.count("Traceback (most recent call last)") == 1
        assert "it printed nothing else" in report
        assert report.count("ValueError: the loss is not a number") == 1
        assert "ranks 0,2-3 failed as a consequence of rank 1" in report


@fault(
    "job",
    "a flapping slot",
    noticed="with the third failure of a rank on it, whether by signals or by exceptions that differ",
    decision="taken for bad hardware: its rank moves to a spare; what was counted for --max-restarts is forgiven",
    lost="steps since the checkpoint, each time",
)
def test_a_flapping_slot_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL, "--max-restarts", "2") as job:
        before = job.seats(0, 4)
        job.trouble_on(before[1], "segv")
        after = job.seats(3, 4)
        assert after[1] != before[1]
        assert {**after, 1: before[1]} == before
        assert f"{before[1]} is taken for bad hardware" in " ".join(job.events()[3]["reasons"])
        os.kill(job.trace(2)[-1]["pid"], signal.SIGKILL)
        assert job.seats(4, 4) == after, "two restarts were allowed, and the slot's are forgiven"
        job.finish()


def test_a_failure_that_follows_its_rank_does_not_eat_the_spares(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL, "--max-restarts", "3") as job:
        before = job.seats(0, 4)
        job.trouble(1, "segv", always=True)
        assert job.ended() == 128 + signal.SIGSEGV
        decisions = [decision for plan in job.events() for decision in plan["decisions"]]
        assert [decision.split(":")[0] for decision in decisions if "swap" in decision] == ["swap rank 1"]
        end = job.events()[-1]
        assert f"the failure has followed rank 1 from {before[1]}" in " ".join(end["reasons"])
        assert "--max-restarts 3 reached: 4 failures of the job's own code" in end["result"]["reason"]


POLICY = """
import tlaunch
from tlaunch.topology.model import Slot

class Mover(tlaunch.Policy):
    def on_failure(self, failure, cluster):
        wanted = Slot("node-00", 1)
        to = wanted if wanted in cluster.spares else failure.spare
        return tlaunch.Swap(failure.rank, to=to)
"""


@fault(
    "job",
    "a bad slot that kills whoever lands on it",
    noticed="when a second rank fails on it",
    decision="taken for bad hardware: its rank moves to another spare, and none comes there any more",
    lost="steps since the checkpoint, each time",
)
def test_a_slot_that_kills_whoever_lands_on_it_is_quarantined(tmp_path: Path) -> None:
    """A policy moves every rank that fails, and puts the next one onto the slot that has become free."""
    (tmp_path / "mine.py").write_text(POLICY)
    with running(tmp_path, "--nodes", "3", "--gpus-per-node", "2", "--spares", "4", "--policy", "mine:Mover") as job:
        before = job.seats(0, 2)
        assert before[1] == "node-00/gpu-1"
        job.trouble_on(before[1], "segv")
        assert before[1] not in job.seats(1, 2).values()
        assert job.command("kill", "--gpu", before[0], "--job-id", job.job_id).returncode == 0
        after = job.seats(3, 2)
        assert not set(before.values()) & set(after.values())
        assert f"rank 0: {before[0]} -> {before[1]}" in job.events()[2]["decisions"][0]
        assert "ranks 0, 1 failed there one after the other" in " ".join(job.events()[3]["reasons"])
        job.finish()


def test_real_victims_are_known_as_such(tmp_path: Path) -> None:
    script = tmp_path / "victims.py"
    script.write_text(VICTIMS)
    with running(tmp_path, "--nodes", "1", "--gpus-per-node", "4", "--max-restarts", "0", script=script) as job:
        assert job.ended() == 128 + signal.SIGSEGV, job.told()
        assert job.events()[-1]["first_failure"]["rank"] == 3
        for rank in range(3):
            said = json.loads((job.logs / "generation-1" / f"rank-{rank}" / "error.json").read_text())
            assert Exit(code=1, message=said["message"]["message"]).lost_peer, said


TWO = fault(
    "job",
    "two failures at once",
    noticed="together: whatever has happened until a plan is made is dealt with by it",
    decision="one generation; lost hardware is the cause of everything else, else the rank that failed first",
    lost="steps since the checkpoint",
)


@TWO
def test_two_ranks_fail_at_once(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        for rank in (3, 0):
            os.kill(job.trace(rank)[-1]["pid"], signal.SIGKILL)
        assert job.seats(1, 4) == before
        job.finish()
        assert len(job.events()) == 3


@TWO
def test_a_node_and_a_rank_elsewhere_fail_at_once(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        leader = job.controller()
        lost = next(node for node in map(node_of, before.values()) if node != leader)
        other = next(rank for rank, slot in before.items() if node_of(slot) != lost)
        pid = job.trace(other)[-1]["pid"]
        os.kill(job.agent_pid(lost), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        after = job.seats(1, 4)
        assert lost not in map(node_of, after.values())
        assert after[other] == before[other]
        job.finish()
        assert lost in job.events()[1]["causes"][0]


@fault(
    "job",
    "more failures than spares",
    noticed="when a rank finds no spare within its scope",
    decision="whole replicas are dropped; below --min-world the job stops with that reason",
    lost="steps since the checkpoint; then the replicas' share of speed",
)
def test_more_failures_than_spares(tmp_path: Path) -> None:
    options = ("--nodes", "4", "--gpus-per-node", "1", "--spares", "1", "--min-world", "2")
    with running(tmp_path, *options) as job:
        seats = job.seats(0, 3)
        for restarts, world in ((1, 3), (2, 2)):
            assert job.command("kill", "--gpu", seats[0], "--job-id", job.job_id).returncode == 0
            lost, seats = seats[0], job.seats(restarts, world)
            assert lost not in seats.values()
        assert job.command("kill", "--gpu", seats[0], "--job-id", job.job_id).returncode == 0
        assert job.ended() == 1
        reason = job.events()[-1]["result"]["reason"]
        assert reason.startswith("1 ranks are left, --min-world is 2: rank 0 on ")


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """What sets clocks ahead, for LD_PRELOAD."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "this test needs a C compiler, as cc or gcc"
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


@fault(
    "node",
    "clock moved by an hour",
    noticed="not at all: nodes are compared by their monotonic clocks, which the controller reads when ranks fail",
    decision="the rank that failed first is named, whatever its node's wall clock shows",
    lost="nothing",
)
@pytest.mark.parametrize(("ahead", "cause"), [(HOUR, 0), (-HOUR, 1)])
def test_no_wall_clock_makes_a_victim_the_cause(
    tmp_path: Path, clock: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, cause: int
) -> None:
    """By the wall clocks the victim came first, and it hides what has happened to it: only another clock can tell."""
    monkeypatch.setenv("LD_PRELOAD", str(clock))
    monkeypatch.setenv("CLOCK_NODE", "node-00")
    monkeypatch.setenv("CLOCK_AHEAD", str(ahead))
    options = ("--nodes", "2", "--gpus-per-node", "1", "--max-restarts", "0")
    with running(tmp_path, *options, arguments=(str(tmp_path / "work"), "--hide")) as job:
        seats = job.seats(0, 2)
        assert [hours_ahead(job.trace(rank)[-1]["time"]) for rank in (0, 1)] == [ahead // HOUR, 0]
        job.trouble(cause, "segv")
        assert job.ended() == 128 + signal.SIGSEGV, job.told()
        said = (job.logs / "agents" / "node-00.log").read_text()[: len("2026-01-31 00:00:00")]
        assert hours_ahead(time.mktime(time.strptime(said, "%Y-%m-%d %H:%M:%S"))) == ahead // HOUR
        end = job.events()[-1]
        assert (end["first_failure"]["rank"], end["first_failure"]["slot"]) == (cause, seats[cause])
        assert f"rank {1 - cause} failed as a consequence of rank {cause}; that is not counted" in end["reasons"]


def hours_ahead(seen: float) -> int:
    """Return by how much a clock is ahead of ours."""
    return round((seen - time.time()) / HOUR)

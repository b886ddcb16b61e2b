"""Failures that the main job survives, end to end: real etcd, real gloo ranks, real kills, an unmodified script."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.faults import fault
from tests.e2e.job import running

SMALL = ("--nodes", "3", "--gpus-per-node", "2", "--spares", "2")


def crash(what: str) -> pytest.MarkDecorator:
    """Every way in which a process ends by itself is seen in the same way, and leads to the same decision."""
    return fault(
        "worker",
        what,
        noticed="at once: the agent holds a pidfd",
        decision="restart in place, from a warm standby; the report has how it ended and the first traceback",
        lost="steps since the checkpoint",
    )


def test_a_job_runs_and_ends(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL, arguments=(str(tmp_path / "work"), "--steps", "5")) as job:
        assert job.ended() == 0, job.told()
        assert [entry["step"] for entry in job.trace(3)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("raise", marks=crash("exception")),
        pytest.param("exit", marks=crash("sys.exit(n)")),
        pytest.param("segv", marks=crash("segfault")),
    ],
)
def test_a_worker_that_fails_is_restarted_in_place(tmp_path: Path, how: str) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        job.trouble(1, how)
        assert job.seats(1, 4) == before
        job.finish()
        assert "restart" in job.events()[1]["decisions"][0]


@crash("killed (SIGKILL)")
def test_a_killed_worker_is_restarted_in_place_and_resumes(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        os.kill(job.trace(2)[-1]["pid"], signal.SIGKILL)
        assert job.seats(1, 4) == before
        job.finish()
        steps = [entry["step"] for entry in job.trace(0)]
        assert steps == sorted(steps), "no step is lost, since rank 0 writes its checkpoint before it goes on"
        assert "signal 9" in job.events()[1]["causes"][0] or "SIGKILL" in job.events()[1]["causes"][0]


def test_a_rank_on_a_bad_gpu_moves_inside_its_rack_and_keeps_its_number(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        answer = job.command("kill", "--gpu", before[1], "--job-id", job.job_id)
        assert answer.returncode == 0, answer.stderr
        after = job.seats(1, 4)
        assert after[1] != before[1]
        assert {**after, 1: before[1]} == before
        job.finish()


@fault(
    "job",
    "more failures than spares",
    noticed="as any failure",
    decision="the job shrinks by whole replicas of `--mesh`",
    lost="steps since the checkpoint; the replica's share of the batch",
)
def test_with_no_spare_left_whole_replicas_are_dropped(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "3", "--gpus-per-node", "2", "--mesh", "dp=3,tp=2") as job:
        before = job.seats(0, 6)
        assert job.command("kill", "--gpu", before[1], "--job-id", job.job_id).returncode == 0
        after = job.seats(1, 4)
        assert before[1] not in after.values()
        job.finish()
        assert job.events()[1]["world_size"] == 4


@fault(
    "job",
    "more failures than spares",
    noticed="as any failure",
    decision="below `--min-world` the job stops with that reason",
    lost="the job; steps since the checkpoint",
)
def test_below_min_world_the_job_stops_with_one_reason(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "2", "--gpus-per-node", "1", "--min-world", "2") as job:
        before = job.seats(0, 2)
        assert job.command("kill", "--gpu", before[1], "--job-id", job.job_id).returncode == 0
        assert job.ended() == 1
        assert "--min-world" in job.events()[-1]["result"]["reason"]


def test_a_script_that_always_fails_ends_the_job_with_its_own_code(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "1", "--gpus-per-node", "2", "--max-restarts", "1") as job:
        job.seats(0, 2)
        job.trouble(1, "exit", always=True)
        assert job.ended() == 7
        assert len(job.events()) == 3, "the first plan, one restart, the end"

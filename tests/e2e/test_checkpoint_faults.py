"""Checkpoints under tlaunch: what was captured is saved, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.e2e.faults import fault
from tests.e2e.job import Job, node_of, running
from tlaunch.checkpoint.catalog import committed
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.launcher.control.timing import Timing

PAIR = ("--nodes", "2", "--gpus-per-node", "1")
RANKS = (0, 1)
SAVES = Path(__file__).parent / "scripts" / "saves.py"


def until(job: Job, step: int) -> None:
    """Let the ranks go on to a step."""
    (job.folder / "until.draft").write_text(str(step))
    (job.folder / "until.draft").rename(job.folder / "until")


def steps(job: Job) -> list[int]:
    return [address.step for address in committed(LocalFiles(job.folder / "ck"))]


def saver_of(job: Job, node: str) -> psutil.Process:
    """Return the saver of a node."""
    found = [
        child
        for child in psutil.Process(job.agent_pid(node)).children()
        if "tlaunch.checkpoint.saver" in child.cmdline()
    ]
    assert len(found) == 1, "each node has its own"
    return found[0]


def saved(job: Job, step: int) -> None:
    """Wait until every rank knows that a step is saved."""
    for rank in RANKS:
        assert job.until_written(job.folder / f"saved-{step}-{rank}") == "True"


def first_step(job: Job) -> None:
    """Have the first step saved, and see that everybody knows."""
    until(job, 1)
    saved(job, 1)


def captured(job: Job, step: int) -> None:
    """Have a step captured by every rank."""
    until(job, step)
    for rank in RANKS:
        job.until_written(job.folder / f"captured-{step}-{rank}")


def only_captured(job: Job, step: int, ranks: Sequence[int] = RANKS) -> list[psutil.Process]:
    """Have a step captured, and stop the savers of some ranks before they write anything of it; returns them."""
    savers = [saver_of(job, host_of(job, rank)) for rank in ranks]
    for saver in savers:
        saver.suspend()
    captured(job, step)
    return savers


def started(job: Job, restart: int) -> list[int]:
    """Return where the ranks go on after so many restarts."""
    return [int(job.until_written(job.folder / f"start-{rank}-{restart}")) for rank in RANKS]


def gone(*processes: psutil.Process) -> bool:
    """Whether all have ended; whoever is to reap an orphan may take its time."""
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def kill(job: Job, rank: int, restart: int = 0) -> None:
    """Kill a rank, and wait until it is gone."""
    process = process_of(job, rank, restart)
    process.kill()
    job.until(lambda: gone(process), f"the end of rank {rank}")


def process_of(job: Job, rank: int, restart: int = 0) -> psutil.Process:
    """Return the process of a rank."""
    return psutil.Process(int((job.folder / f"making-{rank}-{restart}").read_text().split()[0]))


def host_of(job: Job, rank: int, restart: int = 0) -> str:
    """Return the node of a rank."""
    return node_of((job.folder / f"making-{rank}-{restart}").read_text().split()[1])


@fault(
    "checkpoint",
    "saver killed",
    noticed="at once: its connections to the ranks break, and the agent holds a pidfd",
    decision="another one is started, and given what it was writing, which is still in memory; after 5 in a row, each "
    "within 10 min, no more is saved on this node: futures fail, each step is logged, training goes on",
    lost="nothing",
)
def test_a_saver_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR, script=SAVES) as job:
        first_step(job)
        (saver,) = only_captured(job, 2, [1])
        saver.kill()
        saved(job, 2)
        assert saver_of(job, host_of(job, 1)).pid != saver.pid
        job.finish()
        assert steps(job) == [1, 2]
        assert len(job.events()) == 2, "no rank has noticed"
        assert "the saver has ended with -9; another one is started" in (tmp_path / "console").read_text()


@fault(
    "checkpoint",
    "rank killed in the middle of a save",
    noticed="at once: the agent holds a pidfd",
    decision="what all ranks had captured is written and committed before the ranks that are started again look for "
    "the newest checkpoint; they wait for that, 60 s at most",
    lost="steps since the save",
)
def test_what_was_captured_when_a_rank_was_killed_is_restored(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR, script=SAVES) as job:
        first_step(job)
        savers = only_captured(job, 2)
        kill(job, 1)
        for rank in RANKS:
            job.until_written(job.folder / f"making-{rank}-1")
        assert steps(job) == [1], "nothing has been written yet, and the new ranks are waiting"
        for saver in savers:
            saver.resume()
        assert started(job, 1) == [2, 2]
        assert steps(job) == [1, 2]
        assert [saver_of(job, host_of(job, rank, 1)) for rank in RANKS] == savers, "the same savers go on"
        captured(job, 3)
        job.finish()
        assert steps(job) == [1, 2, 3]


@fault(
    "checkpoint",
    "rank killed in the middle of a save",
    noticed="at once: the agent holds a pidfd",
    decision="when it had not captured the step, nobody ever sees that step; what others have written of it is removed "
    "by the ranks that are started again",
    lost="steps since the save before",
)
def test_what_was_not_captured_when_a_rank_was_killed_is_not_seen(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR, script=SAVES) as job:
        first_step(job)
        (job.folder / "hold").touch()
        part = job.folder / "ck" / "step-000000002.g00001" / "rank-00000.json"
        (job.folder / "die-2-1").write_text(str(part))
        until(job, 2)
        job.until_written(part)
        assert steps(job) == [1]
        (job.folder / "hold").unlink()
        assert started(job, 1) == [1, 1]
        assert not part.parent.exists()
        saved(job, 2)  # the same step, by the next generation
        job.finish()
        assert steps(job) == [1, 2]


@fault(
    "agent",
    "killed during a save",
    noticed="at once: its ranks die with it, by their lifelines; its saver sees its own end of a pipe",
    decision=f"the saver writes what was captured and ends, within {Timing().saver:g} s; the node's ranks move to "
    "spares, which do not wait for it",
    lost="steps since the save, or since the one before when the spares were faster than the saver",
)
def test_a_saver_finishes_without_its_agent(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "3", "--gpus-per-node", "1", "--spares", "1", script=SAVES) as job:
        first_step(job)
        (job.folder / "hold").touch()
        (saver,) = only_captured(job, 2, [1])
        os.kill(job.agent_pid(host_of(job, 1)), signal.SIGKILL)
        saver.resume()
        job.until(lambda: gone(saver), "the end of the saver")
        job.until(lambda: steps(job) == [1, 2], "the step to be committed, by whichever saver was the last")
        (job.folder / "hold").unlink()
        assert started(job, 1) == [2, 2]
        job.finish()


def test_what_was_captured_is_written_before_a_stopped_job_ends(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR, script=SAVES) as job:
        first_step(job)
        ranks = [process_of(job, rank) for rank in RANKS]
        savers = only_captured(job, 2)
        job.process.send_signal(signal.SIGINT)
        job.until(lambda: gone(*ranks), "the end of the ranks")
        for saver in savers:
            saver.resume()
        assert job.ended() == 128 + signal.SIGINT
        assert gone(*savers), "and the savers are gone before the launcher is"
        assert steps(job) == [1, 2]


def test_a_job_without_checkpoints_has_no_saver(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        family = psutil.Process(job.process.pid).children(recursive=True)
        assert not [process for process in family if "tlaunch.checkpoint.saver" in process.cmdline()]
        job.finish()

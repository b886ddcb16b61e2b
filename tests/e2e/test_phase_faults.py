"""A second failure while the first one is being recovered from, in each phase of that."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil
import pytest

from tests.e2e.faults import fault
from tests.e2e.job import STEPS, Job, node_of, running
from tests.support.proxy import Proxy
from tlaunch.launcher.control.meeting import STORE_MODULE

PHASES = STEPS.with_name("phases.py")
SMALL = ("--nodes", "3", "--gpus-per-node", "2", "--spares", "2")
What = Literal["rank", "node"]

POLICY = '''
import pathlib, time
import tlaunch

class Slow(tlaunch.Policy):
    """Takes its time over the first failure."""

    def on_failure(self, failure, cluster):
        decided = pathlib.Path("work/decided")
        if not decided.exists():
            pathlib.Path("work/deciding").touch()
            until = time.monotonic() + 1.5
            while not decided.exists() and time.monotonic() < until:
                time.sleep(0.01)
            decided.touch()
        return super().on_failure(failure, cluster)
'''

in_each_phase = fault(
    "job",
    "a failure in each phase of a recovery",
    noticed="as any failure is: a rank at once, a node with its connections or its lease (4 s)",
    decision="what is under way is dropped for a newer generation; ranks of a lost node move",
    lost="steps since the checkpoint",
)


class Stage:
    """A job with four ranks on two nodes, and what may be done to it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.before = job.seats(0, 4)
        self.controller = job.controller()
        nodes = sorted({node_of(slot) for slot in self.before.values()}, key=lambda node: node == self.controller)
        self.lost = nodes[0]
        """A node with ranks, not the controller's. What happens first happens on the other one."""
        self.first = min(rank for rank, slot in self.before.items() if node_of(slot) == nodes[1])
        self.second = max(rank for rank, slot in self.before.items() if node_of(slot) == nodes[0])

    def pause(self, rank: int, phase: str, restarts: int) -> None:
        """Have a rank wait in a phase, when the job has been started again so often."""
        draft = self.job.folder / "pause.draft"
        draft.write_text(json.dumps({"rank": rank, "restarts": restarts, "phase": phase}))
        draft.rename(self.job.folder / "pause")

    def paused(self) -> None:
        self.job.until((self.job.folder / "paused").exists, "a rank to pause")

    def began(self, rank: int, restarts: int) -> int:
        """Wait until a rank has been started so often again, and return its pid."""
        path = self.job.folder / f"began-{rank}"
        self.job.until(lambda: json.loads(path.read_text())["restarts"] == restarts, f"rank {rank} to begin")
        return int(json.loads(path.read_text())["pid"])

    def fail(self) -> None:
        """The first failure."""
        os.kill(self.job.last(self.first)["pid"], signal.SIGKILL)

    def harm(self, what: What, pid: int) -> None:
        """The second failure: of one rank, or of its whole node."""
        os.kill(self.job.agent_pid(self.lost) if what == "node" else pid, signal.SIGKILL)

    def fails_again(self, what: What, *, while_waits: int, phase: str) -> None:
        """Both failures, the second one while a rank that has been started again waits in a phase, and the recovery."""
        self.pause(while_waits, phase, 1)
        self.fail()
        self.paused()
        self.harm(what, self.began(self.second, 1))
        self.recovers(what)

    def recovers(self, what: What) -> None:
        """Check that every rank goes on, with its number, and where it was if its node is still there."""
        after: dict[int, str] = {}

        def everybody() -> bool:
            restarts = self.job.events()[-1]["restart_count"]
            entries = [(self.job.trace(rank) or [{}])[-1] for rank in range(4)]
            after.update({rank: entry.get("TLAUNCH_SLOT", "") for rank, entry in enumerate(entries)})
            return restarts > 0 and all(entry.get("TORCHELASTIC_RESTART_COUNT") == str(restarts) for entry in entries)

        self.job.until(everybody, "all ranks to complete a step of the last generation")
        for rank, slot in self.before.items():
            assert (after[rank] == slot) == (what == "rank" or node_of(slot) != self.lost), after
        assert len(self.job.events()) <= 3, self.job.told()
        steps = [entry["step"] for entry in self.job.trace(0)]
        assert steps == sorted(set(steps)), "no step is lost or done twice: rank 0 writes its checkpoint first"
        self.job.finish()


@contextmanager
def stage(tmp_path: Path, *options: str) -> Iterator[Stage]:
    with running(tmp_path, *SMALL, *options, script=PHASES) as job:
        yield Stage(job)


both = pytest.mark.parametrize("what", ["rank", "node"])


@in_each_phase
@both
def test_while_the_first_failure_is_decided_on(tmp_path: Path, what: What) -> None:
    (tmp_path / "slow.py").write_text(POLICY)
    with stage(tmp_path, "--policy", "slow:Slow") as on:
        on.pause(on.second, "step", 0)  # so that it does not fail with its peers
        on.paused()
        pid = on.job.last(on.second)["pid"]
        on.fail()
        on.job.until((on.job.folder / "deciding").exists, "the policy to be asked")
        on.harm(what, pid)
        (on.job.folder / "decided").touch()
        on.recovers(what)


@in_each_phase
@both
def test_while_the_plan_is_written(tmp_path: Path, relay: Proxy, what: What) -> None:
    with stage(tmp_path, "--etcd", relay.host) as on:
        on.pause(on.second, "step", 0)
        on.paused()
        written = relay.catch(b"plans/00000002")
        pid = on.job.last(on.second)["pid"]
        on.fail()
        assert written.pid() == on.job.agent_pid(on.controller)
        on.harm(what, pid)
        written.release()
        on.recovers(what)


@in_each_phase
@both
def test_while_ranks_start(tmp_path: Path, what: What) -> None:
    with stage(tmp_path) as on:
        on.fails_again(what, while_waits=on.second, phase="start")


@in_each_phase
@both
def test_in_init_process_group(tmp_path: Path, what: What) -> None:
    with stage(tmp_path) as on:
        on.fails_again(what, while_waits=on.first, phase="start")  # the others wait for it in there


@in_each_phase
@both
def test_before_the_first_step(tmp_path: Path, what: What) -> None:
    with stage(tmp_path) as on:
        on.fails_again(what, while_waits=on.second, phase="first")


@in_each_phase
def test_where_the_ranks_meet_is_lost_while_they_do(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        last = max(on.before, key=lambda rank: node_of(on.before[rank]) != node_of(on.before[0]))
        on.pause(last, "start", 1)
        on.lost = node_of(on.before[0])
        os.kill(on.job.last(last)["pid"], signal.SIGKILL)
        on.paused()
        os.kill(on.job.agent_pid(on.lost), signal.SIGKILL)
        on.recovers("node")


@in_each_phase
def test_the_store_of_the_process_group_dies_while_ranks_meet(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        on.pause(on.second, "start", 1)
        on.fail()
        on.paused()
        processes = psutil.Process(on.job.process.pid).children(recursive=True)
        (store,) = (process for process in processes if STORE_MODULE in " ".join(process.cmdline()))
        store.kill()
        on.recovers("rank")

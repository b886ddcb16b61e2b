"""A job that has lost a replica takes it back when the node is there again."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil

from tests.e2e.faults import fault
from tests.e2e.job import node_of, running
from tests.e2e.test_agent_faults import registered_pid, roles, started_again

AT_ONCE = """
import tlaunch

class AtOnce(tlaunch.Policy):
    def on_room(self, room, cluster):
        return tlaunch.Grow(room.replicas)
"""


@fault(
    "job",
    "a lost node comes back after a shrink",
    noticed="when its agent registers",
    decision="the job grows to its old size with the next generation that restarts every rank; at once by policy",
    lost="nothing more; by policy the steps since the checkpoint",
)
def test_a_shrunk_job_grows_at_the_next_failure(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "2", "--gpus-per-node", "1") as job, contextlib.ExitStack() as stack:
        name = next(node_of(slot) for slot in job.seats(0, 2).values() if node_of(slot) != job.controller())
        agent = psutil.Process(job.agent_pid(name))
        command, env = agent.cmdline(), agent.environ()
        agent.kill()
        (left,) = job.seats(1, 1).values()
        again = stack.enter_context(started_again(command, env))
        job.until(lambda: registered_pid(job, name, env) == again.pid, "it to be registered")
        job.until(lambda: roles(job, name) == ["spare"], "its slot to be a spare")
        assert job.seats(1, 1) == {0: left}, "nobody is restarted for it"
        os.kill(job.trace(0)[-1]["pid"], signal.SIGKILL)
        grown = job.seats(2, 2)
        assert grown[0] == left
        assert node_of(grown[1]) == name
        job.finish()


def test_a_policy_lets_a_job_grow_at_once(tmp_path: Path) -> None:
    (tmp_path / "at_once.py").write_text(AT_ONCE)
    options = ("--nodes", "2", "--gpus-per-node", "1", "--policy", "at_once:AtOnce")
    with running(tmp_path, *options) as job, contextlib.ExitStack() as stack:
        name = next(node_of(slot) for slot in job.seats(0, 2).values() if node_of(slot) != job.controller())
        agent = psutil.Process(job.agent_pid(name))
        command, env = agent.cmdline(), agent.environ()
        agent.kill()
        (left,) = job.seats(1, 1).values()
        stack.enter_context(contextlib.chdir(tmp_path))  # where the policy is found
        stack.enter_context(started_again(command, env))
        grown = job.seats(2, 2)
        assert (grown[0], node_of(grown[1])) == (left, name)
        job.finish()

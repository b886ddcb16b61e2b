"""A policy of the user's decides within its time, or the ladder does."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.core.world import World, racks
from tlaunch.launcher.control.deciding import Decider
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.decisions import Decision, Stop
from tlaunch.launcher.core.detect import detect
from tlaunch.launcher.core.planner import Outcome
from tlaunch.launcher.core.policy import Failure, Policy

SHORT, LONG = 0.05, 30.0


class Slow(Policy):
    """Stops the job, once it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.asked = 0
        self.thread: threading.Thread | None = None

    def on_failure(self, failure: Failure, cluster: Cluster) -> Decision:
        self.asked += 1
        self.thread = threading.current_thread()
        self.let.wait(LONG)
        return Stop("I have thought about it")


@pytest.fixture
def slow() -> Iterator[Slow]:
    policy = Slow()
    yield policy
    policy.let.set()


@pytest.fixture
def failed() -> Cluster:
    world = World.started(racks(1, 2, 2), "dp=2", 2)
    world.crash(1)
    return world.cluster


async def decided(decider: Decider, cluster: Cluster) -> Outcome:
    return await decider.decide(cluster, detect(cluster))


def decisions(outcome: Outcome) -> tuple[str, ...]:
    assert outcome.plan is not None
    return outcome.plan.decisions


async def test_a_policy_that_answers_in_time_decides(slow: Slow, failed: Cluster) -> None:
    slow.let.set()
    assert decisions(await decided(Decider(slow, LONG), failed)) == ("end with exit code 1: I have thought about it",)
    assert slow.thread is not threading.main_thread()


async def test_the_ladder_decides_when_a_policy_takes_too_long(slow: Slow, failed: Cluster) -> None:
    outcome = await decided(Decider(slow, SHORT), failed)
    assert decisions(outcome)[0].startswith("restart rank 1 in place")
    assert outcome.plan is not None
    assert outcome.plan.reasons == ("policy Slow took longer than 0.05 s; the ladder decides",)


async def test_a_policy_is_not_asked_again_before_it_has_come_back(slow: Slow, failed: Cluster) -> None:
    decider = Decider(slow, SHORT)
    await decided(decider, failed)
    outcome = await decided(decider, failed)
    assert outcome.plan is not None
    assert outcome.plan.reasons[0].startswith("policy Slow has not come back from an earlier question")
    assert slow.asked == 1
    assert slow.thread is not None
    slow.let.set()
    slow.thread.join(LONG)
    assert decisions(await decided(decider, failed)) == ("end with exit code 1: I have thought about it",)


async def test_the_default_policy_decides_at_once(failed: Cluster) -> None:
    deciding = Decider(Policy(), LONG).decide(failed, detect(failed))
    with pytest.raises(StopIteration) as done:
        deciding.send(None)
    assert decisions(done.value.value)[0].startswith("restart rank 1 in place")


async def test_a_policy_that_exits_ends_nothing(failed: Cluster) -> None:
    class Exits(Policy):
        def on_failure(self, failure: Failure, cluster: Cluster) -> Decision:
            sys.exit(3)

    outcome = await decided(Decider(Exits(), LONG), failed)
    assert outcome.plan is not None
    assert outcome.plan.reasons == ("policy Exits raised SystemExit: 3; the ladder decides",)


def test_a_policy_that_never_comes_back_does_not_keep_the_agent_from_its_end() -> None:
    program = """
import asyncio, threading
from tests.core.world import World, racks
from tlaunch.launcher.control.deciding import Decider
from tlaunch.launcher.core.detect import detect
from tlaunch.launcher.core.policy import Policy

class Hangs(Policy):
    def on_failure(self, failure, cluster):
        threading.Event().wait()

world = World.started(racks(1, 2, 2), "dp=2", 2)
world.crash(1)
outcome = asyncio.run(Decider(Hangs(), 0.05).decide(world.cluster, detect(world.cluster)))
print(outcome.plan.decisions[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, check=True)
    assert done.stdout.startswith("restart rank 1 in place")

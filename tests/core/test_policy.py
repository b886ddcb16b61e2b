"""Policies that users write: what they see, what they may say, and what becomes of it when they may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

import tlaunch
from tests.core.world import World, racks
from tlaunch.launcher.core.decisions import Decision, MoveGroup, Restart, Shrink, Stop, Swap, Wait
from tlaunch.launcher.core.plan import Result
from tlaunch.topology.model import Machine, Node, Slot


class MyPolicy(tlaunch.Policy):
    """The example of the documentation."""

    def on_failure(self, failure: tlaunch.Failure, cluster: tlaunch.Cluster) -> tlaunch.Decision:
        spare = cluster.spares.nearest(failure.slot, within="rack")
        return tlaunch.Swap(failure.rank, to=spare) if spare else tlaunch.Shrink(replicas=1)


class Scripted(tlaunch.Policy):
    """Says what it is told to say, and notes what it was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[tlaunch.Failure, tlaunch.Cluster]] = []

    def on_failure(self, failure: tlaunch.Failure, cluster: tlaunch.Cluster) -> Decision:
        self.asked.append((failure, cluster))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if callable(answer):
            answer = answer(failure, cluster)
        return answer  # type: ignore[return-value]


def job(*answers: object, max_restarts: int = 3, min_world: int = 1) -> World:
    """Return dp=4,tp=2 on four nodes of two racks, with a spare node in each rack and this policy."""
    return World.started(
        racks(2, 3, 2), "dp=4,tp=2", 4, policy=Scripted(*answers), max_restarts=max_restarts, min_world=min_world
    )


def test_the_example_of_the_documentation_works_literally() -> None:
    world = World.started(racks(2, 3, 2), "dp=4,tp=2", 4, policy=MyPolicy())
    world.crash_all(first=3)
    world.look()
    assert world.seats()[3] == Slot("r0-n2", 0)
    assert world.plan.restarts == 1
    world.lose("r0-n0", "r0-n2")
    world.look()
    assert str(world.plan.mesh) == "dp=3,tp=2", "rank 3 is back on its first slot, which nobody else needs"
    assert not [reason for reason in world.plan.reasons if "policy" in reason]


def test_a_policy_sees_who_failed_why_and_what_there_is() -> None:
    world = job(lambda failure, _: Swap(failure.rank, failure.spare))
    world.lose("r1-n1")
    world.look()
    assert isinstance(world.policy, Scripted)
    (first, before), (second, after) = world.policy.asked
    assert (first.kind, first.rank, first.slot, first.spare) == ("node", 6, Slot("r1-n1", 0), Slot("r1-n2", 0))
    assert str(first) == "rank 6 on r1-n1/gpu-0 lost its node: its agent is gone"
    assert (second.rank, second.spare) == (7, Slot("r1-n2", 1))
    assert before.spares.by_rack == {"r0": 2, "r1": 2}
    assert after.spares.by_rack == {"r0": 2, "r1": 1}, "the first decision is made"
    assert after.plan is not None
    assert after.plan.seats[6].slot == Slot("r1-n2", 0)
    assert list(after.spares) == [Slot("r0-n2", 0), Slot("r0-n2", 1), Slot("r1-n2", 1)]
    assert len(after.spares) == 3
    assert after.spares[0] in after.spares
    assert after.spares.in_rack("r1") == (Slot("r1-n2", 1),)
    assert after.spares.nearest(Slot("r1-n0", 0)) == Slot("r1-n2", 1)
    assert after.spares.nearest(Slot("r1-n0", 0), within="node") is None


def test_a_policy_is_asked_once_about_a_crash_and_sees_the_history() -> None:
    world = job(lambda failure, _: Restart(failure.rank))
    for first in (2, 5):
        world.crash_all(first)
        world.look()
    assert isinstance(world.policy, Scripted)
    failures = [failure for failure, _ in world.policy.asked]
    assert [(failure.kind, failure.rank) for failure in failures] == [("crash", 2), ("crash", 5)]
    assert failures[1].exit is not None
    assert failures[1].exit.message == "RuntimeError: boom"
    assert [plan.generation for plan in world.policy.asked[1][1].history] == [1]
    assert world.policy.asked[1][1].waiting_since is None


def test_the_next_failures_are_seen_in_the_light_of_another_choice() -> None:
    """The first takes the spare that was meant for the second, so that the second is offered another one."""
    world = job(
        lambda failure, _: Swap(failure.rank, Slot("r0-n2", 1)), lambda failure, _: Swap(failure.rank, failure.spare)
    )
    world.lose("r0-n0")
    world.look()
    assert world.seats()[0] == Slot("r0-n2", 1)
    assert world.seats()[1] == Slot("r0-n2", 0)


def test_a_policy_may_shrink_though_there_are_spares() -> None:
    world = job(Shrink(replicas=2))
    world.fail(world.seats()[2])
    world.look()
    assert str(world.plan.mesh) == "dp=2,tp=2"
    assert [seat.slot.node for seat in world.plan.seats] == ["r0-n0", "r0-n0", "r1-n0", "r1-n0"]


def test_a_policy_may_stop_with_its_own_code() -> None:
    world = job(Stop("enough", 7))
    world.crash(1)
    world.look()
    assert world.result == Result(7, "enough", "Traceback of rank 1\nRuntimeError: boom")


# --- moving a whole group --------------------------------------------------------------------------------------------


def nodes_with_nvlink(count: int) -> Machine:
    """Return one rack of nodes of four slots, each of which is an NVLink domain."""
    return Machine(tuple(Node(f"n{index}", 4, domain=f"n{index}", rack="r") for index in range(count)))


def take_the_offer(failure: tlaunch.Failure, _: tlaunch.Cluster) -> Decision:
    return MoveGroup(failure.rank) if failure.group_move else Swap(failure.rank, cast("Slot", failure.spare))


def test_a_policy_may_move_a_whole_group() -> None:
    world = World.started(nodes_with_nvlink(3), "dp=2,tp=4", 4, policy=Scripted(take_the_offer))
    before = world.seats()
    world.fail(before[1])
    world.fail(before[2])
    world.look()
    assert {rank: str(slot) for rank, slot in world.seats().items() if slot != before[rank]} == {
        rank: f"n2/gpu-{rank}" for rank in range(4)
    }
    assert world.plan.decisions == (
        "move ranks 0-3 (tp=4) to the NVLink domain of n2, instead of 2 domains; 2 of them are healthy",
    )
    assert isinstance(world.policy, Scripted)
    assert len(world.policy.asked) == 1, "rank 2 has moved with its group"
    assert [str(slot) for slot in world.cluster.spares] == ["n0/gpu-0", "n0/gpu-3"]


def test_the_ladder_moves_no_healthy_rank_but_says_what_it_could() -> None:
    world = World.started(nodes_with_nvlink(3), "dp=2,tp=4", 4)
    before = world.seats()
    world.fail(before[1])
    world.look()
    assert [rank for rank, slot in world.seats().items() if slot != before[rank]] == [1]
    assert world.plan.reasons[-1] == (
        "offered, but not taken: move ranks 0-3 (tp=4) to the NVLink domain of n2, instead of 2 domains; "
        "3 of them are healthy"
    )


def test_a_group_may_move_and_the_job_shrink_at_once() -> None:
    world = World.started(nodes_with_nvlink(5), "dp=3,tp=4", 8, policy=Scripted(take_the_offer, Shrink()))
    before = world.seats()
    world.fail(before[1])
    world.fail(before[9])
    world.look()
    assert str(world.plan.mesh) == "dp=2,tp=4"
    assert [str(world.seats()[rank]) for rank in range(4)] == [f"n4/gpu-{rank}" for rank in range(4)]


def test_without_an_offer_the_ladder_decides() -> None:
    world = job(MoveGroup(0))
    world.lose("r0-n0")
    world.look()
    assert world.plan.reasons[0] == (
        "policy Scripted: move the whole group of rank 0 is refused: no other NVLink domain in the scope is offered "
        "for its group; the ladder decides"
    )
    assert world.seats()[0] == Slot("r0-n2", 0)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "NoneType is refused: expected a decision"),
        ("swap", "str is refused: expected a decision"),
        (object(), "object is refused: expected a decision"),
        (Swap(1, Slot("r0-n2", 0)), "swap rank 1 to r0-n2/gpu-0 is refused: the failure is that of rank 0"),
        (Swap(True, Slot("r0-n2", 0)), "swap rank True to r0-n2/gpu-0 is refused: the failure is that of rank 0"),
        (Swap(0, Slot("r9-n9", 0)), "swap rank 0 to r9-n9/gpu-0 is refused: the machine has no such slot"),
        (Swap(0, Slot("r0-n2", 7)), "swap rank 0 to r0-n2/gpu-7 is refused: the machine has no such slot"),
        (Swap(0, cast("Slot", None)), "swap rank 0 to None is refused: the machine has no such slot"),
        (Swap(0, Slot("r0-n1", 1)), "swap rank 0 to r0-n1/gpu-1 is refused: r0-n1/gpu-1 has rank 3"),
        (Swap(0, Slot("r0-n0", 0)), "swap rank 0 to r0-n0/gpu-0 is refused: r0-n0/gpu-0 has rank 0"),
        (Swap(0, Slot("r0-n2", 1)), "swap rank 0 to r0-n2/gpu-1 is refused: r0-n2/gpu-1 cannot be used: ECC"),
        (
            Swap(0, Slot("r1-n2", 0)),
            "swap rank 0 to r1-n2/gpu-0 is refused: r1-n2/gpu-0 is outside --swap-scope rack of r0-n0/gpu-0",
        ),
        (Restart(0), "restart rank 0 in place is refused: r0-n0/gpu-0 cannot be used: XID 79"),
        (Shrink(0), "shrink by 0 replicas is refused: expected to shrink by 1 replica or more"),
        (Shrink(4), "shrink by 4 replicas is refused: dp=4,tp=2 has no 4 replicas to spare"),
        (Shrink(3), "shrink by 3 replicas is refused: 2 ranks would be left, --min-world is 4"),
        (Stop(""), "stop: is refused: a stop needs a reason"),
        (Stop("x", 256), "stop: x is refused: expected an exit code from 0 to 255, got 256"),
        (
            Wait(cast("float", "soon"), "x"),
            "wait soon s: x is refused: expected to wait more than 0 and at most 300 seconds",
        ),
        (Wait(0, "x"), "wait 0 s: x is refused: expected to wait more than 0 and at most 300 seconds"),
        (Wait(301, "x"), "wait 301 s: x is refused: expected to wait more than 0 and at most 300 seconds"),
        (Wait(float("nan"), "x"), "wait nan s: x is refused: expected to wait more than 0 and at most 300 seconds"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason_and_the_ladder_decides(answer: object, reason: str) -> None:
    world = job(answer, min_world=4)
    world.fail(Slot("r0-n2", 1), "ECC")
    world.fail(Slot("r0-n0", 0))
    world.look()
    assert world.plan.reasons == (f"policy Scripted: {reason}; the ladder decides",)
    assert world.seats()[0] == Slot("r0-n2", 0), "the nearest spare, as without the policy"


def test_a_policy_that_raises_is_named_and_the_ladder_decides() -> None:
    def fail(failure: tlaunch.Failure, cluster: tlaunch.Cluster) -> Decision:
        raise KeyError("no\nsuch thing")

    world = job(fail)
    world.crash(0)
    world.look()
    assert world.plan.decisions == ("restart rank 0 in place on r0-n0/gpu-0 (restart 1 of 3)",)
    assert world.plan.reasons == ("policy Scripted raised KeyError: 'no\\nsuch thing'; the ladder decides",)


@pytest.mark.parametrize(
    "answer", [lambda f, _: Restart(f.rank), lambda f, c: Swap(f.rank, c.spares[0]), lambda *_: Shrink()]
)
def test_no_policy_restarts_more_often_than_the_user_allows(
    answer: Callable[[tlaunch.Failure, tlaunch.Cluster], Decision],
) -> None:
    world = job(answer, max_restarts=1)
    world.crash(0)
    world.look()
    world.crash(0)
    world.look()
    whose = "rank 0: 1, others: 1" if world.plans[1].world_size == 6 else "rank 0: 2"
    assert world.result.reason.endswith(
        "exit code 1: RuntimeError: boom; --max-restarts 1 reached: 2 failures of the job's own code counted "
        f"({whose}), replaced hardware not; to forgive more, raise --max-restarts"
    )
    assert "is refused: --max-restarts 1 reached" in world.plan.reasons[0]


def test_a_shrink_that_came_too_late_is_refused_when_it_is_said() -> None:
    """Each is fine alone; the second would leave too few, and there are spares."""
    world = job(Shrink(), min_world=6)
    world.fail(world.seats()[0])
    world.fail(world.seats()[1])
    world.fail(world.seats()[2])
    world.fail(world.seats()[3])
    world.look()
    assert world.plan.world_size == 6
    assert {world.seats()[rank].node for rank in (2, 3)} == {"r0-n2"}


# --- wait ------------------------------------------------------------------------------------------------------------


def test_a_wait_is_kept_and_then_something_must_be_done() -> None:
    world = job(Wait(30, "the node may come back"))
    world.lose("r0-n0")
    world.advance(5)
    outcome = world.look()
    assert (outcome.plan, outcome.look_again) == (None, 35)
    assert outcome.reasons == ("wait 30 s: the node may come back",)
    world.advance(29)
    assert world.look().look_again == 35
    world.advance(1)
    outcome = world.look()
    assert outcome.plan is not None
    assert outcome.plan.reasons[0] == (
        "policy Scripted: wait 30 s: the node may come back is refused: 30 seconds have been waited; the ladder decides"
    )
    assert world.seats()[0] == Slot("r0-n2", 0)


def test_a_wait_that_was_worth_it() -> None:
    world = job(Wait(30, "the node may come back"))
    world.lose("r0-n0")
    world.look()
    world.join(Node("r0-n0", 2, domain="d0", rack="r0"))
    assert world.look().plan is None
    assert world.cluster.waiting_since is None


def test_a_policy_may_wait_before_it_restarts() -> None:
    def patient(failure: tlaunch.Failure, cluster: tlaunch.Cluster) -> Decision:
        waited = cluster.waiting_since is not None and cluster.now >= cluster.waiting_since + 10
        return Restart(failure.rank) if waited else Wait(10, "back off")

    world = job(patient)
    world.crash(0)
    assert world.look().look_again == 10
    world.advance(10)
    world.look()
    assert world.plan.decisions == ("restart rank 0 in place on r0-n0/gpu-0 (restart 1 of 3)",)
    assert world.plan.reasons == ()

"""A job that has shrunk takes its replicas back: at the next failure, or when a policy says so."""

from __future__ import annotations

from typing import cast

import pytest

import tlaunch
from tests.core.world import World, racks, recovered
from tlaunch.launcher.core.decisions import Grow, Shrink
from tlaunch.launcher.core.detect import detect
from tlaunch.launcher.core.events import Exit, RoomToGrow
from tlaunch.launcher.core.policy import Room
from tlaunch.topology.model import Node, Slot


class AtOnce(tlaunch.Policy):
    """Grows whenever there is room, or says what it is told to say."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.asked: list[Room] = []

    def on_room(self, room: Room, cluster: tlaunch.Cluster) -> Grow | None:
        self.asked.append(room)
        return cast("Grow", self.answer or Grow(room.replicas))


def shrunk(policy: tlaunch.Policy | None = None, nodes: int = 4) -> World:
    """Return dp=4,tp=2 on nodes of two slots that has lost its last node."""
    world = World.started(racks(1, nodes, 2), f"dp={nodes},tp=2", policy=policy)
    world.lose(f"r0-n{nodes - 1}")
    assert str(recovered(world).mesh) == f"dp={nodes - 1},tp=2"
    return world


def come_back(world: World, name: str = "r0-n3") -> None:
    world.join(Node(name, 2, domain="d0", rack="r0"))


def test_room_is_an_event_once_the_hardware_is_there() -> None:
    world = shrunk()
    assert detect(world.cluster) == ()
    come_back(world)
    assert detect(world.cluster) == (RoomToGrow(1),)
    assert str(RoomToGrow(1)) == "there is room for 1 replica that the job has lost"


def test_the_ladder_does_not_restart_a_job_to_make_it_larger() -> None:
    world = shrunk()
    come_back(world)
    assert world.look().plan is None


def test_the_ladder_grows_when_everybody_starts_again_anyway() -> None:
    world = shrunk()
    come_back(world)
    before = world.seats()
    world.crash_all(first=2)
    plan = recovered(world)
    assert str(plan.mesh) == "dp=4,tp=2"
    assert plan.decisions[-1] == "grow dp=3,tp=2 -> dp=4,tp=2: 6 -> 8 ranks"
    assert {rank: slot for rank, slot in world.seats().items() if rank < 6} == before
    assert [world.seats()[rank] for rank in (6, 7)] == [Slot("r0-n3", 0), Slot("r0-n3", 1)]
    assert plan.restarts == 1


def test_a_swap_and_growth_in_one_plan() -> None:
    world = shrunk(nodes=5)
    come_back(world, "r0-n4")
    come_back(world, "r0-n5")
    world.lose("r0-n0")
    plan = recovered(world)
    assert str(plan.mesh) == "dp=5,tp=2"
    assert len(plan.decisions) == 3


def test_a_job_that_shrinks_does_not_grow_at_once() -> None:
    world = World.started(racks(1, 4, 2), "dp=4,tp=2", spares=0)
    world.fail(world.seats()[0])
    world.fail(world.seats()[2])
    world.join(Node("far", 2, domain="d9", rack="r9"))  # room for a replica, but outside the scope of those that failed
    assert str(recovered(world).mesh) == "dp=3,tp=2"


def test_a_policy_may_grow_at_once() -> None:
    world = shrunk(policy := AtOnce())
    come_back(world)
    plan = recovered(world)
    assert str(plan.mesh) == "dp=4,tp=2"
    assert plan.restarts == 0, "nothing has failed"
    assert policy.asked == [Room(1, restarting=False)]
    assert plan.events == (RoomToGrow(1),)


def test_a_job_never_grows_beyond_what_it_was() -> None:
    world = shrunk(AtOnce())
    come_back(world)
    come_back(world, "r0-n4")
    assert str(recovered(world).mesh) == "dp=4,tp=2"
    assert detect(world.cluster) == ()


def test_a_job_that_is_finishing_does_not_grow() -> None:
    world = shrunk(AtOnce())
    come_back(world)
    world.ended(0, Exit(code=0))
    assert detect(world.cluster) == ()


def test_what_is_left_over_in_many_places_is_no_replica() -> None:
    world = World.started(racks(3, 1, 2), "dp=3,tp=2", policy=AtOnce(), swap_scope="any")
    world.fail(world.seats()[1])
    recovered(world)
    world.join(Node("new", 1, domain="new", rack="new"))
    assert len(world.cluster.spares) == 2
    outcome = world.look()
    assert outcome.plan is None
    assert outcome.reasons == ("the job does not grow: its groups would lie in more NVLink domains than they do now",)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Grow(2), "grow by 2 replicas is refused: there is room for 1 to 1 replicas"),
        (Grow(0), "grow by 0 replicas is refused: there is room for 1 to 1 replicas"),
        (Grow(cast("int", "1")), "grow by 1 replicas is refused: there is room for 1 to 1 replicas"),
        (Shrink(), "shrink by 1 replica is refused: expected to grow, or None"),
        ("yes", "str is refused: expected to grow, or None"),
    ],
)
def test_a_wrong_answer_is_refused(answer: object, reason: str) -> None:
    world = shrunk(AtOnce(answer))
    come_back(world)
    assert world.look().reasons == (f"policy AtOnce: {reason}; the ladder decides",)


def test_a_policy_that_raises_leaves_the_ladder_to_decide() -> None:
    class Broken(tlaunch.Policy):
        def on_room(self, room: Room, cluster: tlaunch.Cluster) -> Grow | None:
            raise RuntimeError("no idea")

    world = shrunk(Broken())
    come_back(world)
    assert world.look().reasons == ("policy Broken raised RuntimeError: no idea; the ladder decides",)
    world.crash(1)
    assert str(recovered(world).mesh) == "dp=4,tp=2"

"""The check that every plan passes before it is used: each invariant, broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.core.world import World, racks
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.invariants import InvariantBroken, check, violations
from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Slot


@pytest.fixture
def world() -> World:
    """Ranks 0-3 on r0-n0 and r0-n1, 4-7 on r1-n0 and r1-n1; r0-n2 and r1-n2 are spare. The slot of rank 0 is bad."""
    world = World.started(racks(2, 3, 2), "dp=4,tp=2", spares=4, min_world=4)
    world.fail(Slot("r0-n0", 0))
    return world


def good(world: World) -> Plan:
    """Return the right next plan."""
    seats = tuple(replace(seat, since=2) for seat in world.plan.seats)
    return seated(replace(world.plan, generation=2, seats=seats), 0, Slot("r0-n2", 0))


def seated(plan: Plan, rank: int, slot: Slot) -> Plan:
    return replace(plan, seats=tuple(replace(seat, slot=slot) if seat.rank == rank else seat for seat in plan.seats))


def shrunk(plan: Plan, *ranks: int, mesh: str) -> Plan:
    """Return the plan with only these ranks, numbered anew."""
    seats = tuple(Seat(number, plan.seats[rank].slot, 2) for number, rank in enumerate(ranks))
    return replace(plan, mesh=Mesh.parse(mesh), seats=seats)


def test_a_good_plan_passes(world: World) -> None:
    check(world.cluster, good(world))
    check(world.cluster, shrunk(good(world), 2, 3, 4, 5, 6, 7, mesh="dp=3,tp=2"))
    check(world.cluster, Plan(2, world.plan.mesh, (), result=Result(0, "done")))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda plan: replace(plan, generation=3), "its number is not 2"),
        (lambda plan: replace(plan, result=Result(0, "done")), "it has a result and ranks"),
        (lambda plan: replace(plan, seats=plan.seats[1:]), "its ranks are not 0 to 7"),
        (lambda plan: seated(plan, 1, Slot("r0-n1", 0)), "two ranks share a slot"),
        (lambda plan: seated(plan, 0, Slot("r0-n0", 0)), "rank 0 is on r0-n0/gpu-0, which cannot be used"),
        (lambda plan: seated(plan, 0, Slot("r9-n9", 0)), "rank 0 is on r9-n9/gpu-0, which cannot be used"),
        (
            lambda plan: replace(plan, bad=((Slot("r0-n1", 0), "hot"),)),
            "rank 2 is on r0-n1/gpu-0, which cannot be used",
        ),
        (
            lambda plan: replace(plan, seats=(replace(plan.seats[0], since=3), *plan.seats[1:])),
            "rank 0 starts in generation 3",
        ),
        (lambda plan: replace(plan, restarts=2), "restarts go from 0 to 2"),
        (lambda plan: replace(plan, restarts=4, faults=()), "restarts go from 0 to 4"),
        (lambda plan: replace(plan, restarts=-1), "restarts go from 0 to -1"),
        (lambda plan: seated(plan, 5, Slot("r1-n2", 0)), "rank 5 leaves r1-n0/gpu-1 without need"),
        (
            lambda plan: seated(plan, 0, Slot("r1-n2", 0)),
            "rank 0 goes from r0-n0/gpu-0 to r1-n2/gpu-0, outside --swap-scope rack",
        ),
        (
            lambda plan: shrunk(plan, 1, 2, 3, 4, mesh="dp=1,tp=4"),
            "dp=1,tp=4 is not dp=4,tp=2 with fewer replicas",
        ),
        (lambda plan: shrunk(plan, 2, 3, mesh="dp=1,tp=2"), "2 ranks are less than --min-world 4"),
        (
            lambda plan: seated(
                seated(shrunk(plan, 2, 3, 4, 5, 6, 7, mesh="dp=3,tp=2"), 0, Slot("r0-n2", 1)), 1, Slot("r1-n2", 1)
            ),
            "ranks of replicas that stay are moved without need",
        ),
    ],
)
def test_a_broken_invariant_is_named(world: World, spoil: Callable[[Plan], Plan], sentence: str) -> None:
    plan = spoil(good(world))
    assert sentence in violations(world.cluster, plan)
    with pytest.raises(InvariantBroken, match=rf"^generation {plan.generation} is wrong and is not used: "):
        check(world.cluster, plan)


def test_a_bad_slot_is_bad_for_ever(world: World) -> None:
    world.look()
    following = replace(world.plan, generation=3)
    check(world.cluster, following)
    assert list(violations(world.cluster, replace(following, bad=()))) == ["a bad slot is forgotten"]


def test_nothing_follows_a_result(world: World) -> None:
    world.cluster = replace(world.cluster, stop=("interrupted", 130))
    world.look()
    assert "the job has ended" in violations(world.cluster, replace(world.plan, generation=3))


def test_who_crashed_may_move_who_has_finished_may_not() -> None:
    world = World.started(racks(1, 2, 2), "dp=2", spares=2)
    away = seated(replace(world.plan, generation=2), 1, Slot("r0-n1", 1))
    world.crash(1)
    check(world.cluster, away)
    world.ended(1, Exit(code=0))
    assert list(violations(world.cluster, away)) == ["rank 1 leaves r0-n0/gpu-1 without need"]

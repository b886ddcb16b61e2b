"""Drained slots: an operator wants them empty, and no rank is lost for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.world import World, moved, racks, recovered, two_racks
from tlaunch.launcher.core.events import Exit
from tlaunch.topology.model import Node, Slot


@pytest.fixture
def world() -> World:
    return two_racks()


def test_a_drained_node_gives_its_ranks_to_spares_and_nothing_is_charged(world: World) -> None:
    before = world.seats()
    world.drain([Slot("r0-n0", 0), Slot("r0-n0", 1)])
    plan = recovered(world)
    assert moved(before, world.seats()) == {0: Slot("r0-n2", 0), 1: Slot("r0-n2", 1)}
    assert plan.restarts == 0
    assert plan.decisions[0] == "drain rank 0: r0-n0/gpu-0 -> r0-n2/gpu-0; same NVLink domain; 1 spare left in r0"
    assert plan.bad == ((Slot("r0-n0", 0), "drained: maintenance"), (Slot("r0-n0", 1), "drained: maintenance"))
    assert world.look().plan is None


def test_a_drain_without_spares_is_refused_and_changes_nothing() -> None:
    world = World.started(racks(1, 2, 2), "dp=4")
    world.drain([Slot("r0-n0", 0)])
    outcome = world.look()
    assert outcome.plan is None
    assert outcome.reasons == ("drain refused, rank 0: r0-n0/gpu-0 has no spare in the same rack (r0); it stays",)
    assert world.look() == outcome
    world.join(Node("r0-n9", 1, rack="r0"))
    assert recovered(world).seats[0].slot == Slot("r0-n9", 0)


def test_a_drain_is_done_as_far_as_there_are_spares() -> None:
    world = World.started(racks(1, 2, 2), "dp=3", spares=1)
    world.drain([slot for slot in world.cluster.machine.slots if slot.node == "r0-n0"])
    plan = recovered(world)
    assert len(plan.decisions) == 1
    assert len(plan.reasons) == 1
    assert world.look().plan is None


def test_a_rank_on_a_drained_slot_restarts_there_when_it_must_stay() -> None:
    world = World.started(racks(1, 2, 2), "dp=4")
    world.drain([Slot("r0-n0", 0)])
    world.crash(0)
    before = world.seats()
    plan = recovered(world)
    assert world.seats() == before
    assert plan.restarts == 1
    assert plan.reasons == ("drain refused, rank 0: r0-n0/gpu-0 has no spare in the same rack (r0); it stays",)


def test_a_drained_slot_of_a_node_that_does_not_respond_is_left() -> None:
    world = World.started(racks(1, 3, 2), "dp=4", spares=2)
    world.drain([Slot("r0-n1", 0)])
    world.fail(Slot("r0-n2", 0))
    world.fail(Slot("r0-n2", 1))
    world.crash(0)
    recovered(world)
    world.cluster = replace(world.cluster, acked=frozenset({"r0-n0"}))
    world.advance(60)
    assert recovered(world).world_size == 2
    assert {seat.slot.node for seat in world.plan.seats} == {"r0-n0"}


def test_broken_hardware_has_the_spares_before_drained_slots() -> None:
    world = World.started(racks(1, 3, 2), "dp=5", spares=1)
    world.drain([world.seats()[0]])
    world.fail(world.seats()[4])
    before = world.seats()
    recovered(world)
    assert list(moved(before, world.seats())) == [4]


def test_nobody_is_started_again_for_a_drain_when_finished_ranks_have_lost_their_slots(world: World) -> None:
    world.ended(0, Exit(code=0))
    world.fail(world.seats()[0])
    world.drain([world.seats()[4]])
    outcome = world.look()
    assert outcome.plan is None
    assert outcome.reasons == ("drain refused: ranks have finished whose slots are gone",)


def test_finished_ranks_whose_slots_are_gone_get_new_ones_when_all_must_start_again(world: World) -> None:
    before = world.seats()
    world.ended(0, Exit(code=0))
    world.ended(1, Exit(code=0))
    world.lose("r0-n0")
    assert world.look().plan is None
    world.crash(7)
    plan = recovered(world)
    assert plan.restarts == 1
    assert moved(before, world.seats()) == {0: Slot("r0-n2", 0), 1: Slot("r0-n2", 1)}

"""Each rung of the ladder, in the order in which a job comes down it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.world import World, moved, racks, recovered, two_racks
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.core.events import Exit, NodeLost, RankFailed
from tlaunch.launcher.core.generations import KEPT_CRASHES, KEPT_SENTENCES, KEPT_TRACEBACK
from tlaunch.launcher.core.plan import Result
from tlaunch.topology.model import Machine, Node, Scope, Slot


@pytest.fixture
def world() -> World:
    return two_racks()


# --- start -----------------------------------------------------------------------------------------------------------


def test_the_first_plan(world: World) -> None:
    assert world.plan.generation == 1
    assert world.plan.world_size == 8
    assert {seat.since for seat in world.plan.seats} == {1}
    assert {seat.slot.node for seat in world.plan.seats} == {"r0-n0", "r0-n1", "r1-n0", "r1-n1"}
    assert world.plan.decisions == ("start 8 ranks (dp=4,tp=2) on 4 nodes",)
    assert world.cluster.spares.by_rack == {"r0": 2, "r1": 2}
    assert world.look().plan is None


def test_bad_slots_at_the_start_cost_spares_not_ranks() -> None:
    world = World.of(racks(1, 2, 2), "dp=3", spares=1)
    world.fail(Slot("r0-n0", 0))
    plan = recovered(world)
    assert set(world.seats().values()) == {Slot("r0-n0", 1), Slot("r0-n1", 0), Slot("r0-n1", 1)}
    assert plan.bad == ((Slot("r0-n0", 0), "XID 79"),)
    assert "0 of 1 spare: the other slots are bad" in plan.reasons


def test_too_many_bad_slots_at_the_start_wait_for_another_node() -> None:
    world = World.of(racks(1, 2, 2), "dp=4", start_timeout=60)
    world.fail(Slot("r0-n0", 0))
    assert world.look().plan is None
    world.join(Node("r0-n9", 1, rack="r0"))
    assert recovered(world).world_size == 4


def test_too_many_bad_slots_at_the_start_end_the_job_when_nothing_comes() -> None:
    world = World.of(racks(1, 2, 2), "dp=4", start_timeout=60)
    world.fail(Slot("r0-n0", 0))
    world.advance(60)
    world.look()
    assert world.result == Result(
        1, "2 of 2 nodes registered within 60 s, but they have only 3 healthy slots: 4 ranks need one each"
    )


def test_a_job_whose_plan_would_be_too_large_does_not_start() -> None:
    long = tuple(Node(f"{'x' * 200}-{index}", 8) for index in range(4096))
    world = World.of(Machine(long), "dp=32768")
    world.look()
    assert world.result == Result(2, "the job has 32768 ranks: their plan would take more than 786432 bytes")


def test_a_start_that_is_overdue_ends_the_job() -> None:
    world = World.of(racks(1, 3, 2), "dp=4", start_timeout=60)
    world.lose("r0-n0")
    assert world.look().plan is None
    world.advance(60)
    world.look()
    assert world.result == Result(1, "2 of 3 nodes registered within 60 s")


def test_a_job_that_is_larger_than_its_machine_is_bad_input() -> None:
    world = World.of(racks(1, 2, 2), "dp=4", spares=1)
    world.look()
    assert world.result == Result(2, "the job asks for 4 ranks and 1 spare, but there are only 2 nodes with 4 slots")
    assert world.plan.generation == 1


# --- restart ---------------------------------------------------------------------------------------------------------


def test_a_crash_is_restarted_in_place(world: World) -> None:
    before = world.seats()
    world.crash(3)
    plan = recovered(world)
    assert world.seats() == before
    assert plan.restarts == 1
    assert plan.decisions == ("restart rank 3 in place on r0-n1/gpu-1 (restart 1 of 3)",)
    assert {seat.since for seat in plan.seats} == {2}, "survivors of a plain script hold a dead process group"


def test_ranks_that_fail_because_another_failed_are_not_counted(world: World) -> None:
    world.crash_all(first=5)
    plan = recovered(world)
    assert plan.restarts == 1
    assert plan.decisions == (f"restart rank 5 in place on {world.seats()[5]} (restart 1 of 3)",)
    assert plan.reasons == ("ranks 0-4,6-7 failed as a consequence of rank 5; that is not counted",)


def test_restarts_are_limited_and_the_first_failure_is_named(world: World) -> None:
    for rank in (5, 2, 7):
        world.crash_all(first=rank)
        recovered(world)
    world.ended(5, Exit(code=3, message="ValueError: bad\nbatch", traceback="Traceback ...", time=0.5))
    world.look()
    assert world.result == Result(
        3,
        "rank 5 on r1-n0/gpu-1 failed: exit code 3: ValueError: bad batch; --max-restarts 3 reached: 4 failures of the "
        "job's own code counted (rank 2: 1, rank 5: 2, rank 7: 1), replaced hardware not; to forgive more, raise "
        "--max-restarts",
        "Traceback ...",
    )
    assert world.plan.seats == ()
    assert world.plan.generation == 5
    assert world.look().plan is None


@pytest.mark.parametrize(("ended", "code"), [(Exit(code=42), 42), (Exit(signal=9), 137), (Exit(), 1)])
def test_the_job_ends_with_the_scripts_own_exit_code(ended: Exit, code: int) -> None:
    world = World.started(racks(1, 1, 2), "dp=2", max_restarts=0)
    world.ended(1, ended)
    world.look()
    assert world.result.code == code


def test_a_rank_that_has_finished_waits_and_starts_again_with_the_others(world: World) -> None:
    world.ended(2, Exit(code=0))
    assert world.look().plan is None
    world.crash(1)
    assert {seat.since for seat in recovered(world).seats} == {2}


# --- swap ------------------------------------------------------------------------------------------------------------


def test_a_bad_slot_moves_its_rank_to_the_nearest_spare(world: World) -> None:
    before = world.seats()
    bad = before[1]
    world.fail(bad)
    plan = recovered(world)
    assert moved(before, world.seats()) == {1: Slot("r0-n2", 0)}
    assert plan.restarts == 0
    assert plan.bad == ((bad, "XID 79"),)
    assert plan.decisions == (f"swap rank 1: {bad} -> r0-n2/gpu-0; same NVLink domain; 1 spare left in r0",)
    assert world.look().plan is None


def test_a_lost_node_moves_all_its_ranks_to_one_node(world: World) -> None:
    before = world.seats()
    world.lose("r1-n0")
    recovered(world)
    assert moved(before, world.seats()) == {4: Slot("r1-n2", 0), 5: Slot("r1-n2", 1)}


def test_crashes_beside_broken_hardware_are_its_consequences(world: World) -> None:
    world.crash_all(first=7)
    world.lose("r0-n0")
    plan = recovered(world)
    assert plan.restarts == 0
    assert [decision.split(":")[0] for decision in plan.decisions] == ["swap rank 0", "swap rank 1"]
    assert plan.reasons == ("ranks 2-7 failed as a consequence of the hardware; that is not counted",)


def test_a_node_that_does_not_respond_is_left_alone_from_then_on(world: World) -> None:
    before = world.seats()
    world.crash(0)
    world.look()
    world.ack("r0-n0", "r1-n0", "r1-n1")
    world.advance(60)
    plan = recovered(world)
    assert moved(before, world.seats()) == {2: Slot("r0-n2", 0), 3: Slot("r0-n2", 1)}
    assert dict(plan.bad) == dict.fromkeys(
        [Slot("r0-n1", 0), Slot("r0-n1", 1)], "its agent has not applied generation 2 within 60 s"
    )
    assert not [slot for slot in world.cluster.spares if slot.node == "r0-n1"]


def test_spares_that_go_and_come_disturb_nobody(world: World) -> None:
    world.fail(Slot("r0-n2", 0))
    world.lose("r1-n2")
    assert world.look().plan is None
    world.join(Node("r0-n3", 2, domain="d0", rack="r0"))
    assert world.look().plan is None
    assert world.cluster.spares.in_rack("r0") == (Slot("r0-n2", 1), Slot("r0-n3", 0), Slot("r0-n3", 1))
    world.lose("r0-n0")
    recovered(world)
    assert [world.seats()[0], world.seats()[1]] == [Slot("r0-n3", 0), Slot("r0-n3", 1)]


def test_a_spare_that_went_bad_is_never_used(world: World) -> None:
    world.fail(Slot("r0-n2", 0))
    world.fail(world.seats()[0])
    recovered(world)
    assert world.seats()[0] == Slot("r0-n2", 1)


def test_a_node_that_comes_back_is_a_spare_again(world: World) -> None:
    world.lose("r0-n0")
    recovered(world)
    world.join(Node("r0-n0", 2, domain="d0", rack="r0"))
    assert world.look().plan is None
    world.lose("r0-n1")
    recovered(world)
    assert {world.seats()[2], world.seats()[3]} == {Slot("r0-n0", 0), Slot("r0-n0", 1)}


@pytest.mark.parametrize(("scope", "world_size"), [("node", 6), ("domain", 6), ("rack", 6), ("any", 8)])
def test_a_rank_goes_no_farther_than_it_may(scope: Scope, world_size: int) -> None:
    world = World.started(racks(2, 3, 2), "dp=4,tp=2", spares=4, swap_scope=scope)
    world.lose("r0-n2", "r0-n0")
    assert recovered(world).world_size == world_size


def test_a_spare_on_the_same_node_comes_first() -> None:
    world = World.started(racks(1, 2, 4), "dp=4", spares=4, swap_scope="node")
    home = world.seats()[0].node
    assert {slot.node for slot in world.seats().values()} == {home}
    world.fail(world.seats()[0])
    assert recovered(world).world_size == 3, "the spares are on another node"


# --- shrink ----------------------------------------------------------------------------------------------------------


def test_without_spares_a_whole_replica_goes() -> None:
    world = World.started(racks(1, 4, 2), "dp=4,tp=2")
    before = world.seats()
    world.fail(before[2])
    plan = recovered(world)
    assert str(plan.mesh) == "dp=3,tp=2"
    assert plan.decisions == ("shrink dp=4,tp=2 -> dp=3,tp=2: 8 -> 6 ranks",)
    assert moved(before, world.seats()) == {2: before[6], 3: before[7]}, "the last replica takes the free number"
    assert world.cluster.spares.slots == (before[3],)
    assert plan.restarts == 0


def test_the_rest_of_a_dropped_replica_saves_another_one() -> None:
    world = World.started(racks(1, 4, 2), "dp=4,tp=2")
    before = world.seats()
    world.fail(before[0])
    world.fail(before[2])
    plan = recovered(world)
    assert str(plan.mesh) == "dp=3,tp=2"
    assert world.cluster.spares.slots == ()


@pytest.mark.parametrize(("scope", "mesh"), [("rack", "dp=2,tp=2"), ("any", "dp=3,tp=2")])
def test_the_rest_of_a_dropped_replica_is_no_help_outside_the_scope(scope: Scope, mesh: str) -> None:
    world = World.started(racks(2, 2, 2), "dp=4,tp=2", swap_scope=scope)
    before = world.seats()
    world.fail(before[0])
    world.fail(before[4])
    assert (before[0].node, before[4].node) == ("r0-n0", "r1-n0")
    assert str(recovered(world).mesh) == mesh


def test_spares_are_used_up_before_a_replica_goes() -> None:
    world = World.started(racks(1, 4, 2), "dp=3,tp=2", spares=2)
    world.lose(world.seats()[0].node)
    assert recovered(world).world_size == 6
    world.lose(world.seats()[2].node)
    assert recovered(world).world_size == 4
    world.lose(world.seats()[0].node)
    assert recovered(world).world_size == 2
    world.lose(world.seats()[0].node)
    world.look()
    assert world.result.code == 1
    assert world.result.reason.startswith("0 ranks are left, --min-world is 1: rank 0 on ")


def test_swaps_into_a_replica_that_goes_are_not_told() -> None:
    world = World.started(racks(1, 3, 2), "dp=2,tp=2", spares=1, swap_scope="rack")
    world.fail(Slot("r0-n2", 1))
    world.lose("r0-n0")
    plan = recovered(world)
    assert plan.decisions == ("shrink dp=2,tp=2 -> dp=1,tp=2: 4 -> 2 ranks",)


def test_a_mesh_without_replicas_cannot_shrink() -> None:
    world = World.started(racks(1, 2, 2), "pp=2,tp=2")
    world.lose("r0-n1")
    world.look()
    assert world.result == Result(
        1, "0 ranks are left, --min-world is 1: rank 2 on r0-n1/gpu-0 lost its node: its agent is gone"
    )


def test_below_min_world_the_job_ends_with_one_clear_reason() -> None:
    world = World.started(racks(1, 4, 2), "dp=4,tp=2", min_world=6)
    world.lose(world.seats()[0].node)
    assert recovered(world).world_size == 6
    slot = world.seats()[0]
    world.fail(world.seats()[1], "fell off the bus")
    world.fail(slot, "fell off the bus")
    world.look()
    assert world.result == Result(
        1, f"4 ranks are left, --min-world is 6: rank 0 on {slot} lost its slot: fell off the bus"
    )


# --- end -------------------------------------------------------------------------------------------------------------


def test_the_job_ends_when_all_ranks_have(world: World) -> None:
    for rank in range(8):
        world.ended(rank, Exit(code=0))
    world.look()
    assert world.result == Result(0, "every rank ended with exit code 0")


@pytest.mark.parametrize("running", [True, False])
def test_a_stop_ends_the_job(*, running: bool) -> None:
    world = World.of(racks(1, 2, 2), "dp=4")
    if running:
        world.look()
    world.lose("r0-n0")
    world.cluster = replace(world.cluster, stop=("interrupted", 130))
    world.look()
    assert world.result == Result(130, "interrupted")
    assert world.plan.generation == (2 if running else 1)


# --- what is written down --------------------------------------------------------------------------------------------


def test_a_plan_tells_the_first_of_many_decisions() -> None:
    world = World.started(racks(1, 100, 8), "dp=400", spares=400)
    world.lose(*{slot.node for slot in world.seats().values()})
    plan = recovered(world)
    assert plan.world_size == 400
    assert len(plan.decisions) == KEPT_SENTENCES + 1
    assert plan.decisions[-1] == "and 200 more"


def test_a_plan_does_not_repeat_what_the_victims_of_a_lost_node_said(world: World) -> None:
    world.crash_all(first=2)
    world.lose("r1-n0")
    plan = recovered(world)
    assert [type(event) for event in plan.events] == [NodeLost]
    assert plan.reasons[0] == "ranks 0-3,6-7 failed as a consequence of the hardware; that is not counted"


def test_the_victims_are_named_when_lost_hardware_ends_the_job() -> None:
    world = World.started(racks(1, 2, 2), "dp=4", min_world=4)
    world.crash_all(first=0)
    world.lose("r0-n1")
    world.look()
    assert world.result.code == 1
    assert [type(event) for event in world.plan.events] == [NodeLost]
    assert world.plan.reasons[0] == "ranks 0-1 failed as a consequence of the hardware; that is not counted"


def test_an_event_is_one_short_line_whatever_a_process_says(world: World) -> None:
    world.crash(3, message="[connection.cc:1] Connection reset by peer\n" * 100)
    said = str(recovered(world).events[0])
    assert "\n" not in said
    assert len(said) < 260


def test_a_plan_stays_small_when_everything_fails_at_once() -> None:
    world = World.started(racks(1, 500, 8), "dp=4000", max_restarts=1)
    for rank in range(4000):
        world.ended(rank, Exit(code=1, message="m" * 5000, traceback="x" * 20_000, time=4000 - rank))
    plan = recovered(world)
    assert len(plan.events) == KEPT_CRASHES
    kept = [event for event in plan.events if isinstance(event, RankFailed)]
    assert kept[0].rank == 3999
    assert [len(event.exit.traceback or "") for event in kept[:2]] == [KEPT_TRACEBACK, 0]
    assert len(encode(plan)) < 400_000
    world.ended(0, Exit(code=1, message="m" * 5000, traceback="x" * 20_000))
    world.look()
    assert len(encode(world.plan)) < 40_000

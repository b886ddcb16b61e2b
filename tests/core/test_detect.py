from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.world import World, racks
from tlaunch.launcher.core.detect import detect, next_deadline
from tlaunch.launcher.core.events import (
    AckOverdue,
    AllFinished,
    Event,
    Exit,
    NodeLost,
    NodesReady,
    RankFailed,
    SlotDrained,
    SlotFailed,
    StartOverdue,
    StopRequested,
)
from tlaunch.topology.model import Slot


@pytest.fixture
def world() -> World:
    """Four ranks on r0-n0 and r0-n1, spares on r0-n2."""
    return World.started(racks(1, 3, 2), "dp=4", spares=2)


def seen(world: World) -> tuple[Event, ...]:
    return detect(world.cluster)


def test_nothing_has_happened(world: World) -> None:
    assert seen(world) == ()
    assert next_deadline(world.cluster) is None


@pytest.mark.parametrize(
    "cause", [Exit(signal=11, time=2.0), Exit(code=7, time=2.0), Exit(code=1, message="ValueError: a bug", time=2.0)]
)
def test_a_rank_that_lost_a_peer_is_not_the_cause_even_if_it_ended_first(world: World, cause: Exit) -> None:
    world.ended(1, Exit(code=1, message="RuntimeError: Read error: Connection reset by peer. This is", time=1.0))
    world.ended(3, cause)
    assert [event.rank for event in seen(world) if isinstance(event, RankFailed)] == [3, 1]


def test_the_job_starts_when_all_nodes_are_there() -> None:
    world = World.of(racks(1, 3, 2), "dp=4", start_timeout=60)
    assert seen(world) == (NodesReady(),)
    world.lose("r0-n1")
    assert seen(world) == ()
    assert next_deadline(world.cluster) == 60
    world.advance(60)
    assert seen(world) == (StartOverdue(registered=2),)
    assert next_deadline(world.cluster) is None


def test_a_lost_node_takes_its_ranks_with_it(world: World) -> None:
    world.lose("r0-n1")
    assert seen(world) == (NodeLost("r0-n1", "its agent is gone", (2, 3)),)


def test_a_lost_node_without_ranks_is_nobodys_loss(world: World) -> None:
    world.lose("r0-n2")
    assert seen(world) == ()


def test_a_bad_slot_with_and_without_a_rank(world: World) -> None:
    world.fail(Slot("r0-n2", 1), "ECC")
    world.fail(Slot("r0-n0", 1), "XID 79")
    assert seen(world) == (SlotFailed(Slot("r0-n0", 1), "XID 79", rank=1), SlotFailed(Slot("r0-n2", 1), "ECC"))


def test_a_bad_spare_that_the_plan_knows_is_no_news(world: World) -> None:
    spare = Slot("r0-n2", 1)
    world.fail(spare)
    world.cluster = replace(world.cluster, plan=replace(world.plan, bad=((spare, "XID 79"),)))
    assert seen(world) == ()


def test_bad_slots_of_a_lost_node_say_nothing_more(world: World) -> None:
    world.fail(Slot("r0-n1", 0))
    world.fail(Slot("r0-n2", 0))
    world.lose("r0-n1", "r0-n2")
    assert seen(world) == (NodeLost("r0-n1", "its agent is gone", (2, 3)),)


def test_a_node_that_comes_back_with_fewer_slots(world: World) -> None:
    nodes = tuple(replace(node, slots=1) if node.name == "r0-n1" else node for node in world.cluster.machine)
    world.cluster = replace(world.cluster, machine=replace(world.cluster.machine, nodes=nodes))
    assert seen(world) == (SlotFailed(Slot("r0-n1", 1), "its node has no such slot", rank=3),)


def test_drained_slots_count_only_while_a_rank_is_on_them(world: World) -> None:
    world.drain([Slot("r0-n0", 0), Slot("r0-n2", 0)])
    assert seen(world) == (SlotDrained(Slot("r0-n0", 0), "maintenance", rank=0),)


def test_crashes_come_in_the_order_of_their_time_and_after_hardware(world: World) -> None:
    world.crash(0, time=3.0)
    world.crash(1, time=2.0)
    world.crash(2, time=1.0)
    world.fail(Slot("r0-n1", 1))
    kinds = [(type(event), getattr(event, "rank", None)) for event in seen(world)]
    assert kinds == [(SlotFailed, 3), (RankFailed, 2), (RankFailed, 1), (RankFailed, 0)]


def test_a_crash_on_a_bad_slot_or_lost_node_is_the_hardwares(world: World) -> None:
    world.crash(0)
    world.crash(2)
    world.fail(Slot("r0-n0", 0))
    world.lose("r0-n1")
    assert seen(world) == (
        NodeLost("r0-n1", "its agent is gone", (2, 3)),
        SlotFailed(Slot("r0-n0", 0), "XID 79", rank=0),
    )


def test_a_crash_on_a_drained_slot_is_a_crash(world: World) -> None:
    world.drain([Slot("r0-n0", 0)])
    world.crash(0)
    assert [type(event) for event in seen(world)] == [SlotDrained, RankFailed]


def test_a_node_that_does_not_apply_the_plan_in_time(world: World) -> None:
    world.crash(0)
    world.look()
    world.ack("r0-n0")
    assert next_deadline(world.cluster) == 60
    world.advance(59)
    assert seen(world) == ()
    world.advance(1)
    assert seen(world) == (AckOverdue("r0-n1", (2, 3)),)
    assert next_deadline(world.cluster) is None


def test_nobody_else_is_blamed_while_the_node_of_rank_0_has_not_said_where_to_meet(world: World) -> None:
    world.crash(0)
    world.look()
    world.advance(60)
    assert seen(world) == (AckOverdue("r0-n0", (0, 1)),)


def test_ranks_that_have_finished_need_no_slot(world: World) -> None:
    for rank in (0, 1, 2):
        world.ended(rank, Exit(code=0))
    world.lose("r0-n0")
    world.fail(Slot("r0-n1", 0))
    world.drain([Slot("r0-n1", 0)])
    assert seen(world) == ()
    world.lose("r0-n1")
    assert seen(world) == (NodeLost("r0-n1", "its agent is gone", (3,)),)


def test_all_ranks_finished_is_the_end_whatever_else_is(world: World) -> None:
    for rank in range(4):
        world.ended(rank, Exit(code=0))
    world.lose("r0-n0")
    world.cluster = replace(world.cluster, stop=("operator", 1))
    assert seen(world) == (AllFinished(),)
    world.look()
    assert seen(world) == ()
    assert next_deadline(world.cluster) is None


def test_a_stop_comes_first_before_the_start_too(world: World) -> None:
    world.cluster = replace(world.cluster, stop=("operator", 130))
    world.lose("r0-n0")
    assert seen(world)[0] == StopRequested("operator", 130)
    world.cluster = replace(world.cluster, plan=None)
    assert seen(world)[0] == StopRequested("operator", 130)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (RankFailed(3, Slot("a", 1), Exit(signal=9)), "rank 3 on a/gpu-1 failed: killed by SIGKILL"),
        (RankFailed(3, Slot("a", 1), Exit(signal=99)), "rank 3 on a/gpu-1 failed: killed by signal 99"),
        (RankFailed(3, Slot("a", 1), Exit()), "rank 3 on a/gpu-1 failed: its process is gone"),
        (
            RankFailed(3, Slot("a", 1), Exit(code=1, message="E: two\nlines")),
            "rank 3 on a/gpu-1 failed: exit code 1: E: two lines",
        ),
        (SlotFailed(Slot("a", 1), "XID 79", 3), "a/gpu-1 (rank 3) is bad: XID 79"),
        (SlotFailed(Slot("a", 1), "XID 79"), "a/gpu-1 (a spare) is bad: XID 79"),
        (SlotDrained(Slot("a", 1), "repair", 3), "a/gpu-1 (rank 3) is to be drained: repair"),
        (NodeLost("a", "its agent is gone", (0, 1, 2, 7)), "a (ranks 0-2,7) is lost: its agent is gone"),
        (AckOverdue("a", (3,)), "a (rank 3) has not applied the plan in time"),
        (AllFinished(), "every rank ended with exit code 0"),
        (NodesReady(), "all nodes have registered"),
        (StartOverdue(2), "the job could not start in time with 2 nodes registered"),
        (StopRequested("ctrl-c", 130), "the job is to stop: ctrl-c"),
    ],
)
def test_every_event_is_a_sentence(event: Event, sentence: str) -> None:
    assert str(event) == sentence


@pytest.mark.parametrize(
    ("ended", "status"),
    [(Exit(code=0), 0), (Exit(code=7), 7), (Exit(signal=9), 137), (Exit(signal=15), 143), (Exit(), 1)],
)
def test_the_status_is_what_a_shell_would_show(ended: Exit, status: int) -> None:
    assert ended.status == status

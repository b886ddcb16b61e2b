from __future__ import annotations

from dataclasses import replace

from tlaunch.launcher.core.assign import (
    MOST_NAMED,
    AssignedSeat,
    Assignment,
    Generation,
    assignments,
    generation_head,
)
from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Slot

MACHINE = Machine((Node("a", 4), Node("b", 4), Node("c", 4)))


def plan_of(*seats: tuple[int, str, int, int], generation: int = 1, bad: tuple[Slot, ...] = ()) -> Plan:
    """Make a plan of (rank, node, index, since)."""
    placed = tuple(Seat(rank, Slot(node, index), since) for rank, node, index, since in sorted(seats))
    return Plan(generation, Mesh.flat(len(seats)), placed, bad=tuple((slot, "hot") for slot in bad))


def test_local_ranks_are_dense_in_the_order_of_slots_and_group_ranks_follow_the_lowest_rank() -> None:
    plan = plan_of((0, "b", 3, 1), (1, "b", 1, 1), (2, "a", 2, 1), (3, "b", 0, 1), bad=(Slot("b", 2),))
    assert assignments(plan, MACHINE, {}) == {
        "a": Assignment(1, 1, (AssignedSeat(2, 2, 0, since=1),)),
        "b": Assignment(
            1,
            0,
            (AssignedSeat(3, 0, 0, since=1), AssignedSeat(1, 1, 1, since=1), AssignedSeat(0, 3, 2, since=1)),
            bad=(2,),
        ),
        "c": Assignment(1, None, ()),
    }


def test_only_what_changed_gets_a_new_generation() -> None:
    before = assignments(plan_of((0, "a", 0, 1), (1, "b", 0, 1)), MACHINE, {})
    after = assignments(plan_of((0, "a", 0, 1), (1, "b", 1, 2), generation=2), MACHINE, before)
    assert after["a"] is before["a"]
    assert after["b"] == Assignment(2, 1, (AssignedSeat(1, 1, 0, since=2),))
    assert after["c"].generation == 1


def test_a_slot_gone_bad_is_a_change() -> None:
    plan = plan_of((0, "a", 0, 1))
    before = assignments(plan, MACHINE, {})
    after = assignments(plan_of((0, "a", 0, 1), generation=2, bad=(Slot("c", 3),)), MACHINE, before)
    assert after == {**before, "c": Assignment(2, None, (), bad=(3,))}


def test_a_node_that_left_the_machine_is_told_to_run_nothing() -> None:
    before = assignments(plan_of((0, "a", 0, 1), (1, "b", 0, 1)), MACHINE, {})
    moved = plan_of((0, "a", 0, 1), (1, "c", 0, 2), generation=2)
    assert assignments(moved, MACHINE.without(["b"]), before)["b"] == Assignment(2, None, ())


def test_a_plan_with_a_result_asks_nobody_to_run_anything() -> None:
    before = assignments(plan_of((0, "a", 0, 1)), MACHINE, {})
    end = replace(plan_of(generation=2), mesh=Mesh.flat(1), result=Result(0, "done"))
    assert {name: given.seats for name, given in assignments(end, MACHINE, before).items()} == {
        "a": (),
        "b": (),
        "c": (),
    }


def test_the_head_has_what_unchanged_agents_need() -> None:
    spec = JobSpec("j", nodes=3, spares=0, mesh=Mesh.flat(2), max_restarts=5)
    plan = replace(plan_of((0, "c", 0, 7), (1, "a", 0, 7), generation=7), restarts=2)
    assert generation_head(plan, spec, {"c", "a"}) == Generation(
        7, 2, 2, restarts=2, max_restarts=5, result=None, since=7, changed=("a", "c")
    )
    many = {str(number) for number in range(MOST_NAMED + 1)}
    assert generation_head(plan, spec, many).changed is None, "then all look"


def test_a_node_whose_ranks_only_start_again_is_told_so_by_the_head() -> None:
    first = plan_of((0, "a", 0, 1), (1, "b", 0, 1))
    before = assignments(first, MACHINE, {})
    again = plan_of((0, "a", 0, 2), (1, "c", 0, 2), generation=2)
    after = assignments(again, MACHINE, before)
    assert [name for name in after if after[name] != before[name]] == ["b", "c"]
    head = generation_head(again, JobSpec("j", nodes=3, spares=0, mesh=Mesh.flat(2)), {"b", "c"})
    assert after["a"].under(head).seats == (AssignedSeat(0, 0, 0, since=2),)
    assert after["a"].seats == (AssignedSeat(0, 0, 0, since=1),)


def test_a_rank_that_started_later_than_the_oldest_is_a_change_of_its_node() -> None:
    before = assignments(plan_of((0, "a", 0, 1), (1, "b", 0, 1)), MACHINE, {})
    after = assignments(plan_of((0, "a", 0, 1), (1, "b", 0, 2), generation=2), MACHINE, before)
    assert [name for name in after if after[name] != before[name]] == ["b"]


def test_nodes_keep_their_group_rank_when_another_joins_or_leaves() -> None:
    before = assignments(plan_of((0, "a", 0, 1), (1, "a", 1, 1), (2, "b", 0, 1)), MACHINE, {})
    assert [before[name].group_rank for name in "abc"] == [0, 1, None]
    joined = assignments(plan_of((0, "a", 0, 2), (1, "c", 0, 2), (2, "b", 0, 2), generation=2), MACHINE, before)
    assert [joined[name].group_rank for name in "abc"] == [0, 1, 2]
    left = assignments(plan_of((0, "a", 0, 3), (1, "c", 0, 3), (2, "a", 1, 3), generation=3), MACHINE, joined)
    assert [left[name].group_rank for name in "abc"] == [0, None, 1], "there are no gaps"
    moved = assignments(plan_of((0, "c", 1, 4), (1, "c", 0, 4), (2, "a", 1, 4), generation=4), MACHINE, left)
    assert [moved[name].group_rank for name in "abc"] == [1, None, 0], "rank 0 is in group 0"

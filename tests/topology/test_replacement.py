from __future__ import annotations

import pytest

from tests.topology.machines import hgx, nvl72, on_node, slots, written
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Scope, Slot, TopologyError
from tlaunch.topology.placement import Placement, place
from tlaunch.topology.replacement import nearest, replace


@pytest.fixture
def rack() -> tuple[Machine, Placement]:
    machine = nvl72()
    return machine, place(machine, Mesh.parse("dp=8,tp=8"), 8)


def test_a_broken_gpu_moves_to_the_first_spare_of_the_rack(rack: tuple[Machine, Placement]) -> None:
    machine, placement = rack
    result = replace(machine, {17: placement.seats[17]}, placement.spares, "rack")
    assert result.moves == {17: Slot("node-16", 0)}
    assert result.unplaced == ()
    assert result.spares == machine.slots[65:]
    assert result.reasons == ("rank 17: node-04/gpu-1 -> node-16/gpu-0; same NVLink domain; 7 spares left in rack-00",)


def test_the_next_one_goes_to_the_node_that_is_already_broken_up(rack: tuple[Machine, Placement]) -> None:
    machine, placement = rack
    left = replace(machine, {17: placement.seats[17]}, placement.spares, "rack").spares
    assert nearest(machine, placement.seats[0], left, "rack") == Slot("node-16", 1)
    assert nearest(machine, placement.seats[0], left[-5:], "rack") == Slot("node-16", 3)


def test_a_lost_node_is_absorbed_by_a_whole_node(rack: tuple[Machine, Placement]) -> None:
    machine, placement = rack
    left = [slot for slot in placement.spares if slot != Slot("node-16", 0)]
    result = replace(machine, on_node(placement.seats, "node-05"), left, "rack")
    assert written(result.moves.values()) == [f"node-17/gpu-{index}" for index in range(4)]
    assert list(result.moves) == [20, 21, 22, 23]


def test_a_lost_node_and_a_broken_gpu_at_once(rack: tuple[Machine, Placement]) -> None:
    machine, placement = rack
    failed = {0: placement.seats[0]} | on_node(placement.seats, "node-05")
    result = replace(machine, failed, placement.spares, "rack")
    assert {slot.node for rank, slot in result.moves.items() if rank != 0} == {"node-16"}
    assert result.moves[0] == Slot("node-17", 0)
    assert len(result.reasons) == 5
    assert all(reason.endswith("; 3 spares left in rack-00") for reason in result.reasons)


def test_two_ranks_of_a_node_fill_a_node_with_two_spares_first() -> None:
    machine = Machine(tuple(Node(f"n{index}", 4, rack="r") for index in range(4)))
    spares = slots("n1/0", "n1/1", "n1/2", "n1/3", "n2/0", "n3/2", "n3/3")
    result = replace(machine, {4: Slot("n0", 0), 7: Slot("n0", 3)}, spares, "rack")
    assert result.moves == {4: Slot("n3", 2), 7: Slot("n3", 3)}


def test_ranks_that_fit_on_no_node_together_take_as_few_nodes_as_possible() -> None:
    machine = Machine(tuple(Node(f"n{index}", 4, rack="r") for index in range(4)))
    spares = slots("n1/0", "n2/0", "n2/1", "n2/2", "n3/3")
    result = replace(machine, {rank: Slot("n0", rank) for rank in range(4)}, spares, "rack")
    assert written(result.moves.values()) == ["n2/gpu-0", "n2/gpu-1", "n2/gpu-2", "n1/gpu-0"]


def test_as_few_ranks_as_possible_leave_the_domain() -> None:
    near, far = [Node(f"near{i}", 2, "d", "r") for i in range(3)], [Node(f"far{i}", 2, "e", "r") for i in range(2)]
    machine = Machine((*near, *far))
    failed = {0: Slot("near0", 0), 1: Slot("near0", 1)}
    split = replace(machine, failed, slots("near1/0", "near2/0", "far0/0", "far0/1"), "rack")
    assert written(split.moves.values()) == ["near1/gpu-0", "near2/gpu-0"]
    one_far = replace(machine, failed, slots("near1/0", "far0/0", "far0/1"), "rack")
    assert written(one_far.moves.values()) == ["near1/gpu-0", "far0/gpu-0"]


@pytest.mark.parametrize(
    ("within", "reason"),
    [
        ("node", "rank 3: node-00/gpu-3 has no spare on the same node (node-00)"),
        ("domain", "rank 3: node-00/gpu-3 has no spare in the same NVLink domain (node-00)"),
        ("rack", "rank 3: node-00/gpu-3 has no spare in the same rack (rack-00)"),
        ("any", "rank 3: node-00/gpu-3 has no spare anywhere"),
    ],
)
def test_without_a_spare_in_the_scope_the_rank_stays_unplaced(within: Scope, reason: str) -> None:
    machine = hgx(8)
    spares = [] if within == "any" else slots("node-04/gpu-0")
    result = replace(machine, {3: Slot("node-00", 3)}, spares, within)
    assert (result.moves, result.unplaced, result.reasons) == ({}, (3,), (reason,))
    assert result.spares == tuple(spares)


def test_a_wider_scope_still_takes_the_nearest() -> None:
    machine, home = hgx(8), Slot("node-00", 3)
    spares = slots("node-07/gpu-0", "node-02/gpu-1", "node-00/gpu-7")
    assert nearest(machine, home, spares, "any") == Slot("node-00", 7)
    assert nearest(machine, home, spares[:2], "any") == Slot("node-02", 1)
    assert nearest(machine, home, spares[:1], "any") == Slot("node-07", 0)
    assert nearest(machine, home, spares[:1], "rack") is None


@pytest.mark.parametrize(
    ("target", "shared"),
    [
        (Slot("a", 1), "same node; 0 spares left in r"),
        (Slot("b", 0), "same NVLink domain; 0 spares left in r"),
        (Slot("c", 0), "same rack; 0 spares left in r"),
        (Slot("d", 0), "another rack of the same pod; 0 spares left in s"),
        (Slot("e", 0), "nothing nearer was free; 0 spares left"),
    ],
)
def test_the_reason_says_what_the_two_slots_share(target: Slot, shared: str) -> None:
    rack = [Node("a", 2, "x", "r", "p"), Node("b", 1, "x", "r", "p"), Node("c", 1, "y", "r", "p")]
    machine = Machine((*rack, Node("d", 1, "z", "s", "p"), Node("e", 1)))
    result = replace(machine, {5: Slot("a", 0)}, [target], "any")
    assert result.reasons == (f"rank 5: a/gpu-0 -> {target}; {shared}",)


def test_the_failed_slot_is_no_spare_of_its_own() -> None:
    machine = nvl72()
    assert nearest(machine, Slot("node-00", 0), slots("node-00/gpu-0"), "any") is None


def test_a_rank_goes_to_where_its_peers_are() -> None:
    """Rank 1 is away from its group since an earlier failure. Now its slot fails too, and it comes home."""
    machine = Machine(tuple(Node(f"n{i}", 4, domain=f"d{i // 2}", rack="r") for i in range(4)))
    mesh = Mesh.parse("dp=2,tp=4")
    seats = dict(enumerate(slots("n0/0", "n2/0", "n0/2", "n0/3", "n1/0", "n1/1", "n1/2", "n1/3")))
    spares = slots("n0/1", "n2/1", "n3/0")
    alone = replace(machine, {1: seats[1]}, spares, "rack")
    assert alone.moves == {1: Slot("n2", 1)}
    home = replace(machine, {1: seats[1]}, spares, "rack", mesh=mesh, seats=seats)
    assert home.moves == {1: Slot("n0", 1)}


def test_a_group_that_is_taken_apart_is_named() -> None:
    machine, mesh = hgx(4), Mesh.parse("dp=3,tp=8")
    seats = place(machine, mesh, 8).seats
    result = replace(machine, {9: seats[9]}, slots("node-03/gpu-0"), "rack", mesh=mesh, seats=seats)
    assert result.reasons == (
        "rank 9: node-01/gpu-1 -> node-03/gpu-0; same rack; 0 spares left in rack-00",
        "ranks 8-15 (tp=8) lie in 2 NVLink domains now",
    )


def test_inner_dimensions_count_more_than_outer_ones() -> None:
    """Both spares are in scope: one is with the tp peer, the other with both dp peers."""
    machine = Machine(tuple(Node(f"n{i}", 8, domain=f"d{i}", rack="r") for i in range(4)))
    mesh = Mesh.parse("dp=3,tp=2")
    seats = dict(enumerate(slots("n0/0", "n3/0", "n1/0", "n2/0", "n1/1", "n2/1")))
    for with_tp, with_dp in (("n0/1", "n2/2"), ("n0/7", "n2/3")):
        spares = slots(with_dp, with_tp)
        result = replace(machine, {1: seats[1]}, spares, "rack", mesh=mesh, seats=seats)
        assert result.moves == {1: Slot.parse(with_tp)}


def test_slots_that_the_machine_does_not_have_are_refused() -> None:
    machine = nvl72()
    with pytest.raises(TopologyError, match=r"^ghost/gpu-0: the machine has no node ghost$"):
        nearest(machine, Slot("ghost", 0), machine.slots, "any")
    with pytest.raises(TopologyError, match=r"^spare ghost/gpu-0: not a slot of the machine$"):
        nearest(machine, machine.slots[0], slots("ghost/0"), "any")

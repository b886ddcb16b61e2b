from __future__ import annotations

import pytest

from tests.topology.machines import nvl72, on_node, slots
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Slot, TopologyError
from tlaunch.topology.placement import place
from tlaunch.topology.shrinking import Shrunk, shrink

MESH = Mesh.parse("dp=8,tp=8")
MACHINE = nvl72()
SEATS = place(MACHINE, MESH, 8).seats


def shrunk(mesh: Mesh, dead: list[int]) -> Shrunk:
    result = shrink(mesh, {rank: SEATS[rank] for rank in range(mesh.size)}, dead)
    assert result is not None
    return result


def test_the_last_replica_takes_the_number_of_the_dropped_one() -> None:
    result = shrunk(MESH, [17])
    assert str(result.mesh) == "dp=7,tp=8"
    assert result.dropped == (2,)
    assert result.seats == {rank: SEATS[rank + 40 if rank // 8 == 2 else rank] for rank in range(56)}
    assert result.was == {rank: rank + 40 if rank // 8 == 2 else rank for rank in range(56)}
    assert set(result.freed) == {SEATS[rank] for rank in range(16, 24) if rank != 17}
    assert result.reasons == ("dropped replica 2 of dp=8,tp=8: 64 -> 56 ranks", "replica 7 is now replica 2")


def test_nobody_changes_number_when_the_last_replica_is_dropped() -> None:
    result = shrunk(MESH, [63])
    assert result.was == {rank: rank for rank in range(56)}
    assert result.reasons == ("dropped replica 7 of dp=8,tp=8: 64 -> 56 ranks",)


def test_a_dropped_replica_repairs_the_others() -> None:
    result = shrunk(MESH, [3, 17, 18])
    assert result.dropped == (2,)  # the most damaged one; its healthy slots suffice for rank 3
    assert str(result.mesh) == "dp=7,tp=8"
    assert set(range(56)) - result.was.keys() == {3}
    assert result.seats[3] == Slot("node-04", 0)
    assert set(result.freed) == set(slots("node-04/3", "node-05/0", "node-05/1", "node-05/2", "node-05/3"))
    assert result.reasons == (
        "dropped replica 2 of dp=8,tp=8: 64 -> 56 ranks",
        "replica 7 is now replica 2",
        "rank 3: node-00/gpu-3 -> node-04/gpu-0; nothing nearer was free; 5 spares left",
    )


def test_the_repair_stays_in_the_scope() -> None:
    machine = nvl72(2)
    mesh = Mesh.parse("dp=2,tp=72")
    seats = place(machine, mesh, 0).seats
    wide = shrink(mesh, seats, [0, 100], machine=machine, within="any")
    assert wide is not None
    assert (wide.dropped, wide.seats[0].node) == ((1,), "node-25")  # the node that rank 100 has left broken up
    assert shrink(mesh, seats, [0, 100], machine=machine, within="rack") is None


def test_flat_ranks_are_dropped_one_by_one() -> None:
    result = shrunk(Mesh.flat(6), [1, 5])
    assert result.was == {0: 0, 1: 4, 2: 2, 3: 3}
    assert result.freed == ()
    assert result.reasons == ("dropped replicas 1,5 of dp=6: 6 -> 4 ranks", "replica 4 is now replica 1")


def test_replicas_that_are_not_consecutive_keep_their_inner_coordinates() -> None:
    result = shrunk(Mesh.parse("pp=2,dp=3"), [0])
    assert str(result.mesh) == "pp=2,dp=2"
    # Ranks pp * 3 + dp become pp * 2 + dp; replica 2 is now replica 0.
    assert result.was == {0: 2, 1: 1, 2: 5, 3: 4}


def test_a_lost_node_takes_one_replica() -> None:
    result = shrunk(MESH, list(on_node(SEATS, "node-15")))
    assert (result.dropped, len(result.freed)) == ((7,), 4)


def test_without_deaths_nothing_changes() -> None:
    result = shrunk(MESH, [])
    assert (result.mesh, result.seats, result.dropped, result.reasons) == (MESH, SEATS, (), ())


def test_none_when_no_replica_survives() -> None:
    assert shrink(Mesh.flat(2), {0: SEATS[0], 1: SEATS[1]}, [0, 1]) is None
    assert shrink(Mesh.parse("tp=64"), SEATS, [5]) is None


def test_every_rank_needs_a_slot() -> None:
    with pytest.raises(TopologyError) as error:
        shrink(MESH, {0: SEATS[0]}, [0])
    assert str(error.value) == "mesh dp=8,tp=8: expected a slot for each of the ranks 0 to 63, got 1"

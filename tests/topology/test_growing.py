from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.machines import hgx, meshes, nvl72, trees
from tlaunch.topology.growing import grow
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Slot, TopologyError
from tlaunch.topology.placement import place
from tlaunch.topology.shrinking import shrink


def test_the_replica_that_was_dropped_comes_back() -> None:
    machine, mesh = nvl72(), Mesh.parse("dp=8,tp=8")
    placement = place(machine, mesh, 8)
    smaller = shrink(mesh, placement.seats, [63])
    assert smaller is not None
    free = [*placement.spares, *smaller.freed]
    result = grow(machine, smaller.mesh, smaller.seats, free, replicas=8, spares=7)
    assert result is not None
    assert (result.mesh, result.added) == (mesh, (7,))
    assert {rank: result.seats[rank] for rank in range(56)} == dict(smaller.seats)
    assert result.was == {rank: rank for rank in range(56)}
    assert len(result.spares) == 7
    assert result.reasons[0] == "added replica 7 of dp=8,tp=8: 56 -> 64 ranks; nobody moves"


def test_spares_are_kept_before_a_replica_comes_back() -> None:
    machine, mesh = nvl72(), Mesh.parse("dp=8,tp=8")
    seats = place(machine, mesh, 8).seats
    assert grow(machine, mesh, seats, machine.slots[64:], replicas=9, spares=1) is None
    assert grow(machine, mesh, seats, machine.slots[64:], replicas=8) is None, "the job has never been larger"


def test_replicas_that_are_not_consecutive_keep_their_inner_coordinates() -> None:
    machine, mesh = nvl72(), Mesh.parse("pp=2,dp=2")
    result = grow(machine, mesh, dict(enumerate(machine.slots[:4])), machine.slots[4:8], replicas=3)
    assert result is not None
    assert str(result.mesh) == "pp=2,dp=3"
    assert result.was == {0: 0, 1: 1, 3: 2, 4: 3}


def test_a_mesh_without_replicas_does_not_grow() -> None:
    machine, mesh = nvl72(), Mesh.parse("tp=4")
    with pytest.raises(TopologyError) as error:
        grow(machine, mesh, dict(enumerate(machine.slots[:4])), machine.slots[4:], replicas=2)
    assert str(error.value) == "mesh tp=4: has no replicas to add; expected a dimension dp"


def scattered(machine: Machine, mesh: Mesh, seats: Mapping[int, Slot]) -> int:
    """Return in how many domains an innermost group lies at worst."""
    domains: dict[int, set[object]] = {}
    for rank, slot in seats.items():
        domains.setdefault(rank // mesh.inner, set()).add(machine.node_of(slot).domain_key)
    return max(map(len, domains.values()))


def test_what_is_left_over_in_many_places_is_no_replica() -> None:
    machine, mesh = hgx(4), Mesh.parse("dp=2,tp=8")
    seats = dict(enumerate(machine.slots[:16]))
    assert grow(machine, mesh, seats, [*machine.slots[16:20], *machine.slots[24:28]], replicas=3) is None
    assert grow(machine, mesh, seats, machine.slots[16:24], replicas=3) is not None


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Machine, Mesh, int]:
    machine = draw(trees(max_slots=24))
    return machine, draw(meshes(len(machine.slots))), draw(st.integers(0, 3))


@given(jobs(), st.integers(0, 4), st.randoms())
def test_nobody_moves_and_as_many_replicas_come_as_fit(
    job: tuple[Machine, Mesh, int], more: int, random: object
) -> None:
    machine, mesh, spares = job
    if "dp" not in dict(mesh.dims):
        return
    order = list(machine.slots)
    random.shuffle(order)  # type: ignore[attr-defined]
    seats, free = dict(enumerate(order[: mesh.size])), order[mesh.size :]
    result = grow(machine, mesh, seats, free, replicas=mesh.replicas + more, spares=spares)
    number = min(more, max((len(free) - spares) // mesh.replica_size, 0))
    if result is None and number and mesh.grouped:
        added = place(machine, mesh.resized(number), spares, usable=free).seats
        assert scattered(machine, mesh, added) > scattered(machine, mesh, seats), "that is why"
        return
    assert (len(result.added) if result else 0) == number
    if result is None:
        return
    assert result.mesh == mesh.resized(mesh.replicas + number)
    assert list(result.seats) == list(range(result.mesh.size))
    assert {result.seats[rank] for rank in result.was} == set(seats.values())
    assert all(result.seats[rank] == seats[old] for rank, old in result.was.items())
    assert sorted([*result.seats.values(), *result.spares]) == sorted(order)
    for replica in range(mesh.replicas):
        assert [result.was[rank] for rank in result.mesh.ranks_of(replica)] == list(mesh.ranks_of(replica))

"""Shrinking against brute force, on small jobs."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.topology.machines import meshes
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Slot
from tlaunch.topology.shrinking import Shrunk, shrink

Case = tuple[Mesh, dict[int, Slot], set[int]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    mesh = draw(meshes(16))
    per_node = draw(st.integers(1, 4))
    places = draw(st.permutations([Slot(f"n{rank // per_node}", rank % per_node) for rank in range(mesh.size)]))
    return mesh, dict(enumerate(places)), draw(st.sets(st.integers(0, mesh.size - 1)))


def most_replicas(mesh: Mesh, dead: set[int], rack_of: dict[int, str]) -> int:
    """Try every set of replicas to drop. Healthy slots of dropped replicas replace dead ranks of their rack."""
    for kept in range(mesh.replicas, 0, -1):
        for replicas in combinations(range(mesh.replicas), kept):
            wanted = Counter(rack_of[rank] for rank in dead if mesh.replica_of(rank) in replicas)
            offered = Counter(
                rack_of[rank] for rank in range(mesh.size) if rank not in dead and mesh.replica_of(rank) not in replicas
            )
            if wanted <= offered:
                return kept
    return 0


def replicas_of(result: Shrunk | None) -> int:
    return result.mesh.replicas if result else 0


@given(cases())
def test_the_most_replicas_survive(case: Case) -> None:
    mesh, seats, dead = case
    assert replicas_of(shrink(mesh, seats, dead)) == most_replicas(mesh, dead, dict.fromkeys(seats, ""))


@given(st.integers(1, 3), st.integers(1, 4), st.data())
def test_the_most_replicas_survive_when_repairs_stay_in_their_rack(racks: int, size: int, data: st.DataObject) -> None:
    replicas = data.draw(st.lists(st.integers(0, racks - 1), min_size=1, max_size=6).map(sorted))
    mesh = Mesh((("dp", len(replicas)), ("tp", size)))
    machine = Machine(tuple(Node(f"n{i}", size, rack=f"r{rack}") for i, rack in enumerate(replicas)))
    dead = data.draw(st.sets(st.integers(0, mesh.size - 1)))
    seats = dict(enumerate(machine.slots))
    result = shrink(mesh, seats, dead, machine=machine, within="rack")
    rack_of = {rank: str(machine.node_of(slot).rack) for rank, slot in seats.items()}
    assert replicas_of(result) == most_replicas(mesh, dead, rack_of)


@given(cases(), st.integers(1, 3), st.data())
def test_the_most_replicas_survive_when_they_span_racks(case: Case, racks: int, data: st.DataObject) -> None:
    mesh, seats, dead = case
    nodes = sorted({slot.node for slot in seats.values()})
    racked = {name: f"r{data.draw(st.integers(0, racks))}" for name in nodes}
    machine = Machine(tuple(Node(name, 4, rack=racked[name]) for name in nodes))
    result = shrink(mesh, seats, dead, machine=machine, within="rack")
    assert replicas_of(result) == most_replicas(mesh, dead, {rank: racked[slot.node] for rank, slot in seats.items()})


@given(cases(), st.integers(0, 4))
def test_as_many_replicas_go_as_are_asked_for(case: Case, number: int) -> None:
    mesh, seats, dead = case
    least = replicas_of(shrink(mesh, seats, dead))
    assert replicas_of(shrink(mesh, seats, dead, at_least=number)) == max(min(least, mesh.replicas - number), 0)


@given(cases())
def test_survivors_keep_their_slots_and_the_dead_get_none(case: Case) -> None:
    mesh, seats, dead = case
    result = shrink(mesh, seats, dead)
    assume(result)
    assert result is not None
    assert list(result.seats) == list(range(result.mesh.size))
    assert all(result.seats[rank] == seats[old] for rank, old in result.was.items())
    assert dead.isdisjoint(result.was.values())
    healthy = {seats[rank] for rank in seats if rank not in dead}
    assert sorted([*result.seats.values(), *result.freed]) == sorted(healthy)
    assert len(result.dropped) == mesh.replicas - result.mesh.replicas


@given(cases())
def test_only_damaged_replicas_are_dropped_and_the_worst_of_them(case: Case) -> None:
    mesh, seats, dead = case
    result = shrink(mesh, seats, dead)
    assume(result)
    assert result is not None
    damage = Counter(mesh.replica_of(rank) for rank in dead)
    assert all(damage[replica] for replica in result.dropped)
    kept = [damage[replica] for replica in range(mesh.replicas) if replica not in result.dropped]
    assert all(damage[replica] >= max(kept, default=0) for replica in result.dropped)


@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_as_few_survivors_as_possible_change_their_number(replicas: int, size: int, data: st.DataObject) -> None:
    mesh = Mesh((("dp", replicas), ("tp", size)))
    dead = data.draw(st.sets(st.integers(0, mesh.size - 1)))
    result = shrink(mesh, {rank: Slot("n", rank) for rank in range(mesh.size)}, dead)
    assume(result)
    assert result is not None
    kept = [replica for replica in range(replicas) if replica not in result.dropped]

    def renumbered(order: tuple[int, ...]) -> int:
        olds = [old for replica in order for old in mesh.ranks_of(replica)]
        return sum(new != old for new, old in enumerate(olds) if old not in dead)

    assert sum(new != old for new, old in result.was.items()) == min(map(renumbered, permutations(kept)))


@given(cases())
def test_the_same_input_gives_the_same_answer(case: Case) -> None:
    mesh, seats, dead = case
    assert shrink(mesh, seats, dead) == shrink(mesh, dict(reversed(seats.items())), sorted(dead)[::-1])

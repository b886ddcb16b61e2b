"""Placement against brute force, on small machines."""

from __future__ import annotations

from collections import Counter
from itertools import product

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.topology.machines import meshes, tangles, trees
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Slot
from tlaunch.topology.placement import Placement, place

Case = tuple[Machine, Mesh, int, frozenset[Slot]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw something that fits."""
    machine = draw(st.one_of(trees(), tangles()))
    bad = draw(st.sets(st.sampled_from(machine.slots), max_size=2))
    usable = frozenset(machine.slots) - bad
    assume(usable)
    mesh = draw(meshes(len(usable)))
    return machine, mesh, draw(st.integers(0, len(usable) - mesh.size)), usable


def domains(machine: Machine, usable: frozenset[Slot]) -> list[int]:
    """Return the number of usable slots in each NVLink domain."""
    return list(Counter(machine.node_of(slot).domain_key for slot in usable).values())


def most_groups_inside(sizes: list[int], mesh: Mesh) -> int:
    """Try every way to give each group a domain, or none."""
    best = 0
    for choice in product(range(len(sizes) + 1), repeat=mesh.size // mesh.inner):
        used = Counter(choice)
        if all(used[index] * mesh.inner <= size for index, size in enumerate(sizes)):
            best = max(best, len(choice) - used[len(sizes)])
    return best


def groups_inside(machine: Machine, mesh: Mesh, placement: Placement) -> int:
    homes = [machine.node_of(placement.seats[rank]).domain_key for rank in range(mesh.size)]
    groups = [homes[first : first + mesh.inner] for first in range(0, mesh.size, mesh.inner)]
    return sum(len(set(group)) == 1 for group in groups)


@given(cases())
def test_what_fits_is_placed_and_every_slot_has_one_role(case: Case) -> None:
    machine, mesh, spares, usable = case
    placement = place(machine, mesh, spares, usable=usable)
    assert list(placement.seats) == list(range(mesh.size))
    assert sorted([*placement.seats.values(), *placement.spares]) == sorted(usable)
    assert len(placement.spares) >= spares
    assert list(placement.spares) == sorted(placement.spares, key=machine.position.__getitem__)


@given(cases())
def test_as_many_groups_as_possible_lie_inside_a_domain(case: Case) -> None:
    machine, mesh, spares, usable = case
    sizes = domains(machine, usable)
    assume((len(sizes) + 1) ** (mesh.size // mesh.inner) <= 5_000)  # keep brute force small
    placement = place(machine, mesh, spares, usable=usable)
    assert groups_inside(machine, mesh, placement) == most_groups_inside(sizes, mesh)


@given(cases())
def test_ranks_of_a_node_are_in_the_order_of_its_slots(case: Case) -> None:
    machine, mesh, spares, usable = case
    seats = place(machine, mesh, spares, usable=usable).seats
    for node in machine:
        indices = [slot.index for _, slot in sorted(seats.items()) if slot.node == node.name]
        assert indices == sorted(indices)


@given(cases(), st.randoms())
def test_the_same_input_gives_the_same_placement(case: Case, random: object) -> None:
    machine, mesh, spares, usable = case
    again = Machine(tuple(machine.nodes))
    assert place(machine, mesh, spares, usable=usable) == place(again, mesh, spares, usable=sorted(usable)[::-1])


@given(trees(max_slots=40), st.data())
def test_every_rack_that_has_a_share_in_the_spares_keeps_some(machine: Machine, data: st.DataObject) -> None:
    total = len(machine.slots)
    spares = data.draw(st.integers(0, total - 1))
    placement = place(machine, Mesh.parse(f"dp={total - spares},tp=1"), spares)
    sizes = Counter(machine.node_of(slot).rack for slot in machine.slots)
    assume(all(node.rack is not None for node in machine))
    kept = Counter(machine.node_of(slot).rack for slot in placement.spares)
    rounding = 2 if any(node.pod for node in machine) else 1  # at the pods and at the racks
    assert all(kept[rack] for rack, size in sizes.items() if spares * size >= rounding * total)


@given(trees(max_slots=40), st.data())
def test_at_most_one_node_of_a_pool_is_broken_up(machine: Machine, data: st.DataObject) -> None:
    spares = data.draw(st.integers(0, len(machine.slots) - 1))
    placement = place(machine, Mesh.parse(f"dp={len(machine.slots) - spares},tp=1"), spares)
    members = Counter(node.domain_key for node in machine)
    broken = {slot.node for slot in placement.seats.values()} & {slot.node for slot in placement.spares}
    pools = [
        node.domain_key if members[node.domain_key] > 1 else (node.rack, node.pod)
        for node in machine
        if node.name in broken
    ]
    assert len(pools) == len(set(pools))

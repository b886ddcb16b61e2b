"""Levels that dimensions must stay within, and spares in each region, against brute force on small machines."""

from __future__ import annotations

from collections import Counter
from functools import cache

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.topology.machines import meshes, tangles, trees
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import LEVELS, Level, Machine, Slot
from tlaunch.topology.placement import place
from tlaunch.topology.spares import SpareRequest

Case = tuple[Machine, Mesh, frozenset[Slot]]
OR_NONE: list[Level | None] = [None, *LEVELS]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a job on a machine with dead slots, with levels for any of its dimensions."""
    machine = draw(trees(max_slots=12))
    bad = draw(st.sets(st.sampled_from(machine.slots), max_size=3))
    usable = frozenset(machine.slots) - bad
    assume(usable)
    mesh = draw(meshes(len(usable)))
    within: list[tuple[str, Level]] = [
        (name, level) for name, _ in mesh.dims if (level := draw(st.sampled_from(OR_NONE)))
    ]
    return machine, Mesh(mesh.dims, tuple(within)), usable


def home(machine: Machine, slot: Slot, level: Level) -> int:
    return machine.regions[level][machine.node_index[slot.node]]


def groups(mesh: Mesh, dim: int) -> list[list[int]]:
    size, stride = mesh.dims[dim][1], mesh.strides[dim]
    firsts = [rank for rank in range(mesh.size) if rank // stride % size == 0]
    return [[first + index * stride for index in range(size)] for first in firsts]


def asked(mesh: Mesh) -> list[tuple[list[int], Level]]:
    """Every group that has to stay within a level, the innermost ones by themselves within a domain."""
    levels: dict[str, Level] = dict(mesh.within)
    levels.setdefault(mesh.dims[-1][0], "domain")
    dims: list[tuple[int, Level]] = [(dim, levels[name]) for dim, (name, _) in enumerate(mesh.dims) if name in levels]
    found: list[tuple[list[int], Level]] = [(group, level) for dim, level in dims for group in groups(mesh, dim)]
    return found


def possible(machine: Machine, mesh: Mesh, usable: frozenset[Slot], keep: tuple[Level, int] | None = None) -> bool:
    """Tell whether there is any way to seat all ranks as asked: rank by rank, over the free slots of each node."""
    groups_asked = asked(mesh)
    together: list[list[tuple[int, Level]]] = [
        [(group[0], level) for group, level in groups_asked if rank in group] for rank in range(mesh.size)
    ]
    nodes = list(machine)
    free = [sum(slot.node == node.name for slot in usable) for node in nodes]
    regions = machine.regions[keep[0]] if keep else range(len(nodes))
    total = Counter[int]()
    for region, slots in zip(regions, free, strict=True):
        total[region] += slots

    @cache
    def seat(rank: int, left: tuple[int, ...], homes: tuple[tuple[int, Level, int], ...]) -> bool:
        if rank == mesh.size:
            return True
        known: dict[tuple[int, Level], int] = {(first, level): region for first, level, region in homes}
        for index in range(len(nodes)):
            here: dict[tuple[int, Level], int] = {key: machine.regions[key[1]][index] for key in together[rank]}
            if not left[index] or any(known.get(key, region) != region for key, region in here.items()):
                continue
            if keep:
                region = regions[index]
                if sum(count for count, at in zip(left, regions, strict=True) if at == region) <= keep[1]:
                    continue
            fewer = (*left[:index], left[index] - 1, *left[index + 1 :])
            # Groups whose last rank sits are of no more concern.
            open_ = {
                key: region
                for key, region in {**known, **here}.items()
                if any(rank < other for group, level in groups_asked if (group[0], level) == key for other in group)
            }
            if seat(rank + 1, fewer, tuple(sorted((first, level, at) for (first, level), at in open_.items()))):
                return True
        return False

    return seat(0, tuple(free), ())


@given(cases())
def test_every_group_stays_within_its_level_if_there_is_a_way(case: Case) -> None:
    machine, mesh, usable = case
    assume(mesh.size <= 8)
    placement = place(machine, mesh, 0, usable=usable)
    kept = all(
        len({home(machine, placement.seats[rank], level) for rank in group}) == 1 for group, level in asked(mesh)
    )
    assert kept == possible(machine, mesh, usable)


@given(cases())
def test_what_is_not_within_its_level_is_said(case: Case) -> None:
    machine, mesh, usable = case
    placement = place(machine, mesh, 0, usable=usable)
    names = [name for name, _ in mesh.dims]
    wrong = {
        name
        for name, level in mesh.within
        for group in groups(mesh, names.index(name))
        if len({home(machine, placement.seats[rank], level) for rank in group}) > 1
    }
    inner = mesh.dims[-1][0]
    said = {sentence.partition(" groups of ")[2].partition("=")[0] for sentence in placement.unmet} | {
        sentence.partition(" group of ")[2].partition("=")[0] for sentence in placement.unmet
    }
    assert wrong - {inner} == said - {"", inner}
    assert inner not in wrong or inner in said


@given(cases(), st.sampled_from(LEVELS), st.integers(0, 3))
def test_every_region_keeps_its_spares_if_there_is_a_way(case: Case, level: Level, count: int) -> None:
    machine, mesh, usable = case
    assume(mesh.size <= 8)
    placement = place(machine, mesh, SpareRequest(count, per=level), usable=usable)
    assert sorted([*placement.seats.values(), *placement.spares]) == sorted(usable)
    spares = Counter(home(machine, slot, level) for slot in placement.spares)
    short = {region for region in machine.regions[level] if spares[region] < count}
    assert bool(short) == any(sentence.startswith("spares ") for sentence in placement.unmet)
    has = Counter(home(machine, slot, level) for slot in usable)
    if possible(machine, mesh, usable, (level, count)):
        assert all(spares[region] == has[region] for region in short), "only what has too few healthy slots keeps less"


@given(trees(max_slots=24), st.integers(0, 6), st.data())
def test_whole_nodes_are_kept_whole(machine: Machine, count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.sampled_from(machine.slots), max_size=3))
    usable = frozenset(machine.slots) - bad
    assume(usable)
    mesh = data.draw(meshes(len(usable)))
    placement = place(machine, mesh, SpareRequest(count, "node"), usable=usable)
    free = Counter(slot.node for slot in placement.spares)
    whole = sum(free[node.name] == node.slots for node in machine)
    assert (whole < count) == any(sentence.startswith("spares ") for sentence in placement.unmet)
    sizes = sorted(node.slots for node in machine if all(Slot(node.name, i) in usable for i in range(node.slots)))
    if len(set(sizes)) == 1:
        assert whole >= min(count, len(sizes), (len(usable) - mesh.size) // sizes[0])


@given(st.one_of(trees(max_slots=30), tangles()), st.data())
def test_every_request_is_met_with_one_role_for_each_slot(machine: Machine, data: st.DataObject) -> None:
    mesh = data.draw(meshes(len(machine.slots)))
    within: list[tuple[str, Level]] = [
        (name, level) for name, _ in mesh.dims if (level := data.draw(st.sampled_from(OR_NONE)))
    ]
    request = SpareRequest(
        data.draw(st.integers(0, 4)),
        data.draw(st.sampled_from(["slot", "node"])),
        data.draw(st.sampled_from(LEVELS[1:])),
    )
    mesh = Mesh(mesh.dims, tuple(within))
    placement = place(machine, mesh, request)
    assert list(placement.seats) == list(range(mesh.size))
    assert sorted([*placement.seats.values(), *placement.spares]) == sorted(machine.slots)
    assert placement == place(Machine(tuple(machine.nodes)), mesh, request, usable=list(machine.slots)[::-1])

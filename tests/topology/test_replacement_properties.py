"""Replacement against brute force and against the exact assignment of scipy, on small machines."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tests.topology.machines import meshes, tangles, trees
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import REACH, Machine, Scope, Slot, distance
from tlaunch.topology.peers import anchors, ring
from tlaunch.topology.replacement import cost, nearest, replace

Case = tuple[Machine, dict[int, Slot], list[Slot], Scope]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@st.composite
def cases(draw: st.DrawFn, machines: st.SearchStrategy[Machine]) -> Case:
    """Draw ranks that failed and spares that are free."""
    machine = draw(machines)
    roles = draw(
        st.lists(st.sampled_from(["rank", "failed", "spare", "bad"]), min_size=len(machine.slots), max_size=20)
    )
    failed = {rank: slot for rank, slot in enumerate(machine.slots) if roles[rank] == "failed"}
    spares = [slot for slot, role in zip(machine.slots, roles, strict=False) if role == "spare"]
    return machine, failed, spares, draw(st.sampled_from(SCOPES))


def apart(machine: Machine, a: Slot, b: Slot) -> int:
    return distance(machine.node_of(a), machine.node_of(b))


def most_moves(machine: Machine, failed: dict[int, Slot], spares: list[Slot], reach: int) -> int:
    """Return the size of the largest matching of failed ranks to spares within reach (augmenting paths)."""
    holder: dict[Slot, int] = {}

    def seat(rank: int, tried: set[Slot]) -> bool:
        for slot in spares:
            if slot not in tried and apart(machine, failed[rank], slot) <= reach:
                tried.add(slot)
                if slot not in holder or seat(holder[slot], tried):
                    holder[slot] = rank
                    return True
        return False

    return sum(seat(rank, set()) for rank in failed)


@given(cases(st.one_of(trees(), tangles())))
def test_only_failed_ranks_move_each_to_a_spare_of_its_own_within_the_scope(case: Case) -> None:
    machine, failed, spares, within = case
    result = replace(machine, failed, spares, within)
    assert sorted([*result.moves, *result.unplaced]) == sorted(failed)
    assert sorted([*result.moves.values(), *result.spares]) == sorted(spares)
    assert all(apart(machine, failed[rank], slot) <= REACH[within] for rank, slot in result.moves.items())
    assert len(result.reasons) == len(failed)


@given(cases(trees()))
def test_nobody_stays_unplaced_who_could_be_placed(case: Case) -> None:
    machine, failed, spares, within = case
    result = replace(machine, failed, spares, within)
    assert len(result.moves) == most_moves(machine, failed, spares, REACH[within])


@given(cases(st.one_of(trees(), tangles())))
def test_one_rank_gets_the_nearest_spare(case: Case) -> None:
    machine, failed, spares, within = case
    for slot in failed.values():
        found = nearest(machine, slot, spares, within)
        distances = [apart(machine, slot, spare) for spare in spares if apart(machine, slot, spare) <= REACH[within]]
        assert (apart(machine, slot, found) if found else None) == min(distances, default=None)


@given(cases(st.one_of(trees(), tangles())))
def test_a_whole_spare_node_is_broken_up_only_when_nothing_else_is_as_near(case: Case) -> None:
    machine, failed, spares, within = case
    free = Counter(slot.node for slot in spares)
    for slot in failed.values():
        found = nearest(machine, slot, spares, within)
        if found is None or machine.node_of(found).slots == 1 or free[found.node] < machine.node_of(found).slots:
            continue
        as_near = {spare.node for spare in spares if apart(machine, slot, spare) == apart(machine, slot, found)}
        assert all(free[node] == machine.by_name[node].slots > 1 for node in as_near)


@given(cases(st.one_of(trees(), tangles())))
def test_ranks_of_one_node_stay_together_where_that_is_as_near(case: Case) -> None:
    machine, failed, spares, within = case
    lost = {rank: slot for rank, slot in failed.items() if slot.node == min(failed.values()).node} if failed else {}
    result = replace(machine, lost, spares, within)
    if not lost or result.unplaced:
        return
    home = next(iter(lost.values()))
    total = sum(apart(machine, home, slot) for slot in result.moves.values())
    free = {spare.node: spare for spare in spares}
    for node, number in Counter(spare.node for spare in spares).items():
        if number >= len(lost) and apart(machine, home, free[node]) * len(lost) == total:
            assert len({slot.node for slot in result.moves.values()}) == 1


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Machine, Mesh, dict[int, Slot], dict[int, Slot], list[Slot], Scope]:
    """Draw a job on a machine, in any order, some of whose ranks have failed."""
    machine = draw(st.one_of(trees(max_slots=24), tangles()))
    mesh = draw(meshes(len(machine.slots)))
    order = draw(st.permutations(machine.slots))
    seats = dict(enumerate(order[: mesh.size]))
    failed = {rank: seats[rank] for rank in draw(st.sets(st.sampled_from(range(mesh.size)), max_size=8))}
    return machine, mesh, seats, failed, order[mesh.size :], draw(st.sampled_from(SCOPES))


@given(jobs())
def test_the_total_distance_is_the_optimum_of_an_exact_assignment(
    job: tuple[Machine, Mesh, dict[int, Slot], dict[int, Slot], list[Slot], Scope],
) -> None:
    machine, mesh, seats, failed, spares, within = job
    near = {rank: anchors(mesh, seats, rank, old, failed) for rank, old in failed.items()}
    refused = 1 + sum(weight * 5 for each in near.values() for weight in each.values())
    table = [
        [cost(machine, near[rank], slot) if apart(machine, old, slot) <= REACH[within] else refused for slot in spares]
        + [refused] * len(failed)
        for rank, old in failed.items()
    ]
    rows, columns = linear_sum_assignment(table) if table else ((), ())
    best = sum(table[row][column] for row, column in zip(rows, columns, strict=True))
    result = replace(machine, failed, spares, within, mesh=mesh, seats=seats)
    total = sum(cost(machine, near[rank], slot) for rank, slot in result.moves.items())
    assert total + refused * len(result.unplaced) == best


@given(jobs())
def test_a_ring_skips_whoever_is_gone(
    job: tuple[Machine, Mesh, dict[int, Slot], dict[int, Slot], list[Slot], Scope],
) -> None:
    _, mesh, seats, failed, _, _ = job
    for rank in seats:
        for dimension in range(len(mesh.dims)):
            outer, inner = prod(size for _, size in mesh.dims[: dimension + 1]), mesh.dims[dimension + 1 :]
            stride = mesh.size // outer
            assert stride == prod(size for _, size in inner)
            size = mesh.dims[dimension][1]
            block = rank // (stride * size) * stride * size
            members = [block + rank % stride + index * stride for index in range(size)]
            here = members.index(rank)
            turned = [each for each in members[here + 1 :] + members[:here] if each not in failed]
            assert ring(mesh, rank, dimension, failed) == tuple(dict.fromkeys([*turned[:1], *turned[-1:]]))


@given(cases(st.one_of(trees(), tangles())), st.data())
def test_the_same_input_gives_the_same_answer(case: Case, data: st.DataObject) -> None:
    machine, failed, spares, within = case
    shuffled = data.draw(st.permutations(spares))
    again = dict(data.draw(st.permutations(list(failed.items()))))
    assert replace(machine, failed, spares, within) == replace(machine, again, shuffled, within)

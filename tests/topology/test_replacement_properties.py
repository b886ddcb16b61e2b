"""Replacement against brute force, on small machines."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from tests.topology.machines import tangles, trees
from tlaunch.topology.model import REACH, Machine, Scope, Slot, distance
from tlaunch.topology.replacement import nearest, replace

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
    farthest = max(apart(machine, lost[rank], slot) for rank, slot in result.moves.items())
    home = next(iter(lost.values()))
    near = Counter(spare.node for spare in spares if apart(machine, home, spare) <= farthest)
    assert sum(near.values()) >= len(lost)
    closer = [spare for spare in spares if apart(machine, home, spare) < farthest]
    assert len(closer) < len(lost)  # going this far was necessary
    if max(near.values()) >= len(lost):
        assert len({slot.node for slot in result.moves.values()}) == 1


@given(cases(st.one_of(trees(), tangles())), st.data())
def test_the_same_input_gives_the_same_answer(case: Case, data: st.DataObject) -> None:
    machine, failed, spares, within = case
    shuffled = data.draw(st.permutations(spares))
    again = dict(data.draw(st.permutations(list(failed.items()))))
    assert replace(machine, failed, spares, within) == replace(machine, again, shuffled, within)

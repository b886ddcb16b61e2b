"""Plans as they stand in the store: small where little has changed, and whole again when read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.launcher.core.start import FIRST_PLAN_BYTES
from tlaunch.launcher.core.stored import KEPT_PLANS, MOST_MOVED, NoBase, StoredPlan, outdated, restored, stored
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Slot


def plan_of(generation: int, slots: list[Slot], since: list[int]) -> Plan:
    seats = tuple(Seat(rank, slot, start) for rank, (slot, start) in enumerate(zip(slots, since, strict=True)))
    return Plan(generation, Mesh.flat(max(1, len(slots))), seats)


def large(nodes: int, slots: int, generation: int = 1) -> Plan:
    """Return a plan in which every rank starts in its generation, as those of unmodified scripts do."""
    places = [Slot(f"gpu-cluster-a-node-{node:05d}", index) for node in range(nodes) for index in range(slots)]
    return plan_of(generation, places, [generation] * len(places))


def moved(plan: Plan, rank: int, to: Slot) -> Plan:
    """Return the next plan, in which everybody starts again and one rank is elsewhere."""
    generation = plan.generation + 1
    seats = (Seat(seat.rank, to if seat.rank == rank else seat.slot, generation) for seat in plan.seats)
    return replace(plan, generation=generation, seats=tuple(seats))


def reread(record: StoredPlan) -> StoredPlan:
    return decode(StoredPlan, encode(record), "the plan")


seats = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(1, 4)), max_size=8, unique_by=lambda seat: seat[:2]
)


@given(seats, seats)
def test_what_is_stored_is_the_plan(before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]) -> None:
    base, plan = (
        plan_of(generation, [Slot(node, index) for node, index, _ in drawn], [since for *_, since in drawn])
        for generation, drawn in ((4, before), (5, after))
    )
    assert restored(reread(stored(base, None)), None) == base
    assert restored(reread(stored(plan, base)), base) == plan


def test_a_swap_takes_as_many_bytes_in_a_large_job_as_in_a_small_one() -> None:
    sizes = []
    for nodes in (18, 4096):
        base = large(nodes, 4)
        record = stored(moved(base, 3, Slot("spare", 0)), base)
        assert record.moved == (Seat(3, Slot("spare", 0), 2),)
        sizes.append(len(encode(record)))
    assert sizes[1] - sizes[0] < 10, "but for the digits of larger numbers"


def test_ten_thousand_nodes_with_8_slots_fit_into_a_first_plan() -> None:
    plan = large(10_000, 8)
    assert len(encode(stored(plan, None))) < FIRST_PLAN_BYTES
    assert restored(reread(stored(plan, None)), None) == plan


def test_a_plan_far_from_its_base_is_a_base_itself() -> None:
    base = large(MOST_MOVED + 1, 1)
    away = tuple(replace(seat, slot=Slot("elsewhere", seat.rank)) for seat in base.seats)
    near = replace(base, generation=2, seats=(*away[:MOST_MOVED], *base.seats[MOST_MOVED:]))
    assert stored(near, base).base == 1
    far = replace(base, generation=2, seats=away)
    assert stored(far, base).base == 2
    assert restored(stored(far, base), None) == far


def test_a_plan_without_ranks_has_no_base() -> None:
    base = large(2, 1)
    end = replace(base, generation=2, seats=(), result=Result(0, "done"))
    assert stored(end, base).base == 2
    assert restored(stored(end, base), base) == end


def test_a_missing_or_wrong_base_is_told() -> None:
    base = large(2, 2)
    record = stored(moved(base, 0, Slot("spare", 0)), base)
    with pytest.raises(NoBase, match="generation 2 is based on 1, which is not in the store"):
        restored(record, None)
    with pytest.raises(NoBase):
        restored(record, replace(base, generation=7))
    with pytest.raises(NoBase, match="moves rank 0, of only 0 in its base"):
        restored(record, replace(base, seats=()))


def test_plans_go_when_neither_they_nor_others_need_them() -> None:
    bases = dict.fromkeys(range(1, 20), 1) | {20: 20} | dict.fromkeys(range(21, 36), 20)
    assert outdated(bases, 3) == ()
    assert outdated({number: bases[number] for number in range(1, 19)}, 19) == (2, 3)
    assert outdated(bases, 35) == tuple(range(1, 35 - KEPT_PLANS + 1)), "base 20 is among the kept"
    assert outdated(bases | {36: 20, 37: 20}, 37) == (*range(1, 20), 21), "base 20 is needed by the kept"

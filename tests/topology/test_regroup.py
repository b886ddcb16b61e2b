from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.topology.machines import hgx, meshes, nvl72, trees
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import REACH, Machine, Scope, Slot, distance
from tlaunch.topology.peers import spread
from tlaunch.topology.placement import place
from tlaunch.topology.regroup import GroupMove, regroup
from tlaunch.topology.replacement import replace


def offered(machine: Machine, mesh: str, spares: int, lost: list[int], within: Scope = "rack") -> GroupMove | None:
    parsed = Mesh.parse(mesh)
    placement = place(machine, parsed, spares)
    failed = {rank: placement.seats[rank] for rank in lost}
    found = replace(machine, failed, placement.spares, within, mesh=parsed, seats=placement.seats)
    return regroup(
        machine, parsed, placement.seats, lost[0], lost=lost, moves=found.moves, spares=placement.spares, within=within
    )


def test_a_group_goes_to_a_free_node_of_its_rack() -> None:
    offer = offered(hgx(4), "dp=3,tp=8", 8, [9])
    assert offer is not None
    assert offer.moves == {rank: Slot("node-03", rank - 8) for rank in range(8, 16)}
    assert offer.healthy == (8, 10, 11, 12, 13, 14, 15)
    assert offer.before == 2
    assert str(offer) == (
        "move ranks 8-15 (tp=8) to the NVLink domain of node-03, instead of 2 domains; 7 of them are healthy"
    )


def test_a_domain_with_a_spare_needs_no_offer() -> None:
    assert offered(nvl72(2), "dp=16,tp=8", 16, [9]) is None


def test_nothing_is_offered_outside_the_scope() -> None:
    machine, mesh = nvl72(2), Mesh.parse("dp=9,tp=8")
    seats = dict(enumerate(machine.slots[:72]))  # all of the first rack
    scopes: tuple[tuple[Scope, bool], ...] = (("rack", False), ("any", True))
    for within, found in scopes:
        moves = replace(machine, {9: seats[9]}, machine.slots[72:], within, mesh=mesh, seats=seats).moves
        offer = regroup(machine, mesh, seats, 9, lost=[9], moves=moves, spares=machine.slots[72:], within=within)
        assert (offer is not None) == found


def test_no_domain_has_room_for_the_group() -> None:
    machine, mesh = hgx(4), Mesh.parse("dp=3,tp=8")
    seats, spares = place(machine, mesh, 8).seats, machine.slots[25:]
    moves = replace(machine, {9: seats[9]}, spares, "rack", mesh=mesh, seats=seats).moves
    assert regroup(machine, mesh, seats, 9, lost=[9], moves=moves, spares=spares, within="rack") is None


def test_a_group_of_which_nobody_is_left_needs_no_company() -> None:
    assert offered(hgx(4), "dp=3,tp=8", 8, list(range(8, 16))) is None


@given(st.data(), st.sampled_from(["domain", "rack", "any"]))
def test_an_offer_restores_locality_within_the_scope(data: st.DataObject, within: Scope) -> None:
    machine = data.draw(trees(max_slots=20))
    mesh = data.draw(meshes(len(machine.slots)))
    order = data.draw(st.permutations(machine.slots))
    seats, spares = dict(enumerate(order[: mesh.size])), order[mesh.size :]
    lost = data.draw(st.sets(st.sampled_from(range(mesh.size)), min_size=1, max_size=4))
    moves = replace(machine, {each: seats[each] for each in lost}, spares, within, mesh=mesh, seats=seats).moves
    for rank in sorted(lost):
        offer = regroup(machine, mesh, seats, rank, lost=lost, moves=moves, spares=spares, within=within)
        if offer is None:
            continue
        first = rank // mesh.inner * mesh.inner
        assert list(offer.moves) == list(range(first, first + mesh.inner))
        assert len(set(offer.moves.values())) == mesh.inner
        others = {slot for each, slot in moves.items() if each not in offer.moves}
        assert set(offer.moves.values()) <= set(spares) - others
        assert spread(machine, list(offer.moves.values())) == 1
        assert offer.before is None or offer.before > 1
        for each, slot in offer.moves.items():
            assert distance(machine.node_of(seats[each]), machine.node_of(slot)) <= REACH[within]

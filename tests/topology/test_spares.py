from __future__ import annotations

from collections import Counter

import pytest

from tests.topology.machines import hgx, nvl72
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Slot, TopologyError
from tlaunch.topology.placement import Placement, place
from tlaunch.topology.spares import SpareRequest

HOW = "a number of GPUs such as 8, or 8/rack for so many in each rack, or 2n for whole nodes"


def kept(machine: Machine, placement: Placement) -> dict[str | None, int]:
    return dict(Counter(machine.node_of(slot).rack for slot in placement.spares))


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("8", SpareRequest(8)),
        ("0", SpareRequest(0)),
        ("8/rack", SpareRequest(8, per="rack")),
        ("1/node", SpareRequest(1, per="node")),
        ("2n", SpareRequest(2, "node")),
        ("1n/pod", SpareRequest(1, "node", "pod")),
    ],
)
def test_requests_are_written_and_read_back(text: str, request_: SpareRequest) -> None:
    assert SpareRequest.parse(text) == request_
    assert str(request_) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", HOW),
        ("-1", HOW),
        ("8 / rack", HOW),
        ("8/", HOW),
        ("n", HOW),
        ("²", HOW),
        ("1" * 10, HOW),
        ("8/shelf", "one of node, domain, rack, pod after the slash"),
        ("1n/node", "one of domain, rack, pod after the slash"),
    ],
)
def test_what_is_no_request_is_refused(text: str, expected: str) -> None:
    with pytest.raises(TopologyError) as error:
        SpareRequest.parse(text)
    assert str(error.value) == f"spares {text!r}: expected {expected}"


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("5", 5),
        ("8/rack", 16),
        ("100/rack", 144),
        ("1/node", 36),
        ("2/domain", 4),
        ("2n", 8),
        ("1n/rack", 8),
        ("0n", 0),
    ],
)
def test_how_many_slots_a_request_comes_to(text: str, total: int) -> None:
    assert SpareRequest.parse(text).total(nvl72(2)) == total


def test_of_nodes_of_several_sizes_the_largest_count() -> None:
    machine = Machine((Node("a", 8, rack="r"), Node("b", 4, rack="r"), Node("c", 2, rack="s")))
    assert SpareRequest.parse("2n").total(machine) == 12
    assert SpareRequest.parse("1n/rack").total(machine) == 10


def test_every_rack_keeps_what_it_is_asked_for() -> None:
    machine = nvl72(3)
    placement = place(machine, Mesh.parse("dp=21,tp=8"), SpareRequest.parse("8/rack"))
    assert all(count >= 8 for count in kept(machine, placement).values())
    assert len(placement.spares) == 216 - 168
    assert placement.unmet == ()


def test_every_node_keeps_what_it_is_asked_for() -> None:
    machine = hgx(4)
    placement = place(machine, Mesh.parse("dp=8,tp=2"), SpareRequest.parse("2/node"))
    assert min(Counter(slot.node for slot in placement.spares).values()) == 2
    assert len({slot.node for slot in placement.spares}) == 4


def test_racks_that_cannot_keep_theirs_are_named() -> None:
    machine = Machine((Node("a", 4, "d", "r"), Node("b", 2, "e", "s"), Node("c", 4, "f", "t")))
    placement = place(machine, Mesh.parse("dp=1,tp=2"), SpareRequest.parse("3/rack"))
    assert placement.unmet == ("spares 3/rack: 2 of 3 racks cannot keep 3 spares: r 2, s 2",)
    assert placement.reasons[-1] == placement.unmet[0]
    with pytest.raises(TopologyError, match=r"^spares 3/rack: 2 of 3 racks cannot keep 3 spares: "):
        place(machine, Mesh.parse("dp=1,tp=2"), SpareRequest.parse("3/rack"), strict=True)


def test_groups_stay_in_their_domain_before_a_rack_keeps_its_spares() -> None:
    machine = nvl72(2)
    placement = place(machine, Mesh.parse("dp=2,tp=72"), SpareRequest.parse("8/rack"))
    assert placement.reasons[1] == "2 of 2 groups of tp=72 in one NVLink domain each"
    assert placement.unmet == ("spares 8/rack: 2 of 2 racks cannot keep 8 spares: rack-00 0, rack-01 0",)


def test_whole_nodes_are_spread_over_the_racks() -> None:
    machine = nvl72(2)
    placement = place(machine, Mesh.parse("dp=32,tp=4"), SpareRequest.parse("4n"))
    assert {Slot(f"node-{node}", gpu) for node in (16, 17, 34, 35) for gpu in range(4)} == set(placement.spares)


def test_whole_nodes_come_from_one_rack_where_more_groups_then_fit() -> None:
    machine = nvl72(2)
    placement = place(machine, Mesh.parse("dp=17,tp=8"), SpareRequest.parse("2n"))
    assert placement.reasons[1] == "17 of 17 groups of tp=8 in one NVLink domain each"
    assert kept(machine, placement) == {"rack-01": 8}
    assert placement.unmet == ()


def test_nodes_with_a_bad_slot_are_not_whole() -> None:
    machine = nvl72()
    usable = [slot for slot in machine.slots if slot != Slot("node-17", 3)]
    placement = place(machine, Mesh.parse("dp=8,tp=8"), SpareRequest.parse("1n"), usable=usable)
    assert {slot.node for slot in placement.spares} >= {"node-16", "node-17"}
    assert placement.unmet == ()


def test_whole_nodes_that_the_ranks_need_are_not_kept() -> None:
    machine = Machine(tuple(Node(f"n{i}", 2, rack="r") for i in range(3)))
    placement = place(machine, Mesh.parse("dp=4"), SpareRequest.parse("2n"))
    assert placement.unmet == ("spares 2n: 1 of 2 whole spare nodes",)


def test_a_node_for_each_rack() -> None:
    machine = hgx(8)
    placement = place(machine, Mesh.parse("dp=6,tp=8"), SpareRequest.parse("1n/rack"))
    assert Counter(slot.node for slot in placement.spares) == {"node-03": 8, "node-07": 8}

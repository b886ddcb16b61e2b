from __future__ import annotations

from collections import Counter

import pytest

from tests.topology.machines import hgx, nvl72, slots, written
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Slot, TopologyError
from tlaunch.topology.placement import Placement, place


def spare_nodes(placement: Placement) -> dict[str, int]:
    return dict(Counter(slot.node for slot in placement.spares))


def spare_racks(machine: Machine, placement: Placement) -> dict[str | None, int]:
    return dict(Counter(machine.node_of(slot).rack for slot in placement.spares))


@pytest.mark.parametrize("mesh", ["dp=64", "dp=8,tp=8", "dp=8,pp=2,tp=4", "tp=64"])
def test_nvl72_keeps_its_last_two_trays_spare(mesh: str) -> None:
    machine = nvl72()
    placement = place(machine, Mesh.parse(mesh), 8)
    assert placement.seats == dict(enumerate(machine.slots[:64]))
    assert placement.spares == machine.slots[64:]


def test_the_reasons_say_how_well_the_groups_lie() -> None:
    assert place(nvl72(), Mesh.parse("dp=8,tp=8"), 8).reasons == (
        "64 ranks on 16 nodes",
        "8 of 8 groups of tp=8 in one NVLink domain each",
        "8 of 8 replicas in one rack each",
        "8 spares: 8 in rack-00",
    )
    assert place(nvl72(2), Mesh.parse("dp=17,pp=2,tp=4"), 8).reasons == (
        "136 ranks on 34 nodes",
        "34 of 34 groups of tp=4 in one NVLink domain each",
        "16 of 17 replicas in one rack each",
        "8 spares: 4 in rack-00, 4 in rack-01",
    )


def test_slots_that_the_mesh_leaves_over_are_spare_too() -> None:
    placement = place(nvl72(), Mesh.parse("dp=8,tp=8"), 2)
    assert len(placement.spares) == 8


def test_each_rack_keeps_a_whole_tray() -> None:
    placement = place(nvl72(2), Mesh.parse("dp=34,tp=4"), 8)
    assert spare_nodes(placement) == {"node-17": 4, "node-35": 4}
    assert placement.seats[67] == Slot("node-16", 3)
    assert placement.seats[68] == Slot("node-18", 0)


def test_a_job_too_large_for_one_domain_still_keeps_spares_in_each_rack() -> None:
    placement = place(nvl72(2), Mesh.parse("dp=136"), 8)
    assert spare_nodes(placement) == {"node-17": 4, "node-35": 4}


def test_spares_follow_the_size_of_the_racks() -> None:
    machine = Machine(tuple(Node(f"n{i:02d}", 4, rack="small" if i < 4 else "large") for i in range(16)))
    placement = place(machine, Mesh.parse("dp=56,tp=1"), 8)
    assert spare_racks(machine, placement) == {"small": 2, "large": 6}
    assert spare_nodes(placement) == {"n03": 2, "n14": 2, "n15": 4}


def test_domains_of_one_rack_share_its_spares() -> None:
    machine = Machine(tuple(Node(f"n{i}", 4, domain=f"d{i // 4}", rack="r") for i in range(8)))
    assert spare_nodes(place(machine, Mesh.parse("dp=24,tp=1"), 8)) == {"n3": 4, "n7": 4}


def test_an_hgx_rack_keeps_whole_nodes_not_a_slot_of_each() -> None:
    assert spare_nodes(place(hgx(4), Mesh.parse("dp=24,tp=1"), 8)) == {"node-03": 8}
    assert spare_nodes(place(hgx(8), Mesh.parse("dp=6,tp=8"), 16)) == {"node-03": 8, "node-07": 8}
    assert spare_nodes(place(hgx(8), Mesh.flat(48), 16)) == {"node-03": 8, "node-07": 8}


def test_groups_in_a_domain_come_before_even_spares() -> None:
    machine = Machine(tuple(Node(f"n{i}", 2, domain=f"d{i // 2}", rack=f"r{i // 2}") for i in range(6)))
    placement = place(machine, Mesh.parse("dp=2,tp=4"), 4)
    assert spare_racks(machine, placement) == {"r2": 4}


def test_replicas_stay_in_a_rack_when_each_rack_keeps_spares() -> None:
    machine = Machine(tuple(Node(f"n{i:02d}", 4, domain=f"d{i // 10}", rack=f"r{i // 10}") for i in range(20)))
    placement = place(machine, Mesh.parse("dp=5,pp=3,tp=4"), 20)  # evenly, replica 2 would lie in both racks
    assert placement.reasons[2] == "5 of 5 replicas in one rack each"
    assert spare_racks(machine, placement) == {"r0": 4, "r1": 16}


def test_a_rack_is_not_stripped_of_its_spares_to_keep_replicas_together() -> None:
    machine = Machine(tuple(Node(f"n{i:02d}", 4, domain=f"d{i // 9}", rack=f"r{i // 9}") for i in range(18)))
    placement = place(machine, Mesh.parse("dp=5,pp=3,tp=4"), 12)  # three whole replicas would fill r0
    assert placement.reasons[2] == "4 of 5 replicas in one rack each"
    assert spare_racks(machine, placement) == {"r0": 4, "r1": 8}


def test_groups_too_large_for_a_domain_stay_in_a_rack() -> None:
    machine = Machine(tuple(Node(f"n{i}", 4, rack=f"r{i // 3}") for i in range(6)))
    placement = place(machine, Mesh.parse("dp=2,tp=8"), 8)
    assert spare_nodes(placement) == {"n2": 4, "n5": 4}
    assert written(placement.seats.values())[7:9] == ["n1/gpu-3", "n3/gpu-0"]


def test_bad_slots_get_no_role() -> None:
    machine = nvl72()
    bad = set(slots("node-00/gpu-1", "node-17/gpu-3"))
    placement = place(machine, Mesh.parse("dp=8,tp=8"), 6, usable=[slot for slot in machine.slots if slot not in bad])
    assert bad.isdisjoint(placement.seats.values())
    # The broken nodes stay out of it, so that each group lies on two nodes and not on three.
    assert written(placement.spares) == ["node-00/gpu-0", "node-00/gpu-2", "node-00/gpu-3"] + [
        f"node-17/gpu-{index}" for index in range(3)
    ]


def test_usable_slots_of_other_machines_do_not_count() -> None:
    with pytest.raises(TopologyError, match="need 2 slots, but 1 nodes have 1 slots"):
        place(Machine((Node("a", 1),)), Mesh.flat(2), 0, usable=slots("a/0", "b/0"))


def test_nodes_are_seated_in_physical_order_however_they_are_listed() -> None:
    machine = Machine((Node("a", 2, "x", "r"), Node("b", 2, "y", "s"), Node("c", 2, "x", "r")))
    placement = place(machine, Mesh.parse("dp=2,tp=2"), 2)
    assert written(placement.seats.values()) == ["a/gpu-0", "a/gpu-1", "b/gpu-0", "b/gpu-1"]
    assert written(place(machine, Mesh.parse("dp=1,tp=4"), 2).seats.values())[2:] == ["c/gpu-0", "c/gpu-1"]


@pytest.mark.parametrize(
    ("mesh", "spares", "problem", "hint"),
    [
        (
            "dp=9,tp=8",
            8,
            "mesh dp=9,tp=8 and 8 spares need 80 slots, but 18 nodes have 72 slots",
            "with 8 spares the largest mesh that fits is dp=8,tp=8",
        ),
        (
            "dp=2,tp=40",
            33,
            "mesh dp=2,tp=40 and 33 spares need 113 slots, but 18 nodes have 72 slots",
            "with 33 spares there is room for 39 ranks",
        ),
        (
            "tp=73",
            0,
            "mesh tp=73 and 0 spares need 73 slots, but 18 nodes have 72 slots",
            "with 0 spares there is room for 72 ranks",
        ),
        ("dp=1", 72, "spares 72: 18 nodes have 72 slots", "expected fewer spares than slots"),
        ("dp=1", 100, "spares 100: 18 nodes have 72 slots", "expected fewer spares than slots"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(mesh: str, spares: int, problem: str, hint: str) -> None:
    with pytest.raises(TopologyError) as error:
        place(nvl72(), Mesh.parse(mesh), spares)
    assert str(error.value) == f"{problem}; {hint}"


def test_spares_cannot_be_negative() -> None:
    with pytest.raises(TopologyError, match=r"^spares -1: expected 0 or more$"):
        place(nvl72(), Mesh.flat(1), -1)


def test_the_refusal_counts_healthy_slots() -> None:
    machine = nvl72()
    with pytest.raises(TopologyError) as error:
        place(machine, Mesh.parse("dp=8,tp=8"), 8, usable=machine.slots[2:])
    assert str(error.value) == (
        "mesh dp=8,tp=8 and 8 spares need 72 slots, but 18 nodes have 72 slots, 70 of them healthy; "
        "with 8 spares the largest mesh that fits is dp=7,tp=8"
    )

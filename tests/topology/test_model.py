from __future__ import annotations

import pytest

from tlaunch.topology.model import DISTANCES, MAX_GPUS, REACH, Machine, Node, Slot, TopologyError, distance


def test_slots_are_written_and_read_back() -> None:
    slot = Slot("node-03", 2)
    assert str(slot) == "node-03/gpu-2"
    assert Slot.parse("node-03/gpu-2") == Slot.parse("node-03/2") == slot


@pytest.mark.parametrize(
    "text", ["", "node-03", "/gpu-1", "node-03/", "node-03/gpu-", "node-03/gpu-x", "node-03/gpu-²"]
)
def test_what_is_no_slot_is_refused(text: str) -> None:
    with pytest.raises(TopologyError) as error:
        Slot.parse(text)
    assert str(error.value) == f"{text!r} does not name a slot: expected NODE/gpu-INDEX, such as node-03/gpu-2"


def test_slots_come_in_the_order_of_nodes() -> None:
    machine = Machine((Node("b", 2), Node("a", 1)))
    assert machine.slots == (Slot("b", 0), Slot("b", 1), Slot("a", 0))
    assert machine.position == {Slot("b", 0): 0, Slot("b", 1): 1, Slot("a", 0): 2}
    assert machine.without(["b"]).slots == (Slot("a", 0),)


def test_a_machine_has_every_node_once() -> None:
    with pytest.raises(TopologyError, match=r"^node b stands twice in the machine; expected every name once$"):
        Machine((Node("a", 1), Node("b", 1), Node("b", 2)))


@pytest.mark.parametrize("slots", [-1, MAX_GPUS + 1, 10**18])
def test_a_node_of_more_slots_than_any_machine_has_is_refused(slots: int) -> None:
    with pytest.raises(TopologyError, match=rf"^node a has {slots} slots; expected 0 to {MAX_GPUS}$"):
        Node("a", slots)


def test_a_slot_of_no_node_is_named() -> None:
    machine = Machine((Node("a", 1),))
    assert machine.node_of(Slot("a", 0)).name == "a"
    with pytest.raises(TopologyError, match=r"^b/gpu-1: the machine has no node b$"):
        machine.node_of(Slot("b", 1))


@pytest.mark.parametrize(
    ("other", "level"),
    [
        (Node("a", 4, "d", "r", "p"), "node"),
        (Node("b", 4, "d", "r", "p"), "domain"),
        (Node("b", 4, "x", "r", "p"), "rack"),
        (Node("b", 4, "x", "x", "p"), "pod"),
        (Node("b", 4, "x", "x", "x"), "machine"),
        (Node("b", 4), "machine"),
    ],
)
def test_distance_is_the_narrowest_shared_level(other: Node, level: str) -> None:
    node = Node("a", 4, "d", "r", "p")
    assert DISTANCES[distance(node, other)] == DISTANCES[distance(other, node)] == level


def test_absent_levels_are_not_shared() -> None:
    assert distance(Node("a", 1), Node("b", 1)) == 5


def test_a_wider_scope_contains_the_narrower_ones() -> None:
    reach = [REACH["node"], REACH["domain"], REACH["rack"], REACH["any"]]
    assert reach == sorted(set(reach))
    assert reach[-1] == distance(Node("a", 1), Node("b", 1))


def test_a_node_without_a_domain_is_one_by_itself() -> None:
    assert Node("a", 4).domain_key != Node("b", 4).domain_key
    assert Node("a", 4, "d").domain_key == Node("b", 4, "d").domain_key
    assert Node("d", 4).domain_key != Node("b", 4, "d").domain_key

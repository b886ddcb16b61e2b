from __future__ import annotations

import pytest

from tlaunch.topology.files import load
from tlaunch.topology.model import Node, TopologyError


def test_a_machine_is_made_up_from_numbers() -> None:
    machine = load("synthetic:racks=18,nodes=18,gpus=4").machine()
    assert len(machine.nodes) == 324
    assert len(machine.slots) == 1296
    assert machine.nodes[18] == Node("node-18", 4, "rack-01", "rack-01", None)


def test_every_level_can_be_given() -> None:
    machine = load("synthetic: pods=2, racks=3, domains=2, nodes=2, gpus=8").machine()
    assert len(machine.nodes) == 24
    assert machine.nodes[0] == Node("node-00", 8, "domain-00", "rack-00", "pod-00")
    assert machine.nodes[-1] == Node("node-23", 8, "domain-11", "rack-05", "pod-01")


def test_the_job_may_take_a_part_and_say_how_many_gpus() -> None:
    machine = load("synthetic:nodes=4").machine(2, 3)
    assert [node.slots for node in machine] == [3, 3]
    assert [node.slots for node in load("synthetic:nodes=4").machine()] == [1, 1, 1, 1]
    with pytest.raises(TopologyError, match=r"^synthetic:nodes=4: describes 4 nodes, but the job asks for 5; "):
        load("synthetic:nodes=4").machine(5)


LIKE = "expected for example synthetic:racks=18,nodes=18,gpus=4"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("synthetic:", f"'' is none of pods, racks, domains, nodes, gpus; {LIKE}"),
        ("synthetic:rows=4", f"'rows=4' is none of pods, racks, domains, nodes, gpus; {LIKE}"),
        ("synthetic:racks=2,racks=3", f"racks stands twice; {LIKE}"),
        ("synthetic:racks=0", "racks: expected a whole number from 1 to 100000, got '0'"),
        ("synthetic:racks=two", "racks: expected a whole number from 1 to 100000, got 'two'"),
        ("synthetic:gpus=2000", "gpus: expected a whole number from 1 to 1024, got '2000'"),
        ("synthetic:racks=1000,nodes=1000", "that is 1000000 nodes; expected at most 100000"),
    ],
)
def test_mistakes_are_one_line(text: str, problem: str) -> None:
    with pytest.raises(TopologyError) as error:
        load(text)
    assert str(error.value) == f"{text!r}: {problem}"

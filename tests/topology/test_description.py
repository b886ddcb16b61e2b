from __future__ import annotations

from collections import Counter

import pytest

from tlaunch.topology.files import default_machine, load, shipped
from tlaunch.topology.model import Node, TopologyError


def test_the_shipped_files_are_found_by_name() -> None:
    assert shipped() == ("hgx", "local", "nvl72")
    for name in shipped():
        assert load(name).source == f"{name}.yaml"


def test_nvl72_is_one_rack_of_72_in_one_domain() -> None:
    machine = load("nvl72").machine()
    assert len(machine.slots) == 72
    assert machine.nodes[0] == Node("node-00", 4, domain="rack-00", rack="rack-00")
    assert machine.nodes[-1] == Node("node-17", 4, domain="rack-00", rack="rack-00")


def test_nvl72_has_as_many_racks_as_the_job_needs() -> None:
    machine = load("nvl72").machine(nodes=40)
    assert Counter(node.rack for node in machine) == {"rack-00": 18, "rack-01": 18, "rack-02": 4}
    assert all(node.domain == node.rack for node in machine)
    assert [node.name for node in machine] == [f"node-{index:02d}" for index in range(40)]


def test_hgx_nodes_have_a_domain_each() -> None:
    machine = load("hgx").machine(nodes=6)
    assert len({node.domain for node in machine}) == 6
    assert Counter(node.rack for node in machine) == {"rack-00": 4, "rack-01": 2}
    assert {node.slots for node in machine} == {8}


def test_local_is_small() -> None:
    assert len(load("local").machine().slots) == 6


def test_the_job_may_use_fewer_gpus_but_not_more() -> None:
    description = load("nvl72")
    assert description.gpus_per_node == 4
    assert {node.slots for node in description.machine(18, 2)} == {2}
    with pytest.raises(TopologyError) as error:
        description.machine(18, 8)
    assert str(error.value) == (
        "nvl72.yaml: node-00 has 4 GPUs, but the job asks for 8 on each node; expected --gpus-per-node 4 or fewer"
    )


@pytest.mark.parametrize(
    ("nodes", "gpus", "message"),
    [
        (0, None, "--nodes 0: expected 1 to 100000"),
        (-1, None, "--nodes -1: expected 1 to 100000"),
        (100_001, None, "--nodes 100001: expected 1 to 100000"),
        (1, 0, "--gpus-per-node 0: expected 1 to 1024"),
        (1, 1025, "--gpus-per-node 1025: expected 1 to 1024"),
    ],
)
def test_bad_counts_are_refused(nodes: int, gpus: int | None, message: str) -> None:
    with pytest.raises(TopologyError) as error:
        load("nvl72").machine(nodes, gpus)
    assert str(error.value) == message
    with pytest.raises(TopologyError) as error:
        default_machine(nodes, 1 if gpus is None else gpus)
    assert str(error.value) == message


def test_without_a_file_all_nodes_are_in_one_rack() -> None:
    machine = default_machine(3, 2)
    assert machine.nodes == tuple(Node(f"node-0{index}", 2, rack="rack-00") for index in range(3))
    assert default_machine(101, 1).nodes[-1].name == "node-100"

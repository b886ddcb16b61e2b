from __future__ import annotations

import pytest

from tlaunch.topology.discover.report import Coordinates
from tlaunch.topology.discover.slurm import gpu_numbers, job_nodes, report
from tlaunch.topology.model import TopologyError


def place(address: str, pattern: str) -> tuple[str, Coordinates]:
    told = report("here", {"SLURM_TOPOLOGY_ADDR": address, "SLURM_TOPOLOGY_ADDR_PATTERN": pattern})
    assert told is not None
    assert told.notes == ()
    ((node, coordinates),) = told.nodes.items()
    return node, coordinates


@pytest.mark.parametrize(
    ("address", "pattern", "coordinates"),
    [
        ("gb01", "node", Coordinates()),
        ("leaf1.gb01", "switch.node", Coordinates(rack="leaf1")),
        ("spine.rack1.gb01", "switch.switch.node", Coordinates(pod="spine", rack="rack1")),
        ("root.core.s2.l1.gb01", "switch.switch.switch.switch.node", Coordinates(pod="s2", rack="l1")),
        ("s[1-2].l1.gb01", "switch.switch.node", Coordinates(pod="s1-s2", rack="l1")),
        ("b7.gb01", "block.node", Coordinates(rack="b7", domain="b7")),
        ("s1.b7.gb01", "switch.block.node", Coordinates(pod="s1", rack="b7", domain="b7")),
    ],
)
def test_trees_of_any_depth_and_blocks(address: str, pattern: str, coordinates: Coordinates) -> None:
    assert place(address, pattern) == ("gb01", coordinates)


def test_a_node_whose_name_has_dots() -> None:
    assert place("b0.10.140.71.103", "block.node")[0] == "10.140.71.103"


def test_many_switches_have_a_name_that_is_not_too_long() -> None:
    few, many = (place(f"spine[1-{last}].l1.gb01", "switch.switch.node")[1].pod for last in (99, 100))
    assert few is not None
    assert many is not None
    assert (few[:10], many[:11], few != many) == ("spine1-99-", "spine1-100-", True)
    assert len(many) < 128


def test_nothing_outside_of_slurm() -> None:
    assert report("here", {"PATH": "/bin"}) is None
    assert job_nodes({}) == ()


def test_the_nodes_of_the_job() -> None:
    assert job_nodes({"SLURM_JOB_NODELIST": "gb[01-02],x"}) == ("gb01", "gb02", "x")
    assert job_nodes({"SLURM_NODELIST": "b,a"}) == ("b", "a")


@pytest.mark.parametrize(
    ("environ", "slots"),
    [
        ({"SLURM_JOB_GPUS": "0,1,2,3"}, 4),
        ({"SLURM_STEP_GPUS": "2,3", "SLURM_JOB_GPUS": "0,1,2,3"}, 2),
        ({"SLURM_JOB_GPUS": "0-3,6"}, 5),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8),
        ({"SLURM_GPUS_ON_NODE": "0", "SLURM_TOPOLOGY_ADDR": "here", "SLURM_TOPOLOGY_ADDR_PATTERN": "node"}, None),
    ],
)
def test_the_gpus_of_the_step_else_of_the_job(environ: dict[str, str], slots: int | None) -> None:
    told = report("here", environ)
    assert told is not None
    assert told.nodes["here"].slots == slots


def test_gpus_keep_slurms_order() -> None:
    assert gpu_numbers("SLURM_JOB_GPUS", "3,0-1") == (3, 0, 1)


def test_an_unknown_level_is_left_out_and_named() -> None:
    told = report("a", {"SLURM_TOPOLOGY_ADDR": "r1.a", "SLURM_TOPOLOGY_ADDR_PATTERN": "ring.node"})
    assert told is not None
    assert told.nodes == {"a": Coordinates()}
    assert told.notes == (
        "SLURM_TOPOLOGY_ADDR_PATTERN: unknown level 'ring', expected switch, block, node: the address is left out",
    )


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"SLURM_TOPOLOGY_ADDR": "s.a"},
            "slurm: SLURM_TOPOLOGY_ADDR_PATTERN: is not set beside SLURM_TOPOLOGY_ADDR; expected both",
        ),
        (
            {"SLURM_TOPOLOGY_ADDR_PATTERN": "node"},
            "slurm: SLURM_TOPOLOGY_ADDR: is not set beside SLURM_TOPOLOGY_ADDR_PATTERN; expected both",
        ),
        (
            {"SLURM_TOPOLOGY_ADDR": "a", "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.node"},
            "slurm: SLURM_TOPOLOGY_ADDR: 'a' does not fit SLURM_TOPOLOGY_ADDR_PATTERN='switch.node'",
        ),
        (
            {"SLURM_TOPOLOGY_ADDR": "s.a", "SLURM_TOPOLOGY_ADDR_PATTERN": "node.switch"},
            "slurm: SLURM_TOPOLOGY_ADDR: 's.a' does not fit SLURM_TOPOLOGY_ADDR_PATTERN='node.switch'",
        ),
        (
            {"SLURM_JOB_GPUS": "0,x"},
            "slurm: SLURM_JOB_GPUS: expected GPUs such as 0,1,2,3, each once, got '0,x'",
        ),
        (
            {"SLURM_STEP_GPUS": "1,1"},
            "slurm: SLURM_STEP_GPUS: expected GPUs such as 0,1,2,3, each once, got '1,1'",
        ),
        (
            {"SLURM_GPUS_ON_NODE": "many"},
            "slurm: SLURM_GPUS_ON_NODE: expected a number of GPUs, got 'many'",
        ),
    ],
)
def test_bad_variables_are_one_line(environ: dict[str, str], line: str) -> None:
    with pytest.raises(TopologyError) as error:
        report("here", environ)
    assert str(error.value) == line

"""Asking all sources, in one process and without a driver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.topology.discover.test_scontrol import TREE, program
from tlaunch.topology.discover import gather
from tlaunch.topology.discover.gather import discover, own_name, placed, remarks
from tlaunch.topology.discover.merge import Discovery
from tlaunch.topology.discover.report import Report
from tlaunch.topology.model import Node, TopologyError

GUESS = (
    "hostname: no source says where nodes are: they are taken in alphabetical order, "
    "and which are neighbours is a guess"
)


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tlaunch.topology.discover.nvml.report", lambda *_: Report("nvml", "x"))
    monkeypatch.setattr("socket.gethostname", lambda: "gb01.cluster.example")
    monkeypatch.setattr(gather, "INSTANCE", tmp_path / "no such file")


def empty(folder: Path, **more: str) -> dict[str, str]:
    """An environment in which there is no scontrol."""
    return {"PATH": str(folder), **more}


def places(found: Discovery) -> dict[str, tuple[str | None, str | None, str | None]]:
    nodes = (found.node(name) for name in found.nodes)
    return {node.name: (node.pod, node.rack, node.domain) for node in nodes}


def test_host_names_are_the_last_resort_and_it_says_so(tmp_path: Path) -> None:
    found = discover(empty(tmp_path, SLURM_JOB_NODELIST="gb[10,9,1]"))
    assert [node.name for node in found.machine()] == ["gb1", "gb9", "gb10"]
    assert remarks(found) == (GUESS,)


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "gb01"),
        ({"NODE_NAME": "ip-10-0-0-1.ec2.internal"}, "ip-10-0-0-1.ec2.internal"),
        ({"NODE_NAME": "k", "SLURMD_NODENAME": "s"}, "s"),
    ],
)
def test_the_name_of_this_node(environ: dict[str, str], name: str) -> None:
    assert own_name(environ) == name


def test_a_name_that_is_none() -> None:
    with pytest.raises(TopologyError, match=r"^NODE_NAME: name: 'a b' cannot be a name; expected"):
        own_name({"NODE_NAME": "a b"})


def test_a_topology_file_wins(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("racks: {r1: 'gb[01-02]', r2: gb03.cluster.example}")
    found = discover(
        empty(tmp_path, SLURM_TOPOLOGY_ADDR="s1.leaf.gb01", SLURM_TOPOLOGY_ADDR_PATTERN="switch.switch.node"),
        topology=str(tmp_path / "t.yaml"),
    )
    assert places(found) == {
        "gb01": ("s1", "r1", None),
        "gb02": (None, "r1", None),
        "gb03.cluster.example": (None, "r2", None),
    }


def test_a_template_names_no_nodes() -> None:
    with pytest.raises(TopologyError) as error:
        discover({}, topology="nvl72")
    assert str(error.value) == (
        "nvl72.yaml: nodes_per_rack: describes nodes without their names; expected racks or nodes"
    )


def test_nodes_are_those_of_the_job(tmp_path: Path) -> None:
    environ = {**program(tmp_path, f"cat <<'E'\n{TREE}\nE\n"), "SLURM_JOB_NODELIST": "gb[02-03],gb09"}
    found = discover(environ)
    assert places(found) == {"gb02": ("s1", "leaf1", None), "gb03": ("s1", "leaf2", None), "gb09": (None, None, None)}


def test_alone_the_controller_of_slurm_is_left_in_peace(tmp_path: Path) -> None:
    environ = {
        **program(tmp_path, f"touch {tmp_path}/asked; cat <<'E'\n{TREE}\nE\n"),
        "SLURM_JOB_NODELIST": "gb[01-02]",
    }
    address = {"SLURM_TOPOLOGY_ADDR": "leaf1.gb01", "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.node"}
    assert places(discover({**environ, **address}, alone=True)) == {"gb01": (None, "leaf1", None)}
    assert not (tmp_path / "asked").exists()
    # In a job step of an old Slurm, or a shell beside it, the environment says nothing: then it has to be asked.
    assert places(discover(environ, alone=True)) == {"gb01": ("s1", "leaf1", None)}
    assert (tmp_path / "asked").exists()


def test_labels_from_files_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text('nvidia.com/gpu.clique="c.1"\n')
    (tmp_path / "oci.json").write_text('{"customerLocalBlock": "local"}')
    environ = empty(
        tmp_path,
        NODE_NAME="k1",
        TLAUNCH_LABELS="topology.kubernetes.io/zone=z",
        TLAUNCH_METADATA=f"{tmp_path}/labels:{tmp_path}/oci.json",
    )
    assert places(discover(environ)) == {"k1": ("z", "local", "c.1")}
    assert places(discover(environ, metadata=[])) == {"k1": ("z", None, None)}


def test_instances_are_called_by_the_names_of_their_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"kind": "Node", "metadata": {"name": "ip-2"}, "spec": {"providerID": "aws:///us-west-2a/i-02"}}]
    answer = {"Instances": [{"InstanceId": f"i-0{i}", "NetworkNodes": ["nn-a", f"nn-{i}"]} for i in (1, 2, 3)]}
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    (tmp_path / "aws.json").write_text(json.dumps(answer))
    (tmp_path / "asset").write_text("i-01\n")
    monkeypatch.setattr(gather, "INSTANCE", tmp_path / "asset")
    found = discover(empty(tmp_path), metadata=[tmp_path / "nodes.json", tmp_path / "aws.json"])
    assert places(found) == {
        "gb01": ("nn-a", "nn-1", None),
        "i-03": ("nn-a", "nn-3", None),
        "ip-2": ("nn-a", "nn-2", None),
    }


def test_names_with_and_without_their_domain_are_the_same_node(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("racks: {r1: [gb01.a.example, x.a, x.b], r2: gb02.a.example}")
    found = discover(empty(tmp_path, SLURM_JOB_NODELIST="gb[01-02],x"), topology=str(tmp_path / "t.yaml"))
    # Two nodes are called x in short: neither is taken for it.
    assert places(found) == {"gb01": (None, "r1", None), "gb02": (None, "r2", None), "x": (None, None, None)}


def test_one_name_for_two_nodes_is_an_error(tmp_path: Path) -> None:
    nodes = [
        {"kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/rack": rack}}}
        for name, rack in (("gb01", "r1"), ("gb02", "r2"))
    ]
    nodes[0]["spec"] = {"providerID": "x/gb02"}
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    with pytest.raises(TopologyError, match=r"nodes.json: gb01: name: stands twice, once as gb02; expected every node"):
        discover(empty(tmp_path), metadata=[tmp_path / "nodes.json"])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (None, "No such file or directory; expected labels or JSON"),
        (b'a="b"\nc="\xff"\n', ":2: byte 0xff is not UTF-8; expected text"),
        (b"\x00" * ((64 << 20) + 1), "larger than 64 MiB; expected labels or JSON"),
        (b"{", ":1: not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b"a b", ":1: 'a b': expected KEY=\"VALUE\""),
    ],
    ids=["missing", "not text", "too large", "not JSON", "no labels"],
)
def test_bad_files_are_one_line(tmp_path: Path, data: bytes | None, line: str) -> None:
    path = tmp_path / "m"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TopologyError) as error:
        discover(empty(tmp_path), metadata=[path])
    assert str(error.value) in {f"{path}{line}", f"{path}: {line}"}


def test_a_path_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"^'a\\x00b': no such file$"):
        discover(empty(tmp_path), metadata=[Path("a\0b")])


def test_what_is_found_comes_before_what_was_said_and_the_rest_stays(tmp_path: Path) -> None:
    found = discover(empty(tmp_path, TLAUNCH_LABELS="topology.kubernetes.io/rack=r9"), alone=True)
    assert placed(Node("node-03", 4, rack="rack-00", pod="p"), found) == Node("node-03", 4, rack="r9", pod="p")
    assert remarks(found) == ()


def test_contradictions_of_one_kind_are_told_in_a_few_lines(tmp_path: Path) -> None:
    nodes = [
        {"kind": "Node", "metadata": {"name": f"n{i}", "labels": {"topology.kubernetes.io/rack": f"r{i}"}}}
        for i in range(10)
    ]
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    (tmp_path / "t.yaml").write_text("racks: {one: 'n[0-9]'}")
    found = discover(empty(tmp_path), topology=str(tmp_path / "t.yaml"), metadata=[tmp_path / "nodes.json"])
    assert len(found.contradictions) == 9
    assert remarks(found) == (
        *(
            f"n{i}: rack: file says one, kubernetes says r{i} (but r0 of n0, which file puts into one too); file wins"
            for i in (1, 2, 3)
        ),
        "and on 6 more nodes file and kubernetes differ in the rack",
    )

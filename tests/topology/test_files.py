"""What a good topology file means."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tlaunch.topology import files
from tlaunch.topology.files import Description, load
from tlaunch.topology.model import Machine, Node, TopologyError


def read(folder: Path, text: str) -> Description:
    path = folder / "machine.yaml"
    path.write_text(dedent(text))
    return load(str(path))


def names(machine: Machine) -> list[str]:
    return [node.name for node in machine]


def test_nodes_one_by_one(tmp_path: Path) -> None:
    description = read(
        tmp_path,
        """
        nodes:
          alpha: {gpus: 8, domain: nvl-1, rack: r1, pod: p1}
          beta-[0-1]: {gpus: 4, rack: r2}
          gamma:
        """,
    )
    assert description.machine().nodes == (
        Node("alpha", 8, "nvl-1", "r1", "p1"),
        Node("beta-0", 4, rack="r2"),
        Node("beta-1", 4, rack="r2"),
        Node("gamma", 1),
    )
    assert description.gpus_per_node is None
    assert [node.slots for node in description.machine(gpus_per_node=3)] == [3, 3, 3, 3]


def test_racks_with_patterns(tmp_path: Path) -> None:
    description = read(
        tmp_path,
        """
        gpus: 4
        domain_per: rack
        racks:
          a: gb-[08-10]
          b:
            pod: north
            nodes: [x, "gb-[12,14-15]"]
        """,
    )
    machine = description.machine()
    assert names(machine) == ["gb-08", "gb-09", "gb-10", "x", "gb-12", "gb-14", "gb-15"]
    assert machine.nodes[0] == Node("gb-08", 4, "a", "a")
    assert machine.nodes[-1] == Node("gb-15", 4, "b", "b", "north")
    assert description.gpus_per_node == 4


def test_domains_inside_a_rack_and_counts_of_their_own(tmp_path: Path) -> None:
    machine = read(
        tmp_path,
        """
        gpus: 4
        racks:
          a:
            domains:
              left: n-[0-1]
              right:
                gpus: 2
                nodes: [n-2, n-3]
          b:
            gpus: 1
            domain_per: node
            nodes: n-4
          c:
            - n-5
        """,
    ).machine()
    assert [(node.slots, node.domain, node.rack) for node in machine] == [
        (4, "left", "a"),
        (4, "left", "a"),
        (2, "right", "a"),
        (2, "right", "a"),
        (1, "n-4", "b"),
        (4, None, "c"),
    ]


def test_racks_that_repeat_and_fill_pods(tmp_path: Path) -> None:
    machine = read(tmp_path, "{nodes_per_rack: 2, racks_per_pod: 2}").machine(5, 3)
    assert [(node.rack, node.pod, node.domain) for node in machine] == [
        ("rack-00", "pod-00", None),
        ("rack-00", "pod-00", None),
        ("rack-01", "pod-00", None),
        ("rack-01", "pod-00", None),
        ("rack-02", "pod-01", None),
    ]
    assert {node.slots for node in machine} == {3}


def test_a_plain_list_of_nodes(tmp_path: Path) -> None:
    assert names(read(tmp_path, "nodes: [a, 7, on]").machine()) == ["a", "7", "on"]
    assert names(read(tmp_path, "nodes: a").machine()) == ["a"]


def test_nodes_are_put_in_physical_order(tmp_path: Path) -> None:
    text = "nodes: {a: {rack: r, domain: d}, b: {rack: s}, c: {rack: r, domain: e}, d: {rack: r, domain: d}}"
    assert names(read(tmp_path, text).machine()) == ["a", "d", "c", "b"]
    assert names(read(tmp_path, text).machine(nodes=2)) == ["a", "d"]


def test_the_width_of_the_first_number_counts(tmp_path: Path) -> None:
    assert names(read(tmp_path, "nodes: n[8-11]x").machine()) == ["n8x", "n9x", "n10x", "n11x"]
    assert names(read(tmp_path, "nodes: n[008-009]").machine()) == ["n008", "n009"]


def test_a_job_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    description = read(tmp_path, "nodes: n-[0-5]")
    with pytest.raises(TopologyError) as error:
        description.machine(nodes=8)
    assert str(error.value) == (
        f"{tmp_path}/machine.yaml: describes 6 nodes, but the job asks for 8; expected --nodes 6 or fewer"
    )


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfnodes: a\r\n")
    assert names(load(str(path)).machine()) == ["a"]


def test_a_shipped_name_beats_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").write_text("nodes: mine")
    monkeypatch.chdir(tmp_path)
    assert len(load("local").machine().nodes) == 3
    assert names(load("./local").machine()) == ["mine"]


def test_the_documented_examples_are_valid(tmp_path: Path) -> None:
    assert files.__doc__
    blocks = re.findall(r"::\n\n((?:    .*\n)+)", files.__doc__)
    counts = [len(read(tmp_path, block).machine().nodes) for block in blocks]
    assert counts == [18, 36, 5]


def test_topology_never_imports_torch_or_rich() -> None:
    code = """
        import sys
        from tlaunch.topology import files, placement, replacement, shrinking, picture
        from tlaunch.topology.discover import gather, health, nvml, shown
        files.load("nvl72")
        heavy = {"torch", "rich", "pynvml", "asyncio", "numpy"} & sys.modules.keys()
        sys.exit(f"imported {heavy}" if heavy else 0)
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, timeout=60)

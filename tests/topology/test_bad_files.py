"""Each bad topology file gives one line that names the file, the place and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlaunch.topology import fileformat
from tlaunch.topology.files import load
from tlaunch.topology.model import TopologyError

NODES = "NAME, NAME-[00-17], or a list of these"
LIST = "expected a list such as gb[01-18,20],x7"
SLIP = "a pattern such as 'node-[00-17]' inside a list needs quotes"
TOP = "gpus, domain_per, racks_per_pod, nodes_per_rack, racks, nodes"
ONCE = "expected every domain in one rack"
NAME = "letters, digits, '.', '_' and '-'"


def complaint(folder: Path, data: bytes) -> str:
    """Return what is said about a file, without its folder."""
    path = folder / "f.yaml"
    path.write_bytes(data)
    with pytest.raises(TopologyError) as error:
        load(str(path))
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: empty; expected a mapping"),
        ("# nothing\n", "f.yaml: empty; expected a mapping"),
        (
            "nodes: 1\n---\nnodes: 2\n",
            "f.yaml:2: not YAML: expected a single document in the stream, but found another document",
        ),
        (
            "a:\n  - b\n c\n",
            "f.yaml:3: not YAML: while parsing a block mapping, expected <block end>, but found '<scalar>'",
        ),
        ("nodes: *gone\n", "f.yaml:1: not YAML: found undefined alias 'gone'"),
        ("gpus: 4\nnodes: \x07\n", "f.yaml:2: a control character; expected text"),
        ("nodes: " + "[" * 1000, "f.yaml: nested too deeply; expected a few levels"),
        (
            "nodes: [node-[00-17]]\n",
            f"f.yaml:1: not YAML: while parsing a flow sequence, expected ',' or ']', but got '['; {SLIP}",
        ),
        ("- a\n", "f.yaml:1: expected a mapping with one of nodes_per_rack, racks, nodes, got a list"),
        ("a\n", "f.yaml:1: expected a mapping with one of nodes_per_rack, racks, nodes, got 'a'"),
        ("gpus: 4\n", "f.yaml:1: expected a mapping with one of nodes_per_rack, racks, nodes"),
        ("[a]: 1\n", "f.yaml:1: expected a name as the key, got a list"),
    ],
)
def test_what_is_no_topology(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text.encode()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: 4\nnodes: a\n", "f.yaml:1: unknown key 'gpu'; did you mean 'gpus'?"),
        (
            "nodes: a\nwheels: 4\n",
            f"f.yaml:2: unknown key 'wheels'; expected one of {TOP}",
        ),
        ("racks:\n  r0:\n    node: a\n", "f.yaml:3: racks.r0: unknown key 'node'; did you mean 'nodes'?"),
        (
            "racks: {r0: {domains: {d0: {gpu: 4}}}}\n",
            "f.yaml:1: racks.r0.domains.d0: unknown key 'gpu'; did you mean 'gpus'?",
        ),
        ("nodes:\n  a:\n    domian: d\n", "f.yaml:3: nodes.a: unknown key 'domian'; did you mean 'domain'?"),
        ("gpus: 4\nnodes: a\ngpus: 8\n", "f.yaml:3: the key 'gpus' stands twice, first on line 1"),
        ("racks:\n  r0: a\n  r0: b\n", "f.yaml:3: racks: the key 'r0' stands twice, first on line 2"),
        ("nodes:\n  a: {}\n  a: {}\n", "f.yaml:3: nodes: the key 'a' stands twice, first on line 2"),
        (
            "<<: {gpus: 4}\nnodes: a\n",
            f"f.yaml:1: unknown key '<<'; expected one of {TOP}",
        ),
        (
            "nodes: a\nracks: {r: b}\n",
            "f.yaml:1: nodes: stands beside 'racks'; expected only one of nodes_per_rack, racks, nodes",
        ),
        (
            "nodes: a\nracks_per_pod: 2\n",
            "f.yaml:2: racks_per_pod: expected only beside nodes_per_rack; racks that are listed have a pod each",
        ),
        (
            "racks:\n  r0:\n    nodes: a\n    domains: {d: b}\n",
            "f.yaml:2: racks.r0: expected nodes or domains, not both",
        ),
        ("racks:\n  r0:\n    pod: p\n", "f.yaml:2: racks.r0: expected nodes or domains, got neither"),
        (
            "racks:\n  r0:\n    domain_per: rack\n    domains: {d: b}\n",
            "f.yaml:3: racks.r0.domain_per: expected only without domains",
        ),
    ],
)
def test_wrong_keys(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text.encode()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes:\n", f"f.yaml:1: nodes: no nodes; expected {NODES}"),
        ("nodes: []\n", f"f.yaml:1: nodes: no nodes; expected {NODES}"),
        ("nodes: {}\n", f"f.yaml:1: nodes: no nodes; expected {NODES}"),
        ("nodes: ''\n", f"f.yaml:1: nodes: '' does not name a node; {LIST}"),
        ("nodes:\n  - a\n  - [b]\n", f"f.yaml:3: nodes[1]: expected {NODES}, got a list"),
        ("nodes:\n  - a\n  -\n", f"f.yaml:3: nodes[1]: expected {NODES}, got nothing"),
        ("nodes: {a: 4}\n", "f.yaml:1: nodes.a: expected a mapping, got '4'"),
        ("racks:\n", "f.yaml:1: racks: expected racks by name, got nothing"),
        ("racks: {}\n", "f.yaml:1: racks: empty; expected racks by name"),
        ("racks: [a]\n", "f.yaml:1: racks: expected racks by name, got a list"),
        ("racks:\n  r0:\n", f"f.yaml:2: racks.r0: no nodes; expected {NODES}"),
        ("racks:\n  r0:\n    nodes: []\n", f"f.yaml:3: racks.r0.nodes: no nodes; expected {NODES}"),
        ("racks: {r0: {domains: {}}}\n", "f.yaml:1: racks.r0.domains: empty; expected NVLink domains by name"),
        ("racks:\n  r0:\n    domains:\n      d0:\n", f"f.yaml:4: racks.r0.domains.d0: no nodes; expected {NODES}"),
        (
            "racks: {r0: {domains: {d0: {gpus: 4}}}}\n",
            f"f.yaml:1: racks.r0.domains.d0: no nodes; expected nodes: {NODES}",
        ),
    ],
)
def test_missing_nodes(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text.encode()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [a, b, a]\n", "f.yaml:1: nodes[2]: a stands twice (line 1); expected every node once"),
        ("nodes: {'n[0-3]': {}, n2: {}}\n", "f.yaml:1: nodes.n2: n2 stands twice (line 1); expected every node once"),
        (
            "racks:\n  r0: n-[00-03]\n  r1: n-[03-05]\n",
            "f.yaml:3: racks.r1: n-03 is already in rack r0 (line 2); expected every node once",
        ),
        (
            "racks:\n  r0:\n    nodes:\n      - a\n      - a\n",
            "f.yaml:5: racks.r0.nodes[1]: a stands twice (line 4); expected every node once",
        ),
        (
            "nodes:\n  a: {domain: d, rack: r}\n  b: {domain: d, rack: s}\n",
            "f.yaml:3: nodes.b: domain d is in rack r (line 2) and in rack s; expected every domain in one rack",
        ),
        (
            "nodes:\n  a: {domain: d}\n  b: {domain: d, rack: s}\n",
            "f.yaml:3: nodes.b: domain d is in no rack (line 2) and in rack s; expected every domain in one rack",
        ),
        (
            "racks:\n  r: {domains: {d: a}}\n  s:\n    domains: {d: b}\n",
            "f.yaml:4: racks.s.domains.d: domain d is in rack r (line 2) and in rack s; " + ONCE,
        ),
        (
            "nodes:\n  a: {rack: r, pod: p}\n  b: {rack: r}\n",
            "f.yaml:3: nodes.b: rack r is in pod p (line 2) and in no pod; expected every rack in one pod",
        ),
    ],
)
def test_nodes_in_two_places(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text.encode()) == message


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("0", "0"),
        ("1025", "1025"),
        ("-4", "'-4'"),
        ("4.0", "'4.0'"),
        ("'4'", "'4'"),
        ("010", "'010'"),
        ("1_0", "'1_0'"),
        ("1:30", "'1:30'"),
        ("true", "'true'"),
        ("four", "'four'"),
        ("9999999999999999999", "'9999999999999999999'"),
        ("", "nothing"),
        ("[4]", "a list"),
        ("{a: 4}", "a mapping"),
    ],
)
def test_bad_counts(tmp_path: Path, written: str, found: str) -> None:
    said = complaint(tmp_path, f"nodes: a\ngpus: {written}\n".encode())
    assert said == f"f.yaml:2: gpus: expected a whole number from 1 to 1024, got {found}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes_per_rack: 0\n", "f.yaml:1: nodes_per_rack: expected a whole number from 1 to 100000, got 0"),
        (
            "nodes_per_rack: 2\nracks_per_pod: x\n",
            "f.yaml:2: racks_per_pod: expected a whole number from 1 to 100000, got 'x'",
        ),
        ("nodes: a\ndomain_per: racks\n", "f.yaml:2: domain_per: 'racks' is unknown; did you mean 'rack'?"),
        ("nodes: a\ndomain_per: [x]\n", "f.yaml:2: domain_per: expected one of rack, node, got a list"),
        ("nodes: a/b\n", f"f.yaml:1: nodes: 'a/b' does not name a node; {LIST}"),
        ("nodes: n-[0-1\n", f"f.yaml:1: nodes: 'n-[0-1' has a bracket that is not closed; {LIST}"),
        (
            "nodes: n-[a-b]\n",
            f"f.yaml:1: nodes: 'n-[a-b]': 'a-b' is no number or range; {LIST}",
        ),
        (
            "nodes: n-[3-1]\n",
            f"f.yaml:1: nodes: 'n-[3-1]': 3-1 counts down; {LIST}",
        ),
        ("nodes: n[0-999999999]\n", "f.yaml:1: nodes: 'n[0-999999999]' names more than 100000 nodes; expected fewer"),
        ("racks: {'a b': n}\n", f"f.yaml:1: racks.a b: 'a b' cannot be a name; expected {NAME}"),
        (
            "nodes: {a: {rack: r/1}}\n",
            f"f.yaml:1: nodes.a.rack: 'r/1' cannot be a name; expected the name of a rack of {NAME}",
        ),
        ('racks: {"a\\nb": n}\n', f"f.yaml:1: racks.'a\\nb': 'a\\nb' cannot be a name; expected {NAME}"),
        (
            "nodes: " + "x" * 200,
            "f.yaml:1: nodes: '" + "x" * 60 + f"...' does not name a node; {LIST}",
        ),
    ],
)
def test_bad_names_and_words(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text.encode()) == message


def test_too_many_nodes_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileformat, "MAX_NODES", 10)
    said = complaint(tmp_path, b"nodes:\n  - n[1-9]\n  - m[1-2]\n")
    assert said == "f.yaml:3: nodes[1]: more than 10 nodes; expected fewer"


def test_what_is_not_utf8(tmp_path: Path) -> None:
    assert complaint(tmp_path, b"gpus: 4\nnodes: \xff\n") == "f.yaml:2: byte 0xff is not UTF-8; expected text"


def test_what_is_too_large(tmp_path: Path) -> None:
    assert complaint(tmp_path, b"#" * (1 << 20) + b"\n") == "f.yaml: larger than 1 MiB; expected a short YAML file"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nvl27", "'nvl27' is neither a file nor a shipped topology; did you mean 'nvl72'?"),
        ("cluster", "'cluster' is neither a file nor a shipped topology; expected one of hgx, local, nvl72"),
        ("", "'' is neither a file nor a shipped topology; expected one of hgx, local, nvl72"),
        ("no/file", "'no/file' is neither a file nor a shipped topology; expected a file or one of hgx, local, nvl72"),
        ("a\0b", "'a\\x00b' is neither a file nor a shipped topology; expected one of hgx, local, nvl72"),
        ("/", "'/': Is a directory; expected a topology file that can be read"),
        ("/dev/zero", "/dev/zero: larger than 1 MiB; expected a short YAML file"),
    ],
)
def test_what_cannot_be_read(source: str, message: str) -> None:
    with pytest.raises(TopologyError) as error:
        load(source)
    assert str(error.value) == message

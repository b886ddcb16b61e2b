from __future__ import annotations

import pytest

from tlaunch.topology.discover.labels import parse_labels, parse_variable, reports
from tlaunch.topology.discover.report import Coordinates
from tlaunch.topology.model import TopologyError

CLIQUE = "5e1f0a7c-9b3d-4e6f-a1b2-c3d4e5f60718.1"


def meaning(**labels: str) -> dict[str, Coordinates]:
    """What the labels of one node mean, by source."""
    told = reports("labels", {"a": {key.replace("__", "/"): value for key, value in labels.items()}})
    assert not any(report.notes for report in told)
    return {report.source: report.nodes["a"] for report in told}


@pytest.mark.parametrize(
    ("labels", "source", "coordinates"),
    [
        ({"nvidia.com/gpu.clique": CLIQUE}, "gpu-clique", Coordinates(domain=CLIQUE)),
        (
            {
                "topology.k8s.aws/network-node-layer-1": "nn-top",
                "topology.k8s.aws/network-node-layer-2": "nn-mid",
                "topology.k8s.aws/network-node-layer-3": "nn-low",
            },
            "eks",
            Coordinates("nn-mid", "nn-low"),
        ),
        (
            {f"topology.k8s.aws/network-node-layer-{layer}": f"nn-{layer}" for layer in (4, 2, 1, 3)},
            "eks",
            Coordinates("nn-3", "nn-4"),
        ),
        ({"topology.k8s.aws/network-node-layer-1": "nn-1"}, "eks", Coordinates(rack="nn-1")),
        (
            {
                "cloud.google.com/gce-topology-block": "b",
                "cloud.google.com/gce-topology-subblock": "s",
                "cloud.google.com/gce-topology-host": "h",
            },
            "gke",
            Coordinates("b", "s"),
        ),
        (
            {f"network.topology.nvidia.com/{level}": level for level in ("accelerator", "leaf", "spine", "core")},
            "topograph",
            Coordinates("spine", "leaf", "accelerator"),
        ),
        (
            {f"network.topology.nvidia.com/{level}": level for level in ("block", "spine", "datacenter")},
            "topograph",
            Coordinates("spine", "block"),
        ),
        (
            {f"network.topology.kubernetes.io/{level}": level for level in ("accelerator", "block", "spine")},
            "topograph",
            Coordinates("spine", "block", "accelerator"),
        ),
        (
            {f"topology.kubernetes.io/network-level-{level}": f"s{level}" for level in (1, 2, 3)},
            "topograph",
            Coordinates("s2", "s1"),
        ),
        (
            {
                "accelerator.topograph.run/domain": "nvl1",
                "accelerator.topograph.run/sub-domain": "half",
                "fabric.topograph.run/tier-0": "leaf",
                "fabric.topograph.run/tier-1": "spine",
                "fabric.topograph.run/tier-12": "far",
            },
            "topograph",
            Coordinates("spine", "leaf", "nvl1"),
        ),
        (
            {
                "oci.oraclecloud.com/rdma.local_block_id": "l",
                "oci.oraclecloud.com/rdma.network_block_id": "n",
                "oci.oraclecloud.com/rdma.hpc_island_id": "i",
            },
            "oke",
            Coordinates("n", "l"),
        ),
        (
            {"topology.kubernetes.io/zone": "eu-1a", "topology.kubernetes.io/rack": "r7"},
            "kubernetes",
            Coordinates("eu-1a", "r7"),
        ),
    ],
)
def test_what_labels_mean(labels: dict[str, str], source: str, coordinates: Coordinates) -> None:
    assert meaning(**labels) == {source: coordinates}


def test_newer_names_come_before_older_ones() -> None:
    labels = {"network.topology.nvidia.com/block": "old", "fabric.topograph.run/tier-0": "new"}
    assert meaning(**labels) == {"topograph": Coordinates(rack="new")}


def test_labels_without_a_value_or_meaning_say_nothing() -> None:
    assert meaning(**{"nvidia.com/gpu.clique": "", "app": "train", "topology.kubernetes.io/region": "eu"}) == {}


@pytest.mark.parametrize(
    "key", ["network.topology.nvidia.com/shelf", "topology.k8s.aws/network-node-layer-x", "fabric.topograph.run/plane"]
)
def test_unknown_levels_are_left_out_and_named(key: str) -> None:
    (told,) = reports("labels", {"a": {key: "x"}, "b": {key: "y"}})
    assert (told.nodes, told.notes) == ({}, (f"unknown level {key}: it is left out",))


def test_the_file_of_a_downward_api_volume() -> None:
    text = 'app="train"\nnvidia.com/gpu.clique="abc.1"\n\nquoted="a \\"b\\" \\\\ c"\nempty=""\nplain=x.1\n'
    assert parse_labels("labels", text) == {
        "app": "train",
        "nvidia.com/gpu.clique": "abc.1",
        "quoted": 'a "b" \\ c',
        "empty": "",
        "plain": "x.1",
    }


def test_the_variable() -> None:
    assert parse_variable('a/b=c, d="e"') == {"a/b": "c", "d": "e"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a="b"\nnonsense', "f:2: 'nonsense': expected KEY=\"VALUE\""),
        ('a="b', 'f:1: \'a="b\': expected KEY="VALUE"'),
        ('a="b" c', 'f:1: \'a="b" c\': expected KEY="VALUE"'),
        ('a="\\x41"', 'f:1: \'a="\\\\x41"\': expected KEY="VALUE"'),
        ('a="b"\na="c"', "f:2: a: stands twice, with different values"),
    ],
)
def test_what_are_no_labels(text: str, line: str) -> None:
    with pytest.raises(TopologyError) as error:
        parse_labels("f", text)
    assert str(error.value) == line


def test_a_value_that_cannot_be_a_name() -> None:
    with pytest.raises(TopologyError) as error:
        reports("nodes.json", {"gb01": {"topology.kubernetes.io/rack": "row 3"}})
    assert str(error.value) == (
        "nodes.json: gb01: topology.kubernetes.io/rack: 'row 3' cannot be a name; "
        "expected letters, digits, '.', '_' and '-'"
    )

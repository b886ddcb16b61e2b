from __future__ import annotations

import json

import pytest

from tlaunch.topology.discover.cloud import Metadata, parse
from tlaunch.topology.discover.report import Coordinates
from tlaunch.topology.model import TopologyError


def read(document: object) -> Metadata:
    return parse("m.json", json.dumps(document), "here")


def places(document: object) -> dict[str, dict[str, Coordinates]]:
    return {report.source: dict(report.nodes) for report in read(document).reports}


def node(name: str, provider: str | None = None, **labels: str) -> dict[str, object]:
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"providerID": provider}}


def test_kubernetes_nodes() -> None:
    items = [
        node("ip-1", "aws:///us-west-2a/i-01", **{"nvidia.com/gpu.clique": "c.1", "topology.kubernetes.io/zone": "z"}),
        node("ip-2", **{"nvidia.com/gpu.clique": "c.2"}),
    ]
    for document in ({"kind": "List", "items": items}, items):
        assert places(document) == {
            "gpu-clique": {"ip-1": Coordinates(domain="c.1"), "ip-2": Coordinates(domain="c.2")},
            "kubernetes": {"ip-1": Coordinates(pod="z")},
        }
        assert read(document).instances == {"i-01": "ip-1"}
    assert places(items[1]) == {"gpu-clique": {"ip-2": Coordinates(domain="c.2")}}
    assert places({"kind": "Node", "metadata": {"name": "bare"}}) == {}


def test_labels_alone_are_those_of_this_node() -> None:
    assert places({"nvidia.com/gpu.clique": "c.1"}) == {"gpu-clique": {"here": Coordinates(domain="c.1")}}


def test_aws() -> None:
    printed = {
        "Instances": [
            {"InstanceId": "i-01", "NetworkNodes": ["nn-1", "nn-2", "nn-3"], "CapacityBlockId": "cb-7"},
            {"InstanceId": "i-02", "NetworkNodes": ["nn-1", "nn-2", "nn-3", "nn-4"]},
            {"InstanceId": "i-03", "NetworkNodes": None, "CapacityBlockId": None},
        ]
    }
    expected = {
        "i-01": Coordinates("nn-2", "nn-3", "cb-7"),
        "i-02": Coordinates("nn-3", "nn-4"),
        "i-03": Coordinates(),
    }
    assert places(printed) == {"aws": expected}
    answered = {"instances": [{"instanceId": "i-02", "networkNodes": ["nn-1", "nn-2", "nn-3", "nn-4"]}]}
    assert places(answered) == {"aws": {"i-02": expected["i-02"]}}
    assert places([printed, {"Instances": []}]) == {"aws": expected}


def test_gcp() -> None:
    place = {"cluster": "c", "block": "b1", "subblock": "s1", "host": "h"}
    instances = [
        {"kind": "compute#instance", "name": "gpu-0", "resourceStatus": {"physicalHostTopology": place}},
        {"kind": "compute#instance", "name": "cpu-0", "resourceStatus": {}},
    ]
    for document in (instances, {"kind": "compute#instanceList", "items": instances}):
        assert places(document) == {"gcp": {"gpu-0": Coordinates("b1", "s1"), "cpu-0": Coordinates()}}
    assert places({"physicalHostTopology": place}) == {"gcp": {"here": Coordinates("b1", "s1")}}


def test_oci() -> None:
    place = {
        "customerHPCIslandId": "ocid1.hpcisland.oc1.iad.a",
        "customerNetworkBlock": "ocid1.computenetworkblock.oc1.iad.b",
        "customerLocalBlock": "ocid1.computelocalblock.oc1.iad.c",
        "customerGpuMemoryFabric": "ocid1.computegpumemoryfabric.oc1.iad.d",
    }
    expected = Coordinates(
        "ocid1.computenetworkblock.oc1.iad.b",
        "ocid1.computelocalblock.oc1.iad.c",
        "ocid1.computegpumemoryfabric.oc1.iad.d",
    )
    assert places(place) == {"oci": {"here": expected}}
    assert places({"rackId": "r", "rdmaTopologyData": place}) == {"oci": {"here": expected}}


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ([], "m.json: document: expected Kubernetes nodes"),
        ({}, "m.json: document: expected Kubernetes nodes"),
        ({"a": 1}, "m.json: document: expected Kubernetes nodes"),
        ([1], "m.json: document: expected Kubernetes nodes"),
        ({"kind": "Pod", "metadata": {"name": "p"}}, "m.json: kind: expected Node, got "),
        ({"kind": "List"}, "m.json: kind: expected Node, got 'List'"),
        ({"metadata": {"name": "a"}}, "m.json: document: expected Kubernetes nodes"),
        ({"kind": "Node"}, "m.json: metadata: expected a mapping"),
        ({"kind": "List", "items": ["x"]}, "m.json: document: expected Kubernetes nodes"),
        ({"kind": "List", "items": {}}, "m.json: items: expected a list"),
        ({"kind": "Node", "metadata": {"name": "a b"}}, "m.json: metadata.name: 'a b' cannot be a name"),
        ([node("a"), node("a")], "m.json: a: metadata.name: stands twice; expected every node once"),
        ({"kind": "Node", "metadata": {"name": "a", "labels": {"x": 1}}}, "m.json: a: labels: expected a mapping of"),
        ({"Instances": [1]}, "m.json: Instances: expected a list of instances"),
        ({"Instances": [{"NetworkNodes": []}]}, "m.json: InstanceId: expected a name, got 'None'"),
        (
            {"Instances": [{"InstanceId": "i", "NetworkNodes": "nn"}]},
            "m.json: i: NetworkNodes: expected a list of names, from the top down",
        ),
        (
            {"Instances": [{"InstanceId": "i", "NetworkNodes": ["nn", 3]}]},
            "m.json: i: NetworkNodes: expected a name, got '3'",
        ),
        (
            {"Instances": [{"InstanceId": "i", "NetworkNodes": ["x"]}, {"InstanceId": "i", "NetworkNodes": ["y"]}]},
            "m.json: i: instance: stands twice, in different places; expected every instance once",
        ),
        ({"physicalHostTopology": "x"}, "m.json: here: physicalHostTopology: expected a mapping"),
        ({"physicalHostTopology": {"block": "a/b"}}, "m.json: here: block: 'a/b' cannot be a name"),
        ({"rdmaTopologyData": []}, "m.json: here: rdmaTopologyData: expected a mapping"),
        ({"customerLocalBlock": ["x"]}, "m.json: here: customerLocalBlock: expected a name, got"),
    ],
)
def test_mistakes_name_source_node_and_field(document: object, line: str) -> None:
    with pytest.raises(TopologyError) as error:
        read(document)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a":\n 1,}', "m.json:2: not JSON: "),
        ("[" * 100_000, "m.json: JSON that is nested too deeply or has huge numbers"),
        ('{"a/b": ' + "9" * 5000 + "}", "m.json: JSON that is nested too deeply or has huge numbers"),
    ],
)
def test_what_is_no_json(text: str, line: str) -> None:
    with pytest.raises(TopologyError) as error:
        parse("m.json", text, "here")
    assert str(error.value).startswith(line)

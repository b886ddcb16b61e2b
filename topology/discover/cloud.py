"""What Kubernetes and the clouds say of nodes in JSON: which of the known documents it is, and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeGuard

from tlaunch.topology.description import MAX_NODES
from tlaunch.topology.discover import labels
from tlaunch.topology.discover.document import parse_json
from tlaunch.topology.discover.report import Coordinates, Report, checked_name, fail
from tlaunch.topology.yamltree import shown

_KNOWN = (
    "Kubernetes nodes (kubectl get nodes -o json), labels, AWS DescribeInstanceTopology, "
    "GCP instances with physicalHostTopology, or OCI rdmaTopologyData"
)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a document says. ``instances``: the node that each cloud instance is, by the instance's id."""

    reports: tuple[Report, ...]
    instances: Mapping[str, str] = field(default_factory=dict)


def parse(origin: str, text: str, node: str) -> Metadata:
    """Read a JSON document. ``node``: this node, which a document without names is about.

    Raises:
        TopologyError: it is not JSON, none of the known documents, or one with a mistake.
    """
    items = _objects(origin, parse_json(origin, text))
    first = items[0]
    if _has(first, "Instances"):
        found = (_aws(origin, instance) for instance in _instances(origin, items))
        return Metadata((Report("aws", origin, _by_name(origin, found)),))
    if str(first.get("kind", "")).startswith("compute#") or "physicalHostTopology" in first:
        found = (_gcp(origin, instance, node) for instance in _listed(origin, items))
        return Metadata((Report("gcp", origin, _by_name(origin, found)),))
    if _has(first, "kind"):
        return _kubernetes(origin, items)
    if len(items) > 1 or not first:
        _refuse(origin)
    if _has(first, "rdmaTopologyData") or _has(first, "customerLocalBlock"):
        return Metadata((Report("oci", origin, {node: _oci(origin, first, node)}),))
    if not any("/" in key for key in first):
        _refuse(origin)
    return Metadata(labels.reports(origin, {node: _labels(origin, node, first)}))


def _objects(origin: str, document: object) -> list[dict[str, Any]]:
    items: list[object] = document if isinstance(document, list) else [document]
    found = [item for item in items if _is_object(item)]
    if not items or len(found) < len(items):
        _refuse(origin)
    return found


def _refuse(origin: str) -> NoReturn:
    fail(origin, None, "document", f"expected {_KNOWN}")


def _kubernetes(origin: str, items: list[dict[str, Any]]) -> Metadata:
    """Read nodes: a list of them as kubectl prints it, or one."""
    nodes: dict[str, Mapping[str, str]] = {}
    instances: dict[str, str] = {}
    for node in _listed(origin, items):
        if node.get("kind", "Node") != "Node":
            fail(origin, None, "kind", f"expected Node, got {shown(str(node['kind']))}")
        metadata = _member(origin, node, "metadata", dict)
        name = checked_name(origin, None, "metadata.name", metadata.get("name"))
        if name in nodes:
            fail(origin, name, "metadata.name", "stands twice; expected every node once")
        nodes[name] = _labels(origin, name, metadata.get("labels") or {})
        spec = node.get("spec")
        if _is_object(spec) and isinstance(spec.get("providerID"), str):
            instances[spec["providerID"].rpartition("/")[2]] = name
    if len(nodes) > MAX_NODES:
        fail(origin, None, "items", f"more than {MAX_NODES} nodes; expected fewer")
    return Metadata(labels.reports(origin, nodes), instances)


def _listed(origin: str, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the objects themselves, those of lists (``{"items": [...]}``) one by one."""
    for item in items:
        listed = _member(origin, item, "items", list) if "items" in item else [item]
        yield from _objects(origin, listed) if listed else []


def _labels(origin: str, node: str, found: object) -> Mapping[str, str]:
    if not _is_object(found) or not all(isinstance(value, str) for value in found.values()):
        fail(origin, node, "labels", "expected a mapping of text to text")
    return found


def _instances(origin: str, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the instances of all pages of the answer."""
    for item in items:
        for instance in _get(item, "Instances") or []:
            if not _is_object(instance):
                fail(origin, None, "Instances", "expected a list of instances")
            yield instance


def _aws(origin: str, instance: dict[str, Any]) -> tuple[str, Coordinates]:
    """Network nodes are given from the top down; the last is next to the instance."""
    name = checked_name(origin, None, "InstanceId", _get(instance, "InstanceId"))
    above = _get(instance, "NetworkNodes") or _get(instance, "NetworkNodeSet") or []
    if not isinstance(above, list):
        fail(origin, name, "NetworkNodes", "expected a list of names, from the top down")
    switches = [checked_name(origin, name, "NetworkNodes", switch) for switch in above]
    block = _get(instance, "CapacityBlockId") or None
    domain = None if block is None else checked_name(origin, name, "CapacityBlockId", block)
    rack, pod = (switches[-1] if switches else None), (switches[-2] if len(switches) > 1 else None)
    return name, Coordinates(pod, rack, domain)


def _gcp(origin: str, instance: dict[str, Any], node: str) -> tuple[str, Coordinates]:
    name = checked_name(origin, None, "name", instance.get("name", node))
    status = instance.get("resourceStatus", instance)
    place = status.get("physicalHostTopology") if _is_object(status) else None
    if place is None:  # a machine type without it
        return name, Coordinates()
    if not _is_object(place):
        fail(origin, name, "physicalHostTopology", "expected a mapping")
    pod, rack = (_optional(origin, name, place, key) for key in ("block", "subblock"))
    return name, Coordinates(pod, rack)


def _oci(origin: str, document: dict[str, Any], node: str) -> Coordinates:
    place = document.get("rdmaTopologyData", document)
    if not _is_object(place):
        fail(origin, node, "rdmaTopologyData", "expected a mapping")
    keys = ("customerNetworkBlock", "customerLocalBlock", "customerGpuMemoryFabric")
    pod, rack, domain = (_optional(origin, node, place, key) for key in keys)
    return Coordinates(pod, rack, domain)


def _by_name(origin: str, found: Iterator[tuple[str, Coordinates]]) -> dict[str, Coordinates]:
    nodes: dict[str, Coordinates] = {}
    for name, coordinates in found:
        if nodes.setdefault(name, coordinates) != coordinates:
            fail(origin, name, "instance", "stands twice, in different places; expected every instance once")
        if len(nodes) > MAX_NODES:
            fail(origin, None, "document", f"more than {MAX_NODES} nodes; expected fewer")
    return nodes


def _optional(origin: str, node: str, place: dict[str, Any], key: str) -> str | None:
    value = place.get(key) or None
    return None if value is None else checked_name(origin, node, key, value)


def _member(origin: str, item: dict[str, Any], key: str, kind: type[Any]) -> Any:  # noqa: ANN401
    value = item.get(key)
    if not isinstance(value, kind):
        fail(origin, None, key, f"expected a {'list' if kind is list else 'mapping'}")
    return value


def _has(item: dict[str, Any], key: str) -> bool:
    return _get(item, key) is not None


def _get(item: dict[str, Any], key: str) -> Any:  # noqa: ANN401
    """Return a member; AWS's tools write ``Instances``, its API ``instances``."""
    return item.get(key, item.get(key[0].lower() + key[1:]))


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)

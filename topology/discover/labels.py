"""Labels of Kubernetes nodes: which of them say where a node stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tlaunch.topology.discover.report import RANK, Above, Coordinates, Report, checked_name, fail
from tlaunch.topology.yamltree import shown

VARIABLE = "TLAUNCH_LABELS"
"""An environment variable with labels of this node: ``KEY=VALUE,KEY=VALUE``."""

_GKE = "cloud.google.com/gce-topology-"
_EKS = "topology.k8s.aws/network-node-layer-"
_OKE = "oci.oraclecloud.com/rdma."
_NVIDIA = "network.topology.nvidia.com/"
_BEFORE = "network.topology.kubernetes.io/"  # what Topograph called its labels at first
_FIRST = "topology.kubernetes.io/network-level-"  # and before that, 1 being the nearest switch
_TIER = "fabric.topograph.run/tier-"  # since 1.0, 0 being the nearest switch

_KEYS: Mapping[str, tuple[str, Above]] = {
    "nvidia.com/gpu.clique": ("gpu-clique", "domain"),
    "accelerator.topograph.run/domain": ("topograph", "domain"),
    f"{_NVIDIA}accelerator": ("topograph", "domain"),
    f"{_BEFORE}accelerator": ("topograph", "domain"),
    f"{_TIER}0": ("topograph", "rack"),
    f"{_NVIDIA}leaf": ("topograph", "rack"),
    f"{_NVIDIA}block": ("topograph", "rack"),
    f"{_BEFORE}block": ("topograph", "rack"),
    f"{_FIRST}1": ("topograph", "rack"),
    f"{_TIER}1": ("topograph", "pod"),
    f"{_NVIDIA}spine": ("topograph", "pod"),
    f"{_BEFORE}spine": ("topograph", "pod"),
    f"{_FIRST}2": ("topograph", "pod"),
    f"{_GKE}subblock": ("gke", "rack"),
    f"{_GKE}block": ("gke", "pod"),
    f"{_OKE}local_block_id": ("oke", "rack"),
    f"{_OKE}network_block_id": ("oke", "pod"),
    "topology.kubernetes.io/rack": ("kubernetes", "rack"),
    "topology.kubernetes.io/zone": ("kubernetes", "pod"),
}
"""The level that a label names, and the source that it counts for. Of one source and level the first label counts."""

_COARSER = re.compile(
    r"accelerator\.topograph\.run/sub-domain|fabric\.topograph\.run/tier-([2-9]|\d{2,})"
    r"|network\.topology\.nvidia\.com/(core|datacenter)|network\.topology\.kubernetes\.io/datacenter"
    r"|topology\.kubernetes\.io/(network-level-\d+|region)|cloud\.google\.com/gce-topology-host"
)
"""Labels that are known, and wider or narrower than what is kept."""

_FAMILIES = (_NVIDIA, _BEFORE, _GKE, _EKS, "accelerator.topograph.run/", "fabric.topograph.run/")
_LAYER = re.compile(re.escape(_EKS) + r"[1-9]")
_LOWEST: tuple[Above, ...] = ("rack", "pod")
_LINE = re.compile(r"""\s*(?P<key>[^\s="]+)\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]*)\s*""")


def parse_labels(origin: str, text: str) -> dict[str, str]:
    r"""Read labels: one ``KEY="VALUE"`` on each line, as a downward API volume has them; the quotes may be left out.

    Raises:
        TopologyError: a line is something else, or a key stands twice.
    """
    labels: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        value = _unquoted(match["value"]) if match else None
        if match is None or value is None:
            fail(f"{origin}:{number}", None, shown(line), 'expected KEY="VALUE"')
        if labels.setdefault(match["key"], value) != value:
            fail(f"{origin}:{number}", None, match["key"], "stands twice, with different values")
    return labels


def parse_variable(text: str) -> dict[str, str]:
    """Read ``KEY=VALUE,KEY=VALUE``, the contents of ``TLAUNCH_LABELS``."""
    return parse_labels(VARIABLE, text.replace(",", "\n"))


def reports(origin: str, nodes: Mapping[str, Mapping[str, str]]) -> tuple[Report, ...]:
    """Say what the labels of nodes mean (``nodes[name][key]``): one report for each source that has something.

    Raises:
        TopologyError: the value of a label that counts cannot be a name.
    """
    found: dict[str, dict[str, Coordinates]] = {}
    notes: dict[str, None] = {}
    for node, labels in nodes.items():
        for source, level, key, value in _places(labels):
            name = checked_name(origin, node, key, value)
            known = found.setdefault(source, {})
            coordinates = known.get(node, Coordinates())
            if coordinates.at(level) is None:
                known[node] = _with(coordinates, level, name)
        notes |= dict.fromkeys(f"unknown level {key}: it is left out" for key in _unknown(labels))
    told = [Report(source, origin, found[source]) for source in sorted(found, key=RANK.__getitem__)]
    if notes:
        told.append(Report("kubernetes", origin, notes=tuple(notes)))
    return tuple(told)


def _places(labels: Mapping[str, str]) -> Iterable[tuple[str, Above, str, str]]:
    """Yield (source, level, key, value). A label without a value says nothing."""
    for key, (source, level) in _KEYS.items():
        if labels.get(key):
            yield source, level, key, labels[key]
    layers = sorted((key for key in labels if _LAYER.fullmatch(key) and labels[key]), reverse=True)
    # How many layers there are depends on the instance type: 1 is the top, the last is next to the instance.
    for level, key in zip(_LOWEST, layers, strict=False):
        yield "eks", level, key, labels[key]


def _unknown(labels: Mapping[str, str]) -> list[str]:
    """Return the labels of families that we know with levels that we do not."""
    return [
        key
        for key in labels
        if key.startswith(_FAMILIES) and key not in _KEYS and not _COARSER.fullmatch(key) and not _LAYER.fullmatch(key)
    ]


def _with(coordinates: Coordinates, level: Above, name: str) -> Coordinates:
    return {
        "pod": lambda: replace(coordinates, pod=name),
        "rack": lambda: replace(coordinates, rack=name),
        "domain": lambda: replace(coordinates, domain=name),
    }[level]()


def _unquoted(value: str) -> str | None:
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return None
    return str(text)

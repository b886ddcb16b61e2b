"""What one source says about nodes: partial coordinates, each level by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from tlaunch.topology.model import TopologyError
from tlaunch.topology.yamltree import is_name, shown

Above = Literal["pod", "rack", "domain"]
ABOVE: tuple[Above, ...] = ("pod", "rack", "domain")
"""The levels above the node, from widest to narrowest: what sources say of a node."""


@dataclass(frozen=True, slots=True)
class Source:
    """Somebody who may know where nodes stand.

    ``words``: whose names it uses. Two sources with the same words mean the same place by the same name; otherwise only
    which nodes they group together can be compared.
    """

    name: str
    words: str
    says: str


SOURCES: tuple[Source, ...] = (
    Source("file", "file", "a topology file: the user has said so"),
    Source("nvml", "clique", "the NVIDIA driver of this node: NVLink domain, GPUs"),
    Source("gpu-clique", "clique", "label nvidia.com/gpu.clique"),
    Source("topograph", "topograph", "labels of NVIDIA Topograph, under any of its names"),
    Source("eks", "aws", "labels topology.k8s.aws/network-node-layer-*"),
    Source("gke", "gke", "labels cloud.google.com/gce-topology-*"),
    Source("oke", "oke", "labels oci.oraclecloud.com/rdma.*"),
    Source("kubernetes", "kubernetes", "labels topology.kubernetes.io/rack and zone"),
    Source("aws", "aws", "AWS DescribeInstanceTopology"),
    Source("gcp", "gcp", "GCP physicalHostTopology"),
    Source("oci", "oci", "OCI rdmaTopologyData"),
    Source("slurm", "slurm", "SLURM_TOPOLOGY_ADDR, and the GPUs of the step or job"),
    Source("scontrol", "slurm", "scontrol show topology"),
    Source("hostname", "hostname", "names in alphabetical order: the last resort"),
)
"""In order of precedence. On each level of each node the first source that says something wins."""

SLOTS_FIRST = ("nvml", "slurm")
"""Sources that win, before all others, on how many slots a node has: they know what this job may use of it."""

BY_NAME: Mapping[str, Source] = {source.name: source for source in SOURCES}
RANK: Mapping[str, int] = {source.name: index for index, source in enumerate(SOURCES)}


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where one node stands, as far as one source knows; ``None`` where it says nothing. ``slots``: GPUs to use."""

    pod: str | None = None
    rack: str | None = None
    domain: str | None = None
    slots: int | None = None

    def at(self, level: Above) -> str | None:
        """Return the place on one level."""
        return {"pod": self.pod, "rack": self.rack, "domain": self.domain}[level]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver sees it.

    ``index`` is NVML's. ``clique`` is the NVLink domain ``ClusterUUID.CliqueID``; ``peers`` are the GPUs of the same
    node that NVLink reaches. ``fault`` says why it cannot be used; ``uuid`` and ``pci`` are ``None`` when it does not
    even answer to that.
    """

    index: int
    uuid: str | None = None
    pci: str | None = None
    name: str | None = None
    clique: str | None = None
    peers: tuple[int, ...] = ()
    ecc: bool | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a source says. ``origin``: where exactly, a file or a variable. ``notes``: what people should know of it."""

    source: str
    origin: str
    nodes: Mapping[str, Coordinates] = field(default_factory=dict)
    gpus: Mapping[str, tuple[Gpu, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def fail(origin: str, node: str | None, part: str, problem: str) -> NoReturn:
    """Raise the one line that names source, node and field."""
    where = f"{origin}: {node}: {part}" if node else f"{origin}: {part}"
    raise TopologyError(f"{where}: {problem}")


def checked_name(origin: str, node: str | None, part: str, text: object) -> str:
    """Return a text that can name a place or a node; raises ``TopologyError`` otherwise."""
    if not isinstance(text, str):
        fail(origin, node, part, f"expected a name, got {shown(repr(text))}")
    if not is_name(text):
        fail(origin, node, part, f"{shown(text)} cannot be a name; expected letters, digits, '.', '_' and '-'")
    return text

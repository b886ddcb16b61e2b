"""What one source says about nodes: partial coordinates, each level by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from tlaunch.topology.model import TopologyError
from tlaunch.topology.yamltree import is_name, shown

Above = Literal["pod", "rack", "domain"]
Part = Literal["pod", "rack", "domain", "slots"]
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


SOURCES: tuple[Source, ...] = (
    Source("file", "file"),
    Source("nvml", "clique"),
    Source("gpu-clique", "clique"),
    Source("topograph", "topograph"),
    Source("eks", "aws"),
    Source("gke", "gke"),
    Source("oke", "oke"),  # hashes of the names that oci uses
    Source("kubernetes", "kubernetes"),
    Source("aws", "aws"),
    Source("gcp", "gcp"),
    Source("oci", "oci"),
    Source("slurm", "slurm"),
    Source("scontrol", "slurm"),
    Source("hostname", "hostname"),
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

    def at(self, part: Part) -> str | None:
        """Return the place on one level, or the number of slots in digits."""
        slots = None if self.slots is None else str(self.slots)
        return {"pod": self.pod, "rack": self.rack, "domain": self.domain, "slots": slots}[part]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver sees it.

    ``index`` is NVML's. ``clique`` is the NVLink domain ``ClusterUUID.CliqueID``; ``unsettled`` says that there is none
    because the GPU is not (yet) in the fabric that it belongs to. ``peers`` are the GPUs of the same node that NVLink
    reaches. ``fault`` says why it cannot be used; ``uuid`` and ``pci`` are ``None`` when it does not
    even answer to that.
    """

    index: int
    uuid: str | None = None
    pci: str | None = None
    name: str | None = None
    clique: str | None = None
    unsettled: bool = False
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

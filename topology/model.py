"""The machine as a tree: nodes with coordinates, and the slots on them.

Levels from widest to narrowest: pod, rack, NVLink domain, node, GPU. A level may be absent (``None``): the node then
has no neighbours at that level.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

from tlaunch.errors import InputError

Scope = Literal["node", "domain", "rack", "any"]
"""How far from its old slot a rank may be moved."""

Level = Literal["node", "domain", "rack", "pod"]
LEVELS: tuple[Level, ...] = ("node", "domain", "rack", "pod")
"""What groups of ranks can lie in, from the narrowest to the widest. A domain is an NVLink domain."""


MAX_GPUS = 1024
"""On one node. More is a slip of the finger, or a record that was made to fill the memory of whoever reads it."""


class TopologyError(InputError):
    """A description of the machine, a mesh or a request that cannot be met."""


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """A place on a node for one rank: one GPU, or one CPU slot where there are no GPUs. Written ``node-03/gpu-2``."""

    node: str
    index: int

    def __str__(self) -> str:
        return f"{self.node}/gpu-{self.index}"

    @classmethod
    def parse(cls, text: str) -> Slot:
        """Read ``node-03/gpu-2`` (or ``node-03/2``)."""
        node, sep, gpu = text.rpartition("/")
        digits = gpu.removeprefix("gpu-")
        if not sep or not node or not digits.isascii() or not digits.isdigit():
            raise TopologyError(f"{text!r} does not name a slot: expected NODE/gpu-INDEX, such as node-03/gpu-2")
        return cls(node, int(digits))


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with ``slots`` places for ranks, and where it stands."""

    name: str
    slots: int
    domain: str | None = None
    rack: str | None = None
    pod: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.slots <= MAX_GPUS:
            raise TopologyError(f"node {self.name} has {self.slots} slots; expected 0 to {MAX_GPUS}")

    @property
    def domain_key(self) -> tuple[str, str]:
        """What the nodes of one NVLink domain have in common; a node without a domain is one by itself."""
        return ("node", self.name) if self.domain is None else ("domain", self.domain)


@dataclass(frozen=True)
class Machine:
    """The nodes of a job in their physical order (pod, rack, domain, then as described). Names are unique."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        if len(self.by_name) < len(self.nodes):
            counts = Counter(node.name for node in self.nodes)
            twice = next(name for name, count in counts.items() if count > 1)
            raise TopologyError(f"node {twice} stands twice in the machine; expected every name once")

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot of every node, in order."""
        return tuple(Slot(node.name, index) for node in self.nodes for index in range(node.slots))

    @cached_property
    def position(self) -> Mapping[Slot, int]:
        """Where each slot stands in ``slots``."""
        return {slot: index for index, slot in enumerate(self.slots)}

    @cached_property
    def starts(self) -> Sequence[int]:
        """The position of the first slot of each node, by the index of the node; the last item is one past the end."""
        return tuple(accumulate((node.slots for node in self.nodes), initial=0))

    @cached_property
    def node_index(self) -> Mapping[str, int]:
        """Where each node stands in ``nodes``, by name."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def node_at(self) -> Sequence[int]:
        """The index of the node of each slot, by the position of the slot."""
        return array("l", (index for index, node in enumerate(self.nodes) for _ in range(node.slots)))

    @cached_property
    def regions(self) -> Mapping[Level, Sequence[int]]:
        """For each level, the number of the region that each node lies in, by the index of the node.

        Two nodes lie in one region of a level if they have the same number. A node that names none for a level lies in
        the same one as the nodes of its next narrower region. Numbers grow in the order in which regions first appear.
        """
        domains: list[Hashable] = [node.domain_key for node in self.nodes]
        racks = [key if node.rack is None else ("rack", node.rack) for node, key in zip(self, domains, strict=True)]
        pods = [key if node.pod is None else ("pod", node.pod) for node, key in zip(self, racks, strict=True)]
        return {
            "node": range(len(self.nodes)),
            "domain": _numbered(domains),
            "rack": _numbered(racks),
            "pod": _numbered(pods),
        }

    def node_of(self, slot: Slot) -> Node:
        """Return the node of a slot."""
        node = self.by_name.get(slot.node)
        if node is None:
            raise TopologyError(f"{slot}: the machine has no node {slot.node}")
        return node

    def without(self, nodes: Iterable[str]) -> Machine:
        """Return the machine without some of its nodes."""
        gone = frozenset(nodes)
        return Machine(tuple(node for node in self.nodes if node.name not in gone))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)


def _numbered(keys: Iterable[Hashable]) -> Sequence[int]:
    numbers: dict[Hashable, int] = {}
    return array("l", (numbers.setdefault(key, len(numbers)) for key in keys))


DISTANCES = ("slot", "node", "domain", "rack", "pod", "machine")
"""The narrowest level that two slots share, by distance: 0 is the same slot, 5 is nothing in common but the job."""


def distance(a: Node, b: Node) -> int:
    """Tell how far apart two slots on nodes ``a`` and ``b`` are: 1 same node, 2 domain, 3 rack, 4 pod, 5 none of them.

    Two nodes without a level (``None``) do not share it.
    """
    if a.name == b.name:
        return 1
    if a.domain is not None and a.domain == b.domain:
        return 2
    if a.rack is not None and a.rack == b.rack:
        return 3
    if a.pod is not None and a.pod == b.pod:
        return 4
    return 5


REACH: Mapping[Scope, int] = {"node": 1, "domain": 2, "rack": 3, "any": 5}
"""The largest distance that a scope allows. A wider scope contains the narrower ones."""

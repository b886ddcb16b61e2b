"""What a topology file says, and the machine that comes out of it for a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlaunch.topology.model import MAX_GPUS, Machine, Node, TopologyError

MAX_NODES = 100_000
DomainPer = Literal["rack", "node"]


@dataclass(frozen=True, slots=True)
class DescribedNode:
    """A node as described. ``gpus`` is ``None`` where the file does not say."""

    name: str
    gpus: int | None = None
    domain: str | None = None
    rack: str | None = None
    pod: str | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """Racks that are all alike, as many as the job asks for."""

    nodes_per_rack: int
    gpus: int | None = None
    domain_per: DomainPer | None = None
    racks_per_pod: int | None = None

    def nodes(self, count: int) -> tuple[DescribedNode, ...]:
        """Return the first ``count`` nodes: ``node-00`` onwards, numbered through all the racks."""
        return tuple(self._node(index) for index in range(count))

    def _node(self, index: int) -> DescribedNode:
        name, number = f"node-{index:02d}", index // self.nodes_per_rack
        rack = f"rack-{number:02d}"
        pod = None if self.racks_per_pod is None else f"pod-{number // self.racks_per_pod:02d}"
        return DescribedNode(name, self.gpus, domain_of(self.domain_per, name, rack), rack, pod)


@dataclass(frozen=True, slots=True)
class Description:
    """The contents of a topology file: nodes one by one in physical order, or a template for any number of them."""

    source: str
    nodes: tuple[DescribedNode, ...] | Template

    @property
    def gpus_per_node(self) -> int | None:
        """The slots of a node, the most of any; ``None`` when the file leaves that to the job."""
        if isinstance(self.nodes, Template):
            return self.nodes.gpus
        counts = [node.gpus for node in self.nodes if node.gpus is not None]
        return max(counts) if len(counts) == len(self.nodes) else None

    def machine(self, nodes: int | None = None, gpus_per_node: int | None = None) -> Machine:
        """Return the first ``nodes`` nodes, each with its first ``gpus_per_node`` slots.

        ``None`` means what the file says: all of its nodes (of a template, one rack) with all of their GPUs, one where
        it says nothing. Raises ``TopologyError`` when the job wants more than is described.
        """
        _check_counts(nodes, gpus_per_node)
        return Machine(tuple(self._resolve(node, gpus_per_node) for node in self._first(nodes)))

    def _first(self, count: int | None) -> tuple[DescribedNode, ...]:
        if isinstance(self.nodes, Template):
            return self.nodes.nodes(self.nodes.nodes_per_rack if count is None else count)
        if count is not None and count > len(self.nodes):
            most = len(self.nodes)
            have = f"{most} node" + ("s" if most > 1 else "")
            raise TopologyError(
                f"{self.source}: describes {have}, but the job asks for {count}; expected --nodes {most} or fewer"
            )
        return self.nodes[:count]

    def _resolve(self, node: DescribedNode, gpus_per_node: int | None) -> Node:
        if node.gpus is not None and gpus_per_node is not None and gpus_per_node > node.gpus:
            raise TopologyError(
                f"{self.source}: {node.name} has {node.gpus} GPUs, but the job asks for {gpus_per_node} on each node; "
                f"expected --gpus-per-node {node.gpus} or fewer"
            )
        return Node(node.name, gpus_per_node or node.gpus or 1, node.domain, node.rack, node.pod)


def default_machine(nodes: int, gpus_per_node: int) -> Machine:
    """Return the machine of a job that says nothing about it: ``node-00`` onwards, all in one rack, without NVLink."""
    _check_counts(nodes, gpus_per_node)
    return Machine(tuple(Node(f"node-{index:02d}", gpus_per_node, rack="rack-00") for index in range(nodes)))


def domain_of(per: DomainPer | None, node: str, rack: str | None) -> str | None:
    """Return the name of a node's NVLink domain where there is one for each rack, or for each node."""
    return {"rack": rack, "node": node, None: None}[per]


def _check_counts(nodes: int | None, gpus_per_node: int | None) -> None:
    if nodes is not None and not 1 <= nodes <= MAX_NODES:
        raise TopologyError(f"--nodes {nodes}: expected 1 to {MAX_NODES}")
    if gpus_per_node is not None and not 1 <= gpus_per_node <= MAX_GPUS:
        raise TopologyError(f"--gpus-per-node {gpus_per_node}: expected 1 to {MAX_GPUS}")

"""Whom a rank talks to: its neighbours along each dimension of the mesh, and how much that matters."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Slot

OUTER = 16
"""How many times as much the traffic of a dimension counts as that of the next outer one."""

Anchors = Mapping[str, int]
"""Where a rank would like to be near: nodes, and how much each of them matters."""


def ring(mesh: Mesh, rank: int, dimension: int, gone: Container[int]) -> tuple[int, ...]:
    """Return the next ranks up and down the ring of a dimension that are not ``gone``: two, one or none."""
    size, stride = mesh.dims[dimension][1], mesh.strides[dimension]
    here = rank // stride % size
    found: list[int] = []
    for step in (1, -1):
        for offset in range(1, size):
            peer = rank + ((here + step * offset) % size - here) * stride
            if peer not in gone:
                found.append(peer)
                break
    return tuple(dict.fromkeys(found))


def anchors(mesh: Mesh, seats: Mapping[int, Slot], rank: int, old: Slot, gone: Container[int]) -> Anchors:
    """Return what draws a rank that has lost its slot ``old``.

    Its ring neighbours along each dimension that are not ``gone`` themselves, those of an inner dimension
    :data:`OUTER` times as strongly as those of the next outer one; and, least of all, the node where it was.
    """
    near = {old.node: 1}
    weight = 1
    for dimension, (_, size) in enumerate(mesh.dims):
        if size > 1:
            weight *= OUTER
            for peer in ring(mesh, rank, dimension, gone):
                node = seats[peer].node
                near[node] = near.get(node, 0) + weight
    return near


def spread(machine: Machine, slots: Iterable[Slot]) -> int:
    """Return how many NVLink domains some slots lie in; a node without one counts as one."""
    return len({machine.node_of(slot).domain_key for slot in slots})

"""Which rank goes on which slot, and which slots stay spare.

In this order of importance:

1. every rank has a slot;
2. as many groups as possible lie inside the level that they must stay within: those of the innermost dimension in one
   NVLink domain, others where the mesh names a level; what does not fit there stays inside the next wider level;
3. regions keep the spares that are asked for them;
4. blocks of the mesh stay whole, inside a domain, a rack and a pod, unless that would take from a region all the spares
   that it would have otherwise;
5. every rack, and in it every domain of several nodes, keeps spares in proportion to its size; slots that nobody asked
   to keep are left at the end. Nodes are filled from the front, so that spares are whole nodes if the numbers allow.

``docs/topology.md`` derives how few edges can leave a rack, and when this reaches it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tlaunch.topology.account import account
from tlaunch.topology.layout import Layout
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import LEVELS, Machine, Slot, TopologyError
from tlaunch.topology.seating import seat
from tlaunch.topology.spares import SpareRequest
from tlaunch.topology.tree import Region, build
from tlaunch.topology.wholenodes import hold_nodes, spread_no_more


@dataclass(frozen=True, slots=True)
class Placement:
    """``seats[rank]`` is the slot of that rank; ``spares`` are the healthy slots without a rank, in machine order.

    ``unmet``: what was asked for and could not be had, a sentence each; ``reasons`` has them too.
    """

    seats: Mapping[int, Slot]
    spares: tuple[Slot, ...]
    reasons: tuple[str, ...]
    unmet: tuple[str, ...] = ()


def place(
    machine: Machine,
    mesh: Mesh,
    spares: int | SpareRequest,
    *,
    usable: Collection[Slot] | None = None,
    strict: bool = False,
) -> Placement:
    """Seat every rank of ``mesh`` and keep slots without a rank.

    ``spares``: at least so many in all; or what a request says, as far as that is possible. ``usable``: the healthy
    slots, all of them when ``None``. ``strict``: what cannot be met is an error. The same input always gives the same
    placement.

    Raises:
        TopologyError: there are too few slots, or, when ``strict``, something that was asked for cannot be had.
    """
    request = SpareRequest(spares) if isinstance(spares, int) else spares
    healthy = None if usable is None else frozenset(usable)
    root = build(machine, healthy)
    _check_room(machine, mesh, request, root.free)
    layout = Layout.of(mesh)
    held = hold_nodes(root, layout, request)
    if request.unit == "node" or not request.count:
        spread_no_more(root, None)
    elif request.per:
        spread_no_more(root, LEVELS.index(request.per))
    seat(root, layout, (request.per, request.count) if request.unit == "slot" and request.per else None)
    seats, left = _seats(root, layout)
    positions = sorted([*left, *(position for node in held for position in node)])
    reasons, unmet = account(machine, mesh, request, seats, positions)
    if strict and unmet:
        raise TopologyError("; ".join(unmet))
    slots = machine.slots
    return Placement(
        dict(enumerate(slots[position] for position in seats)),
        tuple(slots[position] for position in positions),
        (*reasons, *unmet),
        unmet,
    )


def _seats(root: Region, layout: Layout) -> tuple[list[int], list[int]]:
    """Return the position of the slot of each rank, and those of the slots that are left."""
    ranks = layout.ranks()
    seats, left = [0] * layout.mesh.size, list[int]()
    for node in _nodes(root):
        here = sorted(rank for first, end in node.taken for rank in ranks[first:end])
        for rank, position in zip(here, node.slots, strict=False):
            seats[rank] = position
        left += node.slots[len(here) :]
    return seats, left


def _nodes(root: Region) -> Iterator[Region]:
    regions = [root]
    while regions:
        region = regions.pop()
        regions += region.parts
        if not region.parts:
            yield region


def _check_room(machine: Machine, mesh: Mesh, request: SpareRequest, healthy: int) -> None:
    total = len(machine.slots)
    have = f"{len(machine.nodes)} nodes have {total} slots" + (
        f", {healthy} of them healthy" if healthy < total else ""
    )
    if request.count < 0:
        raise TopologyError(f"spares {request}: expected 0 or more")
    # What regions or whole nodes should keep is kept as far as possible; a plain number has to be met.
    spares = request.count if request.unit == "slot" and request.per is None else 0
    if spares >= healthy:
        raise TopologyError(f"spares {spares}: {have}; expected fewer spares than slots")
    if mesh.size + spares <= healthy:
        return
    replicas = (healthy - spares) // mesh.replica_size
    fits = f"with {spares} spares the largest mesh that fits is {mesh.resized(replicas)}"
    if replicas == 0 or mesh.replicas == 1:
        fits = f"with {spares} spares there is room for {healthy - spares} ranks"
    raise TopologyError(f"mesh {mesh} and {spares} spares need {mesh.size + spares} slots, but {have}; {fits}")

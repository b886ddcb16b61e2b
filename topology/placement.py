"""Which rank goes on which slot, and which slots stay spare.

In this order of importance:

1. as many groups of the innermost mesh dimension as possible lie inside one NVLink domain each, then inside one rack;
2. every rack, and in it every domain of several nodes, keeps spares in proportion to its size;
3. replicas stay inside a rack, unless that would take from a rack all of its spares;
4. ranks fill slots from the front, so that spares are whole nodes at the end of their rack if the numbers allow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tlaunch.topology.explain import placement_reasons
from tlaunch.topology.mesh import REPLICA_DIMENSION, Mesh
from tlaunch.topology.model import Machine, Slot, TopologyError


@dataclass(frozen=True, slots=True)
class Placement:
    """``seats[rank]`` is the slot of that rank; ``spares`` are the healthy slots without a rank, in machine order.

    ``unmet``: what was asked for and could not be had, a sentence each; ``reasons`` has them too.
    """

    seats: Mapping[int, Slot]
    spares: tuple[Slot, ...]
    reasons: tuple[str, ...]
    unmet: tuple[str, ...] = ()


def place(machine: Machine, mesh: Mesh, spares: int, *, usable: Collection[Slot] | None = None) -> Placement:
    """Seat every rank of ``mesh`` and keep at least ``spares`` slots without a rank.

    ``usable``: the healthy slots, all of them when ``None``. The same input always gives the same placement. Raises
    ``TopologyError`` when there are too few slots.
    """
    allowed = machine.position.keys() if usable is None else frozenset(usable)
    slots = tuple(slot for slot in machine.slots if slot in allowed)
    _check_room(machine, mesh, spares, len(slots))
    racks = _tree(machine, frozenset(slots))
    seats = dict(enumerate(_seat(racks, mesh)))
    taken = frozenset(seats.values())
    left = tuple(slot for slot in slots if slot not in taken)
    return Placement(seats, left, placement_reasons(machine, mesh, seats, left))


def _check_room(machine: Machine, mesh: Mesh, spares: int, healthy: int) -> None:
    total = len(machine.slots)
    have = f"{len(machine.nodes)} nodes have {total} slots" + (
        f", {healthy} of them healthy" if healthy < total else ""
    )
    if spares < 0:
        raise TopologyError(f"spares {spares}: expected 0 or more")
    if spares >= healthy:
        raise TopologyError(f"spares {spares}: {have}; expected fewer spares than slots")
    if mesh.size + spares <= healthy:
        return
    replicas = (healthy - spares) // mesh.replica_size
    fits = f"with {spares} spares the largest mesh that fits is {mesh.resized(replicas)}"
    if replicas == 0 or mesh.replicas == 1:
        fits = f"with {spares} spares there is room for {healthy - spares} ranks"
    raise TopologyError(f"mesh {mesh} and {spares} spares need {mesh.size + spares} slots, but {have}; {fits}")


@dataclass(slots=True)
class _Domain:
    """An NVLink domain (or a node without one) and its healthy slots that are still free."""

    rack: tuple[str, str | None]
    pod: str | None
    nodes: int = 0
    free: list[Slot] = field(default_factory=list)

    def take(self, count: int) -> list[Slot]:
        taken, self.free = self.free[:count], self.free[count:]
        return taken


@dataclass(slots=True)
class _Pool:
    """A part of a rack that keeps its own share of spares: a domain of several nodes, or all the single nodes together.

    Single nodes share: a spare slot on each of them would leave no node whole.
    """

    domains: list[_Domain]

    @property
    def free(self) -> int:
        return sum(len(domain.free) for domain in self.domains)

    def groups_inside(self, size: int) -> int:
        """How many groups of ``size`` slots fit inside one domain each."""
        return sum(len(domain.free) // size for domain in self.domains)

    def take_groups(self, groups: int, size: int) -> Iterable[Slot]:
        for domain in self.domains:
            count = min(groups, len(domain.free) // size)
            groups -= count
            yield from domain.take(count * size)

    def take_slots(self, count: int) -> Iterable[Slot]:
        for domain in self.domains:
            taken = domain.take(count)
            count -= len(taken)
            yield from taken


@dataclass(slots=True)
class _Rack:
    pools: list[_Pool]

    @property
    def free(self) -> int:
        return sum(pool.free for pool in self.pools)

    def groups_inside(self, size: int) -> int:
        return sum(pool.groups_inside(size) for pool in self.pools)

    def take_groups(self, groups: int, size: int) -> Iterable[Slot]:
        """Take the slots of ``groups`` groups: inside one domain each while there is room, then across domains."""
        inside = min(groups, self.groups_inside(size))
        upper = [pool.groups_inside(size) for pool in self.pools]
        shares = _apportion(inside, [pool.free for pool in self.pools], [0] * len(upper), upper)
        for pool, share in zip(self.pools, shares, strict=True):
            yield from pool.take_groups(share, size)
        yield from self.take_slots((groups - inside) * size)

    def take_slots(self, count: int) -> Iterable[Slot]:
        free = [pool.free for pool in self.pools]
        for pool, share in zip(self.pools, _apportion(count, free, [0] * len(free), free), strict=True):
            yield from pool.take_slots(share)


def _tree(machine: Machine, usable: Collection[Slot]) -> list[_Rack]:
    """Return the racks in physical order. Nodes without a rack count as one rack for each pod."""
    domains: dict[tuple[str, str], _Domain] = {}
    for node in machine:
        rack = ("pod", node.pod) if node.rack is None else ("rack", node.rack)
        domain = domains.setdefault(node.domain_key, _Domain(rack, node.pod))
        domain.nodes += 1
        domain.free += [slot for slot in (Slot(node.name, i) for i in range(node.slots)) if slot in usable]

    pods: dict[str | None, dict[tuple[str, str | None], list[_Domain]]] = {}
    for domain in domains.values():
        pods.setdefault(domain.pod, {}).setdefault(domain.rack, []).append(domain)
    return [_Rack(_pools(members)) for racks in pods.values() for members in racks.values()]


def _pools(domains: Iterable[_Domain]) -> list[_Pool]:
    pools: list[_Pool] = []
    singles: _Pool | None = None
    for domain in domains:
        if domain.nodes > 1:
            pools.append(_Pool([domain]))
        elif singles is None:
            singles = _Pool([domain])
            pools.append(singles)
        else:
            singles.domains.append(domain)
    return pools


def _seat(racks: Sequence[_Rack], mesh: Mesh) -> list[Slot]:
    """Return the slot of every rank, in the order of ranks."""
    size = mesh.inner
    groups = mesh.size // size
    inside = [rack.groups_inside(size) for rack in racks]
    room = [rack.free // size for rack in racks]
    if groups <= sum(inside):
        shares = _rack_shares(racks, mesh, groups, [0] * len(racks), inside)
    elif groups <= sum(room):
        shares = _rack_shares(racks, mesh, groups, inside, room)
    else:
        shares = room
    order = [slot for rack, share in zip(racks, shares, strict=True) for slot in rack.take_groups(share, size)]

    # What is left fits into no single rack. Its ranks come last, so that the groups before them stay where they are.
    free = [rack.free for rack in racks]
    rest = _apportion(mesh.size - len(order), free, [0] * len(free), free)
    return order + [slot for rack, count in zip(racks, rest, strict=True) for slot in rack.take_slots(count)]


def _rack_shares(
    racks: Sequence[_Rack], mesh: Mesh, groups: int, lower: Sequence[int], upper: Sequence[int]
) -> list[int]:
    """Return how many innermost groups each rack gets, between its ``lower`` and ``upper``."""
    weights = [rack.free for rack in racks]
    shares = _apportion(groups, weights, lower, upper)
    unit = mesh.replica_size // mesh.inner
    if mesh.dims[0][0] != REPLICA_DIMENSION or unit < 2:
        return shares  # replicas are not consecutive groups, or are no larger than one

    low, high = [-(-bound // unit) for bound in lower], [bound // unit for bound in upper]
    if not sum(low) <= mesh.replicas <= sum(high) or any(a > b for a, b in zip(low, high, strict=True)):
        return shares
    whole = [share * unit for share in _apportion(mesh.replicas, weights, low, high)]
    strips_a_rack = any(
        full * mesh.inner == weight > share * mesh.inner
        for full, share, weight in zip(whole, shares, weights, strict=True)
    )
    return shares if strips_a_rack else whole


def _apportion(total: int, weights: Sequence[int], lower: Sequence[int], upper: Sequence[int]) -> list[int]:
    """Split ``total`` in proportion to ``weights`` within bounds; the remainder goes to whoever is most short.

    The bounds must allow it: ``sum(lower) <= total <= sum(upper)``.
    """
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [
        min(max(total * weight // whole, low), high) for weight, low, high in zip(weights, lower, upper, strict=True)
    ]

    def shortage(index: int) -> int:
        return total * weights[index] - shares[index] * whole

    while sum(shares) < total:
        shares[max((i for i in range(len(shares)) if shares[i] < upper[i]), key=shortage)] += 1
    while sum(shares) > total:
        shares[min((i for i in reversed(range(len(shares))) if shares[i] > lower[i]), key=shortage)] -= 1
    return shares

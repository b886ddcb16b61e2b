"""What a placement came to, and what of that which was asked for could not be had: sentences for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tlaunch.topology.explain import count, ranks
from tlaunch.topology.locality import groups
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Level, Machine
from tlaunch.topology.spares import SpareRequest

LISTED = 8
"""How many regions are named one by one."""

_PLACE = {"node": "one node", "domain": "one NVLink domain", "rack": "one rack", "pod": "one pod"}


def account(
    machine: Machine, mesh: Mesh, request: SpareRequest, seats: Sequence[int], left: Sequence[int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (how the ranks and spares lie, what could not be met).

    ``seats``: the position of the slot of each rank; ``left``: those of the spares, ascending.
    """
    nodes = [machine.node_at[position] for position in seats]
    spare_nodes = [machine.node_at[position] for position in left]
    lines = [f"{count(mesh.size, 'rank')} on {count(len(set(nodes)), 'node')}"]
    name, size = mesh.dims[-1]
    if size > 1:
        split = sum(1 for _ in _split(machine, mesh, nodes, len(mesh.dims) - 1, "domain"))
        groups = mesh.size // size
        lines.append(f"{groups - split} of {count(groups, 'group')} of {name}={size} in one NVLink domain each")
    if mesh.replica_size > 1:
        lines.append(_replicas(machine, mesh, nodes))
    lines.append(_spares(machine, spare_nodes))
    return tuple(lines), (*_apart(machine, mesh, nodes, spare_nodes), *_too_few(machine, request, spare_nodes))


def _split(machine: Machine, mesh: Mesh, nodes: Sequence[int], dim: int, level: Level) -> Iterator[int]:
    """Yield the first rank of each group of a dimension that lies in more than one region of a level."""
    regions = machine.regions[level]
    size, stride = mesh.dims[dim][1], mesh.strides[dim]
    homes = [regions[node] for node in nodes]
    for number, group in enumerate(groups(homes, size, stride)):
        if len(set(group)) > 1:
            yield number // stride * size * stride + number % stride


def _replicas(machine: Machine, mesh: Mesh, nodes: Sequence[int]) -> str:
    regions = machine.regions["rack"]
    racks = [regions[node] for node in nodes]
    homes: list[set[int]] = [set() for _ in range(mesh.replicas)]
    for replica, home in enumerate(homes):
        for run in mesh.runs_of(replica):
            home.update(racks[run.start : run.stop])
    together = sum(len(home) == 1 for home in homes)
    return f"{together} of {count(mesh.replicas, 'replica')} in one rack each"


def _spares(machine: Machine, nodes: Sequence[int]) -> str:
    total = count(len(nodes), "spare")
    racks = Counter(machine.nodes[node].rack or "no rack" for node in nodes)
    if not racks:
        return total
    if len(racks) <= LISTED:
        return f"{total}: " + ", ".join(f"{number} in {rack}" for rack, number in racks.items())
    low, high = min(racks.values()), max(racks.values())
    return f"{total}: {low if low == high else f'{low} to {high}'} in each of {len(racks)} racks"


def _apart(machine: Machine, mesh: Mesh, nodes: Sequence[int], spare_nodes: Sequence[int]) -> Iterator[str]:
    """Say which groups do not stay within the level that they should."""
    asked = dict(mesh.within)
    for dim, (name, size) in enumerate(mesh.dims):
        level = asked.get(name)
        if level is None:
            # Nobody said that the innermost groups must be in a domain, but where they could be they are meant to be.
            inner = dim == len(mesh.dims) - 1 and size > 1
            if not inner or size > _largest_domain(machine, [*nodes, *spare_nodes]):
                continue
        split = list(_split(machine, mesh, nodes, dim, level or "domain"))
        if split:
            total, first, stride = mesh.size // size, split[0], mesh.strides[dim]
            members = range(first, first + size * stride, stride)
            where = dict.fromkeys(_name(machine, nodes[rank], level or "domain") for rank in members)
            named = ", ".join([*where][:LISTED]) + (", ..." if len(where) > LISTED else "")
            example = f"ranks {ranks(members)} are" if size <= LISTED * LISTED else f"that of rank {first} is"
            yield (
                f"mesh {mesh}: {len(split)} of {count(total, 'group')} of {name}={size} cannot be in "
                f"{_PLACE[level or 'domain']}: {example} in {named}"
            )


def _largest_domain(machine: Machine, nodes: Sequence[int]) -> int:
    domains = machine.regions["domain"]
    return max(Counter(domains[node] for node in nodes).values())


def _name(machine: Machine, node: int, level: Level) -> str:
    """Name the region of a level that a node lies in: by the node where it names none."""
    there = machine.nodes[node]
    return {"node": None, "domain": there.domain, "rack": there.rack, "pod": there.pod}[level] or there.name


def _too_few(machine: Machine, request: SpareRequest, nodes: Sequence[int]) -> Iterator[str]:
    """Say where fewer spares are kept than were asked for."""
    level = request.per
    if request.unit == "slot" and level is None:
        return
    if request.unit == "slot":
        kept = Counter(nodes)
        what = "spare"
    else:
        free = Counter(nodes)
        kept = Counter({node: 1 for node, slots in free.items() if slots == machine.nodes[node].slots})
        what = "whole spare node"
    if level is None:
        if kept.total() < request.count:
            yield f"spares {request}: {kept.total()} of {count(request.count, what)}"
        return
    regions = machine.regions[level]
    names: dict[int, str] = {}
    total = Counter[int]()
    for node, region in enumerate(regions):
        names.setdefault(region, _name(machine, node, level))
        total[region] += kept[node]
    short = [f"{names[region]} {number}" for region, number in total.items() if number < request.count]
    if short:
        more = ", ..." if len(short) > LISTED else ""
        yield (
            f"spares {request}: {len(short)} of {count(len(names), level)} cannot keep {count(request.count, what)}: "
            f"{', '.join(short[:LISTED])}{more}"
        )

"""How near the ranks are that talk to each other: edges that leave a domain, a rack or a pod, and one score.

Each dimension of a mesh makes groups of ranks. A group talks in a *ring* (each rank to the next, the last to the first:
all-reduce, pipelines) or in *pairs* (each with each: all-to-all). An edge leaves a level if its ends lie in different
regions of it. ``docs/topology.md`` defines the score and derives the lower bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ne

from tlaunch.topology.layout import Layout
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Level, Machine, Slot

WIDE: tuple[Level, ...] = ("domain", "rack", "pod")
"""The levels that an edge should not leave."""

COST: Mapping[Level, int] = {"domain": 1, "rack": 1, "pod": 2}
"""What it costs an edge to leave a level, besides what the narrower ones cost: 1 beyond a domain, 2 beyond a rack, 4
beyond a pod."""

FADING = 4
"""How many times less a dimension counts than the one that is seated before it."""


@dataclass(frozen=True, slots=True)
class Edges:
    """The edges of one dimension: ``total``, and how many of them leave each level."""

    total: int
    leaving: Mapping[Level, int]


@dataclass(frozen=True, slots=True)
class Traffic:
    """One dimension of a mesh, by name and size: the edges of its groups as rings and as pairs."""

    name: str
    size: int
    ring: Edges
    pairs: Edges


@dataclass(frozen=True, slots=True)
class Locality:
    """``score``: 100 if no edge leaves a domain, 0 if every edge leaves all levels. ``dims`` as in the mesh."""

    score: float
    dims: tuple[Traffic, ...]

    def leaving(self, level: Level) -> int:
        """Return how many ring edges leave a level, those of all dimensions together."""
        return sum(dim.ring.leaving[level] for dim in self.dims)


def locality(machine: Machine, mesh: Mesh, seats: Mapping[int, Slot] | Sequence[int]) -> Locality:
    """Judge where the ranks of a mesh are.

    ``seats``: the slot of each rank, or the position of the slot of each rank.
    """
    if isinstance(seats, Mapping):
        nodes = [machine.node_index[seats[rank].node] for rank in range(mesh.size)]
    else:
        nodes = [machine.node_at[position] for position in seats]
    homes = {level: [machine.regions[level][node] for node in nodes] for level in WIDE}
    dims = tuple(
        Traffic(
            name,
            size,
            Edges(mesh.size // size * ring_edges(size), {level: _ring(homes[level], size, stride) for level in WIDE}),
            Edges(mesh.size // size * pair_edges(size), {level: _pairs(homes[level], size, stride) for level in WIDE}),
        )
        for (name, size), stride in zip(mesh.dims, mesh.strides, strict=True)
    )
    return Locality(_score([dims[index] for index in Layout.of(mesh).order]), dims)


def ring_edges(size: int) -> int:
    """Return the edges of a ring of ``size`` ranks; two of them have one."""
    return size if size > 2 else size - 1


def pair_edges(size: int) -> int:
    """Return the pairs of ``size`` ranks."""
    return size * (size - 1) // 2


def groups(values: Sequence[int], size: int, stride: int) -> Iterator[Sequence[int]]:
    """Yield the values of each group of a mesh dimension: ``size`` ranks with ``stride`` between them."""
    block = size * stride
    for first in range(0, len(values), block):
        for offset in range(first, first + stride):
            yield values[offset : first + block : stride]


def _ring(homes: Sequence[int], size: int, stride: int) -> int:
    leaving = 0
    for first in range(0, len(homes), size * stride) if size > 1 else ():
        block = homes[first : first + size * stride]
        leaving += sum(map(ne, block, block[stride:]))
        if size > 2:
            leaving += sum(map(ne, block[-stride:], block[:stride]))
    return leaving


def _pairs(homes: Sequence[int], size: int, stride: int) -> int:
    leaving = 0
    for group in groups(homes, size, stride):
        regions = len(set(group))
        if regions == size:
            leaving += pair_edges(size)
        elif regions > 1:
            leaving += pair_edges(size) - sum(map(pair_edges, Counter(group).values()))
    return leaving


def _score(dims: Sequence[Traffic]) -> float:
    """Weigh the dimensions in the order of seating."""
    cost = worst = 0.0
    weight = 1.0
    for dim in dims:
        for edges in (dim.ring, dim.pairs):
            if edges.total:
                cost += weight * sum(COST[level] * edges.leaving[level] for level in WIDE) / edges.total
                worst += weight * sum(COST.values())
        weight /= FADING
    return 100 * (1 - cost / worst) if worst else 100.0


def least(mesh: Mesh, seats: int, regions: int) -> Mapping[str, tuple[int, int]]:
    """Return how many (ring edges, pairs) of each dimension leave ``regions`` equal regions at least.

    ``seats``: how many ranks each region can take. The bound of a dimension holds for all placements in which the
    dimensions before it, in the order of seating, keep to theirs; ``docs/topology.md`` derives it.
    """
    layout = Layout.of(mesh)
    bound: dict[str, tuple[int, int]] = {name: (0, 0) for name, _ in mesh.dims}
    alone = False  # whether each region has ranks of a single group, so that all others are elsewhere
    for index, block in zip(layout.order, layout.blocks, strict=True):
        name, size = mesh.dims[index]
        inner, number = block // size, mesh.size // block  # `number` groups, with `inner` rings in each
        fit = seats // inner
        if alone:
            bound[name] = (mesh.size // size * ring_edges(size), mesh.size // size * pair_edges(size))
        elif fit >= size:
            split = max(0, number - regions * (fit // size)) * inner
            bound[name] = (split * min(size - 1, 2), split * (size - 1))
            if split:
                break
        else:
            pieces = -(-size // fit)
            together = size // fit * pair_edges(fit) + pair_edges(size % fit)
            cut = (1 if size == 2 else pieces, pair_edges(size) - together)
            bound[name] = (number * inner * cut[0], number * inner * cut[1])
            if size % fit:
                break
            alone = True
    return bound

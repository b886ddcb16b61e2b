"""The spares by node, and the nodes in regions that are all the same to the ranks that need a spare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from tlaunch.topology.model import Machine, Node, Slot, TopologyError


@dataclass(slots=True)
class Region:
    """Nodes at the same distance from every place that matters. ``room``: the spares that they had at the beginning.

    ``nodes``: the places of the nodes in ``names``, by how many spares each has and how many slots; heaps.
    """

    number: int
    names: list[str] = field(default_factory=list)
    room: int = 0
    nodes: dict[tuple[int, int], list[int]] = field(default_factory=dict)


_Key = tuple[str | None, str | None, str | None, str | None]


class SpareNodes:
    """Spares that can be taken.

    ``places``: the names of the nodes that matter; ``broken``: slots that are no spares.
    """

    def __init__(
        self, machine: Machine, spares: Iterable[Slot], broken: Iterable[Slot], places: Collection[str]
    ) -> None:
        self._machine = machine
        self._free = _by_node(machine, spares, broken)
        near = [machine.by_name[name] for name in places]
        self._values: tuple[frozenset[str | None], ...] = (
            frozenset(node.name for node in near),
            frozenset(node.domain for node in near),
            frozenset(node.rack for node in near),
            frozenset(node.pod for node in near),
        )
        self.regions: list[Region] = []
        self._shared: tuple[dict[str, list[Region]], ...] = ({}, {}, {}, {})
        regions: dict[_Key, Region] = {}
        for name, slots in self._free.items():
            key = self._key(machine.by_name[name])
            region = regions.get(key)
            if region is None:
                region = regions[key] = self._new(key)
            # In machine order: each list is a heap from the beginning.
            region.nodes.setdefault((len(slots), machine.by_name[name].slots), []).append(len(region.names))
            region.names.append(name)
            region.room += len(slots)

    def _key(self, node: Node) -> _Key:
        """Return what tells a node apart from others, as far as that matters to anybody."""
        names, domains, racks, pods = self._values
        return (
            node.name if node.name in names else None,
            node.domain if node.domain in domains else None,
            node.rack if node.rack in racks else None,
            node.pod if node.pod in pods else None,
        )

    def _new(self, key: _Key) -> Region:
        region = Region(len(self.regions))
        self.regions.append(region)
        for value, regions in zip(key, self._shared, strict=True):
            if value is not None:
                regions.setdefault(value, []).append(region)
        return region

    def candidates(self, home: str, near: Iterable[str], reach: int, count: int) -> list[Region]:
        """Return where a rank from ``home`` may go: every region that is special to it, and of all others enough.

        ``near``: the nodes that matter to this rank. ``reach``: the largest distance from ``home``. ``count``: how many
        slots are enough, of those regions that share no more than a pod with ``near``, or nothing.
        """
        if reach < 4:  # node, domain or rack: what lies within is special
            return list(self._sharing([self._machine.by_name[home]], reach).values())
        nodes = [self._machine.by_name[name] for name in near]
        special = self._sharing(nodes, 3)
        pods = dict.fromkeys(node.pod for node in nodes if node.pod is not None)
        found = list(special.values())
        for pod in pods:
            found += _enough((each for each in self._shared[3].get(pod, ()) if each.number not in special), count)
        known = special.keys() | {each.number for pod in pods for each in self._shared[3].get(pod, ())}
        return found + list(_enough((each for each in self.regions if each.number not in known), count))

    def _sharing(self, nodes: Iterable[Node], reach: int) -> dict[int, Region]:
        """Return the regions that share a node (reach 1), a domain (2) or a rack (3) with some nodes."""
        found: dict[int, Region] = {}
        for node in nodes:
            for value, regions in zip((node.name, node.domain, node.rack)[:reach], self._shared, strict=False):
                if value is not None:
                    found |= {region.number: region for region in regions.get(value, ())}
        return found

    @staticmethod
    def reluctance(region: Region, count: int) -> int:
        """Return how ill ``count`` ranks of one node would fit: 2 if on no node together, 1 if a whole node breaks."""
        best = _best(region, count)
        return 3 if best is None else 2 * best[0] + best[1]

    def take(self, region: Region, count: int) -> list[Slot]:
        """Take spares: from one node if possible, else from the fullest ones. There must be so many."""
        taken: list[Slot] = []
        while len(taken) < count:
            missing = count - len(taken)
            best = _best(region, missing)
            assert best is not None, "there is room for all that were assigned"
            _, _, _, index, (free, slots) = best
            heappop(region.nodes[free, slots])
            name = region.names[index]
            taken += self._free[name][:missing]
            self._free[name] = self._free[name][missing:]
            if free > missing:
                heappush(region.nodes.setdefault((free - missing, slots), []), index)
        return taken

    def left(self) -> tuple[Slot, ...]:
        """Return the spares that nobody has taken, in machine order."""
        return tuple(slot for slots in self._free.values() for slot in slots)

    def by_rack(self) -> Mapping[str | None, int]:
        """Count them by rack."""
        counts: Counter[str | None] = Counter()
        for name, slots in self._free.items():
            counts[self._machine.by_name[name].rack] += len(slots)
        return counts


def _best(region: Region, count: int) -> tuple[bool, bool, int, int, tuple[int, int]] | None:
    """Return the node that suits ``count`` ranks best: with enough spares, not whole, with few of them, the first."""
    return min(
        (
            (free < count, free == slots and free > count, free if free >= count else -free, nodes[0], (free, slots))
            for (free, slots), nodes in region.nodes.items()
            if nodes
        ),
        default=None,
    )


def _enough(regions: Iterable[Region], count: int) -> Iterator[Region]:
    for region in regions:
        yield region
        count -= region.room
        if count <= 0:
            return


def _by_node(machine: Machine, spares: Iterable[Slot], broken: Iterable[Slot]) -> dict[str, list[Slot]]:
    found: dict[str, dict[int, Slot]] = {}
    for slot in spares:
        found.setdefault(slot.node, {})[slot.index] = slot
    for name, slots in found.items():
        node = machine.by_name.get(name)
        for index in slots:
            if node is None or not 0 <= index < node.slots:
                raise TopologyError(f"spare {slots[index]}: not a slot of the machine")
    for slot in broken:
        found.get(slot.node, {}).pop(slot.index, None)
    names = sorted((name for name, slots in found.items() if slots), key=machine.node_index.__getitem__)
    return {name: [slot for _, slot in sorted(found[name].items())] for name in names}

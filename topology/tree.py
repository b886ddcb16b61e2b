"""The machine as a tree of regions with free slots, and how many ranks each region can take.

Below the root are pods, below them racks, then domains, then nodes. Racks without a pod stand together, below a region
that is no pod, and so do domains without a rack. Single-node domains of a rack form one *pool*, which is filled from
the front: a spare slot on each of them would leave no node whole.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

from tlaunch.topology.layout import Need
from tlaunch.topology.model import LEVELS, Level, Machine, Node, Slot

NODE, DOMAIN, RACK, POD = range(len(LEVELS))


@dataclass(slots=True)
class Region:
    """``levels``: the levels of which this is a region (indices in ``LEVELS``); none for the root and for pools.

    ``free``: its healthy slots without a role. ``spread``: spares are spread over its parts; else it is filled from the
    front. Of a node: ``slots`` are the positions of its usable slots, all of its slots if ``whole``; ``taken`` are the
    places of the sequence that are seated there. ``homes``: how many pools and domains it has that should each keep a
    spare; ``even``: spares are spread over its parts in proportion. ``room`` and ``grain`` are what ``measure`` found.
    """

    levels: range = range(0)
    parts: list[Region] = field(default_factory=list)
    free: int = 0
    spread: bool = True
    slots: Sequence[int] = ()
    whole: bool = False
    taken: list[tuple[int, int]] = field(default_factory=list)
    homes: int = 0
    even: bool = True
    room: int = 0
    grain: int = 1


def build(machine: Machine, usable: Collection[Slot] | None) -> Region:
    """Return the tree of a machine with its usable slots (all when ``None``)."""
    domains: dict[Hashable, list[Region]] = {}
    homes: dict[Hashable, Node] = {}
    for node, start in zip(machine, machine.starts, strict=False):
        slots: Sequence[int] = range(start, start + node.slots)
        if usable is not None:
            slots = [start + index for index in range(node.slots) if Slot(node.name, index) in usable]
        key = node.domain_key
        homes.setdefault(key, node)
        whole = len(slots) == node.slots
        domains.setdefault(key, []).append(Region(range(NODE, NODE + 1), free=len(slots), slots=slots, whole=whole))
    pods: dict[str | None, dict[str | None, list[Region]]] = {}
    for place, nodes in domains.items():
        home = homes[place]
        # Without a rack a domain is one by itself, and without a pod a pod as well.
        top = DOMAIN if home.rack is not None else RACK if home.pod is not None else POD
        domain = _region(range(DOMAIN, top + 1), nodes, spread=False)
        pods.setdefault(home.pod, {}).setdefault(home.rack, []).append(domain)
    regions: list[Region] = []
    for pod, racks in pods.items():
        members = [
            _region(range(RACK, RACK if rack is None else (POD if pod is None else RACK) + 1), _pools(inside))
            for rack, inside in racks.items()
        ]
        regions.append(_region(range(POD, POD if pod is None else POD + 1), members))
    return _region(range(0), regions)


def _region(levels: range, parts: list[Region], *, spread: bool = True) -> Region:
    free = sum(part.free for part in parts)
    return Region(levels, parts, free, spread, homes=sum(part.homes for part in parts) if spread else int(free > 0))


def _pools(domains: list[Region]) -> list[Region]:
    pools: list[Region] = []
    singles: Region | None = None
    for domain in domains:
        if len(domain.parts) > 1:
            pools.append(domain)
        elif singles is None:
            singles = _region(range(0), [domain], spread=False)
            pools.append(singles)
        else:
            singles.parts.append(domain)
            singles.free += domain.free
            singles.homes = int(singles.free > 0)
    return pools


def measure(region: Region, needs: Sequence[Need], keep: tuple[Level, int] | None) -> int:
    """Find out how many ranks fit into a region, and into each of its parts, if all ``needs`` are to be met.

    ``keep``: how many slots each region of a level keeps free.
    """
    if not region.parts:
        room, grain = region.free, 1
    else:
        room = sum(measure(part, needs, keep) for part in region.parts)
        grain = max(part.grain for part in region.parts)
    if keep is not None and LEVELS.index(keep[0]) in region.levels:
        room = max(0, min(room, region.free - keep[1]))
    grain = max([grain, *(need.size for need in needs if need.level in region.levels)])
    region.room, region.grain = room - room % grain, grain
    return region.room

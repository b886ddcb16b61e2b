"""What a placement survives by swaps alone, whatever fails: any so many GPUs, nodes, NVLink domains or racks.

A rank may only move within the scope, so that each region of the scope stands by itself. Whatever fails in a region
takes ranks and spares away at once, and nobody stays without a place as long as the slots lost are no more than the
spares that the region had: ``ranks lost <= spares - spares lost``. The worst that so many GPUs, nodes or racks can do
is to be the largest ones of the tightest region. So the numbers are exact, not estimates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tlaunch.topology.explain import count
from tlaunch.topology.model import LEVELS, Level, Machine, Scope, Slot

Unit = Literal["GPU", "node", "domain", "rack", "pod"]

_NOUNS: Mapping[Unit, str] = {
    "GPU": "GPU",
    "node": "node",
    "domain": "NVLink domain",
    "rack": "rack",
    "pod": "pod",
}


@dataclass(frozen=True, slots=True)
class Survival:
    """``any_of[unit]``: how many of them may fail at once, whichever they are, in *each* region of the scope.

    A unit is left out where the machine has only one of its kind, or where it is the same as a narrower one.
    ``tightest``: a region with ranks that has the fewest spares, ``None`` when the scope is the whole machine.
    ``spares``: how many it has. ``reasons``: a sentence for each unit.
    """

    any_of: Mapping[Unit, int]
    tightest: str | None
    spares: int
    reasons: tuple[str, ...]


@dataclass(slots=True)
class _Region:
    """``sizes[level]``: the slots with a role, by the number of the part of that level that they are in."""

    ranks: int
    spares: int
    sizes: dict[Level, Counter[int]]


def survives(machine: Machine, seats: Mapping[int, Slot], spares: Iterable[Slot], within: Scope) -> Survival:
    """Tell what may fail without a rank being left without a spare in the scope around its slot."""
    names, regions = _regions(machine, seats, spares, within)
    tightest = min(regions, key=lambda number: regions[number].spares)
    few = regions[tightest].spares
    any_of: dict[Unit, int] = {"GPU": few}
    levels: list[Level] = divisions(machine)
    if len(machine.nodes) < len(machine.slots):
        levels.insert(0, "node")
    for level in levels:
        any_of[level] = min(_most(region, level, within) for region in regions.values())
    name = None if within == "any" else names[tightest]
    return Survival(any_of, name, few, tuple(_sentence(unit, number, within, name) for unit, number in any_of.items()))


def divisions(machine: Machine) -> list[Level]:
    """Return the levels above the node that divide the machine, from the narrowest to the widest.

    Each division once: a rack that is one NVLink domain counts as a rack, a node that is one as a node.
    """
    order: tuple[Level, ...] = ("rack", "domain", "pod")
    seen: list[list[int]] = [list(machine.regions["node"])]
    found: list[Level] = []
    for level in order:
        regions = list(machine.regions[level])
        if regions not in seen and len(set(regions)) > 1:
            seen.append(regions)
            found.append(level)
    return sorted(found, key=LEVELS.index)


def _regions(
    machine: Machine, seats: Mapping[int, Slot], spares: Iterable[Slot], within: Scope
) -> tuple[dict[int, str], dict[int, _Region]]:
    """Return the name and the contents of each region of the scope that has ranks."""
    ranks = Counter(slot.node for slot in seats.values())
    free = Counter(slot.node for slot in spares)
    found: dict[int, _Region] = {}
    names: dict[int, str] = {}
    for index, node in enumerate(machine):
        number = 0 if within == "any" else machine.regions[within][index]
        region = found.setdefault(number, _Region(0, 0, {level: Counter() for level in LEVELS}))
        named = {"node": node.name, "domain": node.domain, "rack": node.rack or node.domain, "any": None}[within]
        names.setdefault(number, named or node.name)
        region.ranks += ranks[node.name]
        region.spares += free[node.name]
        for level in LEVELS:
            region.sizes[level][machine.regions[level][index]] += ranks[node.name] + free[node.name]
    return names, {number: region for number, region in found.items() if region.ranks}


def _most(region: _Region, level: Level, within: Scope) -> int:
    """Return how many parts of a region may be lost, even its largest ones."""
    if within != "any" and LEVELS.index(level) >= LEVELS.index(within):
        return 0  # the region itself is lost, and all its spares with it
    lost = number = 0
    for size in sorted(region.sizes[level].values(), reverse=True):
        lost += size
        if lost > region.spares:
            break
        number += 1
    return number


def _sentence(unit: Unit, number: int, within: Scope, tightest: str | None) -> str:
    noun = _NOUNS[unit]
    if not number:
        whose = "" if tightest is None else f" of {tightest}" if unit == "GPU" else ""
        return f"no whole {noun}" if unit != "GPU" else f"no {noun}{whose}: it has no spare" if whose else f"no {noun}"
    place = {"node": "on each node", "domain": "in each NVLink domain", "rack": "in each rack", "any": "in all"}[within]
    return f"any {count(number, noun)} {place}"

"""One answer out of what all sources say, and where they contradict each other. Pure.

Sources name the same place differently: the driver calls an NVLink domain ``<uuid>.1`` and Slurm calls it ``block-7``.
That is no contradiction. What counts is which nodes a source puts together, except between sources that use the same
words (see ``Source``): these have to agree on the name too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from tlaunch.topology.discover.report import (
    ABOVE,
    BY_NAME,
    RANK,
    SLOTS_FIRST,
    Above,
    Part,
    Report,
    fail,
)
from tlaunch.topology.model import Machine, Node, TopologyError

Said = Mapping[str, Mapping[str, str]]
"""One level: ``said[source][node]`` is the place."""


@dataclass(frozen=True, slots=True)
class Found:
    """A place, or a number of slots, and the source that it is from."""

    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two sources that cannot both be right about a level (or the slots) of a node. The first has precedence."""

    node: str
    level: str
    source: str
    value: str
    other: str
    other_value: str
    why: str = ""

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return (
            f"{self.node}: {self.level}: {self.source} says {self.value}, {self.other} says {self.other_value}{why}; "
            f"{self.source} wins"
        )


@dataclass(frozen=True)
class Discovery:
    """The merged answer. ``places[node][level]`` is missing where nobody says anything; ``slots`` likewise.

    ``nodes`` are in alphabetical order, numbers counting as numbers; ``machine()`` puts them in physical order.
    ``warnings``: what is wrong beside the contradictions, one line each.
    """

    nodes: tuple[str, ...]
    places: Mapping[str, Mapping[Above, Found]]
    slots: Mapping[str, Found]
    reports: tuple[Report, ...]
    contradictions: tuple[Contradiction, ...] = ()
    warnings: tuple[str, ...] = ()

    def node(self, name: str) -> Node:
        """Return a node where it was found, with one slot where nobody knows how many it has."""
        places = self.places.get(name, {})
        pod, rack, domain = (places[level].value if level in places else None for level in ABOVE)
        slots = int(self.slots[name].value) if name in self.slots else 1
        return Node(name, slots, domain=domain, rack=rack, pod=pod)

    def machine(self) -> Machine:
        """Return all nodes in physical order: pods, racks and domains as their first nodes stand, then by name."""
        nodes = [self.node(name) for name in self.nodes]
        first: dict[tuple[str, str | None], int] = {}
        for index, node in enumerate(nodes):
            for key in (("pod", node.pod), ("rack", node.rack), ("domain", node.domain)):
                first.setdefault(key, index)
        return Machine(
            tuple(
                sorted(
                    nodes,
                    key=lambda node: (first["pod", node.pod], first["rack", node.rack], first["domain", node.domain]),
                )
            )
        )

    @cached_property
    def located(self) -> bool:
        """Whether any source knows where any of the nodes stands."""
        return any(self.places.values())


def merge(reports: Iterable[Report], nodes: Iterable[str] | None = None) -> Discovery:
    """Combine reports level by level. ``nodes``: those that are asked for; all that are named, if ``None``.

    On each level the first source in the order of ``SOURCES`` that names a place for a node wins. A node of which only
    lesser sources know is put to those it is with according to them: ``block-7`` becomes ``<uuid>.1`` where a node that
    both sources know shows that they are the same. The order in which reports and nodes are given changes nothing.

    Raises:
        TopologyError: one source puts a node into two places of one level, or two GPUs have one uuid.
    """
    told = tuple(sorted(reports, key=lambda report: (RANK[report.source], report.origin)))
    said = {level: _said(told, level) for level in ABOVE}
    slots = _said(told, "slots")
    _check_uuids(told)
    named = {name for report in told for name in report.nodes}
    asked = named if nodes is None else set(nodes)
    every = sorted(named | asked, key=natural)
    wanted = tuple(name for name in every if name in asked)
    chosen = {level: _choose(said[level]) for level in ABOVE}
    places: dict[str, dict[Above, Found]] = {
        name: {level: chosen[level][name] for level in ABOVE if name in chosen[level]} for name in wanted
    }
    conflicts = [conflict for level in ABOVE for conflict in _conflicts(level, said[level], every)]
    counts = dict(sorted(slots.items(), key=lambda item: item[0] not in SLOTS_FIRST))
    conflicts += _differing("slots", counts, every)
    found = {name: Found(counts[source][name], source) for source in reversed(counts) for name in counts[source]}
    return Discovery(
        nodes=wanted,
        places=places,
        slots={name: found[name] for name in wanted if name in found},
        reports=told,
        contradictions=tuple(conflict for conflict in conflicts if conflict.node in asked),
        warnings=_untidy(places),
    )


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key for names in which numbers count as numbers: ``gb2`` before ``gb10``."""
    parts = re.findall(r"\d+|\D+", name)
    return (*((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts), (2, 0, name))


def _said(reports: Iterable[Report], level: Part) -> dict[str, dict[str, str]]:
    """Return what is said about one level, by source in order of precedence."""
    said: dict[str, dict[str, str]] = {}
    origins: dict[tuple[str, str], str] = {}
    for report in reports:
        for node, coordinates in report.nodes.items():
            value = coordinates.at(level)
            if value is None:
                continue
            before = said.setdefault(report.source, {}).setdefault(node, value)
            origin = origins.setdefault((report.source, node), report.origin)
            if before != value:
                where = report.origin if origin == report.origin else f"{origin} and {report.origin}"
                expected = "one number" if level == "slots" else f"every node in one {level}"
                fail(report.source, node, level, f"is {before} and {value} in {where}; expected {expected}")
    return said


def _choose(said: Said) -> dict[str, Found]:
    """Return the place of each node on one level."""
    chosen: dict[str, Found] = {}
    for source, places in said.items():
        same: dict[str, set[str]] = {}
        for node, place in places.items():
            # A domain that is the node alone says nothing about where others are.
            if node in chosen and chosen[node].value != node:
                same.setdefault(place, set()).add(chosen[node].value)
        new = {}
        for node, place in places.items():
            if node not in chosen:
                known = same.get(place, set())
                new[node] = Found(next(iter(known)) if len(known) == 1 else place, source)
        chosen |= new
    return chosen


def _conflicts(level: Above, said: Said, every: Sequence[str]) -> Iterable[Contradiction]:
    for first, second in combinations(said, 2):
        mine, theirs = said[first], said[second]
        if BY_NAME[first].words == BY_NAME[second].words:
            yield from _differing(level, {first: mine, second: theirs}, every)
        else:
            yield from _regrouped(level, (first, mine), (second, theirs), every)


def _differing(level: str, said: Said, every: Sequence[str]) -> Iterable[Contradiction]:
    """Yield where two sources that use the same words use different ones."""
    for first, second in combinations(said, 2):
        for node in every:
            mine, theirs = said[first].get(node), said[second].get(node)
            if mine is not None and theirs is not None and mine != theirs:
                yield Contradiction(node, level, first, mine, second, theirs)


def _regrouped(
    level: Above, first: tuple[str, Mapping[str, str]], second: tuple[str, Mapping[str, str]], every: Sequence[str]
) -> Iterable[Contradiction]:
    """Yield the nodes that two sources put together with others in different ways."""
    (one, mine), (other, theirs) = first, second
    shared = [node for node in every if node in mine and node in theirs]
    sizes = Counter(theirs.values())
    by_theirs: dict[str, str] = {}
    by_mine: dict[str, str] = {}
    for node in shared:
        friend = by_theirs.setdefault(theirs[node], node)
        stranger = by_mine.setdefault(mine[node], node)
        why = ""
        if mine[node] == node and sizes[theirs[node]] > 1:
            why = "with other nodes"
        elif mine[friend] != mine[node]:
            why = f"as of {friend}, which {one} puts into {mine[friend]}"
        elif theirs[stranger] != theirs[node]:
            why = f"but {theirs[stranger]} of {stranger}, which {one} puts into {mine[node]} too"
        if why:
            yield Contradiction(node, level, one, mine[node], other, theirs[node], why)


def _check_uuids(reports: Iterable[Report]) -> None:
    owner: dict[str, str] = {}
    for report in reports:
        for node, gpus in report.gpus.items():
            for gpu in gpus:
                here = f"{node} gpu {gpu.index}"
                if gpu.uuid is not None and owner.setdefault(gpu.uuid, here) != here:
                    raise TopologyError(
                        f"{report.source}: {here}: uuid: {gpu.uuid} is that of {owner[gpu.uuid]} too; "
                        "expected a uuid of its own for each GPU"
                    )


def _untidy(places: Mapping[str, Mapping[Above, Found]]) -> tuple[str, ...]:
    """Say which places lie in two wider ones: sources that each make sense need not make a tree together."""
    lines: dict[str, None] = {}
    pairs: tuple[tuple[Above, Above], ...] = (("domain", "rack"), ("rack", "pod"))
    for narrow, wide in pairs:
        parents: dict[str, Found] = {}
        for found in places.values():
            inner, outer = found.get(narrow), found.get(wide)
            if inner is None or outer is None:
                continue
            before = parents.setdefault(inner.value, outer)
            if before.value != outer.value:
                both = f"{before.value} and {outer.value}"
                line = f"{narrow} {inner.value} ({inner.source}) is in {wide} {both} ({outer.source})"
                lines[f"{line}; the narrower level counts first"] = None
    return tuple(lines)

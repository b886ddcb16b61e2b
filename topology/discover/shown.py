"""Showing what was found: tables for the terminal (rich, imported when something is drawn) and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tlaunch.topology.discover.gather import remarks
from tlaunch.topology.discover.merge import Discovery, Found
from tlaunch.topology.discover.report import ABOVE, SOURCES, Part, Report
from tlaunch.topology.explain import count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MOST = 40
"""Rows and remarks that are shown; JSON has all of them."""


def document(found: Discovery) -> dict[str, Any]:
    """Return everything as what ``json.dumps`` takes: keys and units are those of the Python objects."""
    return {
        "precedence": [source.name for source in SOURCES],
        "nodes": [_node(found, name) for name in (node.name for node in found.machine())],
        "sources": [_report(report) for report in found.reports],
        "contradictions": [
            {
                "node": conflict.node,
                "level": conflict.level,
                "source": conflict.source,
                "value": conflict.value,
                "other": conflict.other,
                "other_value": conflict.other_value,
                "line": str(conflict),
            }
            for conflict in found.contradictions
        ],
        "warnings": list(found.warnings),
    }


def show(found: Discovery) -> RenderableType:
    """Draw what each source said, what won, and what people should know."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_winners(found)]
    if any(report.gpus for report in found.reports):
        parts.append(_gpus(found))
    order = ", ".join(source.name for source in SOURCES)
    parts.append(Text(f"Precedence: {order}."))
    lines = remarks(found)
    parts += [Text(f"- {line}") for line in lines[:MOST]]
    if len(lines) > MOST:
        parts.append(Text(f"and {len(lines) - MOST} more; --json shows all"))
    return Group(*parts)


def _winners(found: Discovery) -> Table:
    """One row for each node and level: what won, from which source, and what the others said."""
    from rich.table import Table

    table = Table(title="Where nodes are", title_justify="left", caption_justify="left")
    for heading in ("node", "level", "won", "source", "others said"):
        table.add_column(heading, overflow="fold")
    nodes = [node.name for node in found.machine()]
    for name in nodes[:MOST]:
        here = name
        places = found.places[name]
        won: list[tuple[Part, Found]] = [(level, places[level]) for level in ABOVE if level in places]
        if name in found.slots:
            won.append(("slots", found.slots[name]))
        for part, place in won:
            others = [f"{source}: {value}" for source, value in _said(found, name, part) if source != place.source]
            table.add_row(here, part, place.value, place.source, "\n".join(others))
            here = ""
        if here:
            table.add_row(here, "-", "nobody knows")
        table.add_section()
    if len(nodes) > MOST:
        table.caption = f"and {count(len(nodes) - MOST, 'more node')}; --json shows all"
    return table


def _gpus(found: Discovery) -> Table:
    from rich.table import Table

    table = Table(title="GPUs of this node", title_justify="left")
    for heading in ("gpu", "name", "uuid", "PCI", "NVLink domain", "NVLink peers", "ECC", "state"):
        table.add_column(heading, overflow="fold")
    for report in found.reports:
        for gpus in report.gpus.values():
            for gpu in gpus:
                ecc = {True: "on", False: "off", None: "-"}[gpu.ecc]
                peers = ",".join(map(str, gpu.peers)) or "-"
                words = (gpu.name, gpu.uuid, gpu.pci, gpu.clique)
                table.add_row(str(gpu.index), *(word or "-" for word in words), peers, ecc, gpu.fault or "ok")
    return table


def _said(found: Discovery, name: str, part: Part) -> Iterator[tuple[str, str]]:
    """Yield (source, value) of what is said of a level, or the slots, of a node."""
    for report in found.reports:
        value = report.nodes[name].at(part) if name in report.nodes else None
        if value is not None:
            yield report.source, value


def _node(found: Discovery, name: str) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name}
    for level in ABOVE:
        won = found.places[name].get(level)
        told[level] = None if won is None else {"value": won.value, "source": won.source}
    slots = found.slots.get(name)
    told["slots"] = None if slots is None else {"value": int(slots.value), "source": slots.source}
    return told


def _report(report: Report) -> dict[str, Any]:
    return {
        "source": report.source,
        "origin": report.origin,
        "notes": list(report.notes),
        "nodes": {
            name: {level: getattr(coordinates, level) for level in (*ABOVE, "slots")}
            for name, coordinates in report.nodes.items()
        },
        "gpus": {
            name: [{part: getattr(gpu, part) for part in type(gpu).__slots__} for gpu in gpus]
            for name, gpus in report.gpus.items()
        },
    }

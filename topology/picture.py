"""Drawings of the machine for the terminal. rich is imported only when something is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlaunch.topology.explain import count
from tlaunch.topology.model import Machine, Node, Slot

if TYPE_CHECKING:
    from rich.console import RenderableType

SPARE = "+"
NODES = 72
"""How many nodes of one block are drawn; more would be a wall of numbers."""
RACKS = 4
"""How many racks are drawn of a machine that has more: the others are like them, or are counted."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a picture shows for one slot. The text must say it all: colour is a help, not the message."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """The nodes of one NVLink domain, or all those of a rack that are no part of a larger domain."""

    title: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Rack:
    """One rack of a picture; nodes without a rack share one for each pod."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def slots(self) -> list[Slot]:
        return [Slot(node.name, index) for block in self.blocks for node in block.nodes for index in range(node.slots)]


def outline(machine: Machine) -> tuple[Rack, ...]:
    """Return what there is to draw, in physical order."""
    racks: dict[tuple[str | None, str | None], list[Node]] = {}
    for node in machine:
        racks.setdefault((node.pod, node.rack), []).append(node)
    return tuple(_rack(pod, rack, nodes) for (pod, rack), nodes in racks.items())


def show(machine: Machine) -> RenderableType:
    """Draw the machine: racks, NVLink domains, nodes and the GPUs of each."""
    from rich.console import Group
    from rich.text import Text

    marks = {slot: Mark(str(slot.index)) for slot in machine.slots}
    racks = outline(machine)
    total = f"{count(len(racks), 'rack')}, {count(len(machine.nodes), 'node')}, {count(len(machine.slots), 'slot')}"
    return Group(*draw(racks[:RACKS], marks), *more(racks[RACKS:]), Text(total))


def more(racks: Sequence[Rack]) -> list[RenderableType]:
    """Say in a line each what the racks are that are not drawn, those of one shape together."""
    from rich.text import Text

    shapes = Counter(rack.title.partition(" | ")[2] for rack in racks)
    return [Text(f"{count(number, 'rack')} more: {shape}") for shape, number in shapes.items()]


def draw(
    racks: Iterable[Rack], marks: Mapping[Slot, Mark], notes: Mapping[Rack, str] | None = None
) -> list[RenderableType]:
    """Draw racks with a mark on each slot. ``notes``: what to add to the title of a rack."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    width = max((len(mark.text) for mark in marks.values()), default=1)
    panels: list[RenderableType] = []
    for rack in racks:
        parts: list[RenderableType] = []
        for block in rack.blocks:
            if len(rack.blocks) > 1:
                parts.append(Text(block.title, style="dim"))
            lines = [_line(node, marks, width) for node in block.nodes[:NODES]]
            parts.append(Columns(lines, padding=(0, 3), column_first=True))
            if len(block.nodes) > NODES:
                parts.append(Text(f"and {count(len(block.nodes) - NODES, 'node')} more", style="dim"))
        title = Text(" | ".join(part for part in (rack.title, (notes or {}).get(rack, "")) if part))
        panels.append(Panel(Group(*parts), title=title, title_align="left"))
    return panels


def _line(node: Node, marks: Mapping[Slot, Mark], width: int) -> RenderableType:
    from rich.text import Text

    line = Text(node.name, no_wrap=True)
    for index in range(node.slots):
        mark = marks[Slot(node.name, index)]
        line.append("  " if index == 0 else " ").append(mark.text.rjust(width), style=mark.style)
    return line


def _rack(pod: str | None, rack: str | None, nodes: list[Node]) -> Rack:
    sizes = Counter(node.domain_key for node in nodes)
    blocks: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        blocks.setdefault(node.domain_key if sizes[node.domain_key] > 1 else ("", ""), []).append(node)
    parts = tuple(Block(_block_title(members), tuple(members)) for members in blocks.values())
    name = " / ".join(part for part in (pod, rack or "no rack") if part)
    links = parts[0].title if len(parts) == 1 else f"{len(sizes)} NVLink domains"
    return Rack(f"{name} | {_size(nodes)} | {links}", parts)


def _block_title(nodes: list[Node]) -> str:
    domain = nodes[0].domain
    if len({node.domain_key for node in nodes}) == 1 and len(nodes) > 1:
        return "one NVLink domain" if domain == nodes[0].rack else f"NVLink domain {domain}"
    return "NVLink inside each node" if all(node.domain for node in nodes) else "no NVLink between nodes"


def _size(nodes: list[Node]) -> str:
    sizes = {node.slots for node in nodes}
    total = sum(node.slots for node in nodes)
    if len(sizes) > 1:
        return f"{count(len(nodes), 'node')}, {total} slots"
    return f"{len(nodes)} x {sizes.pop()} = {count(total, 'slot')}"

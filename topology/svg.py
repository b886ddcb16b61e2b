"""The picture of a plan as an SVG file: racks beside each other, a row for each node, a cell for each slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from colorsys import hls_to_rgb
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from tlaunch.topology.explain import count
from tlaunch.topology.model import Slot
from tlaunch.topology.picture import NODES, Rack, outline
from tlaunch.topology.planned import Planned
from tlaunch.topology.planpicture import group_of, sentences

RACKS = 32
"""How many racks are drawn."""
_COLUMNS = 8
_CELL, _ROW, _GAP, _LETTER = 30, 20, 24, 7.2
"""Width of a cell, height of a row, space between racks, width of a letter; all in SVG units (pixels)."""
_GOLDEN = 137.508
"""Degrees on the colour wheel between one group and the next: neighbours never look alike."""
_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1b1f24}"
    ".t{font-weight:bold}.d{fill:#6a737d}.c{text-anchor:middle}"
    ".r{fill:#fff;stroke:#c9d1d9}.s{fill:#fff8dc;stroke:#b8860b;stroke-dasharray:3 2}.x{fill:#f8d7da;stroke:#b02a37}"
)


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    title: str
    look: str


def draw(planned: Planned) -> str:
    """Return the SVG document. It needs nothing from outside, and each cell has a tooltip."""
    racks = outline(planned.machine)
    cells = _cells(planned)
    shown = racks[:RACKS]
    parts: list[str] = []
    top = width = 0.0
    for first in range(0, len(shown), _COLUMNS):
        left = tall = 0.0
        for rack in shown[first : first + _COLUMNS]:
            drawn, wide, high = _rack(rack, cells)
            parts.append(f'<g transform="translate({left:.0f} {top:.0f})">{drawn}</g>')
            left, tall = left + wide + _GAP, max(tall, high)
        top, width = top + tall + _GAP, max(width, left)
    lines = sentences(planned)
    if len(racks) > RACKS:
        lines.insert(0, f"{count(len(racks) - RACKS, 'rack')} more, not drawn")
    parts += [_text(0, top + (index + 1) * _ROW, line) for index, line in enumerate(lines)]
    width = max(width, *(len(line) * _LETTER for line in lines)) + 2 * _GAP
    height = top + (len(lines) + 1) * _ROW + 2 * _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#f6f8fa"/><g transform="translate({_GAP} {_GAP})">'
        f"{''.join(parts)}</g></svg>\n"
    )


def _cells(planned: Planned) -> Mapping[Slot, _Cell]:
    cells = {slot: _Cell("+", f"{slot}: spare", 'class="s"') for slot in planned.placement.spares}
    for rank, slot in planned.placement.seats.items():
        group = group_of(planned.mesh, rank)
        cells[slot] = _Cell(str(rank), f"{slot}: rank {rank}", f'fill="{_colour(group)}"')
    return cells


def _colour(group: int) -> str:
    red, green, blue = (round(255 * part) for part in hls_to_rgb(group * _GOLDEN % 360 / 360, 0.82, 0.6))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _rack(rack: Rack, cells: Mapping[Slot, _Cell]) -> tuple[str, float, float]:
    """Return (what to draw, its width, its height)."""
    name, _, rest = rack.title.partition(" | ")
    letters = max(len(node.name) for block in rack.blocks for node in block.nodes[:NODES])
    slots = max(node.slots for block in rack.blocks for node in block.nodes[:NODES])
    indent = letters * _LETTER + 14
    wide = max(indent + slots * _CELL + 10, len(rest) * _LETTER + 20, len(name) * _LETTER + 20)
    body: list[str] = [_text(10, 20, name, "t"), _text(10, 38, rest, "d")]
    y = 48.0
    for block in rack.blocks:
        if len(rack.blocks) > 1:
            body.append(_text(10, y + 14, block.title, "d"))
            y += _ROW
        for node in block.nodes[:NODES]:
            body.append(_text(10, y + 14, node.name))
            body += _row(node.name, node.slots, indent, y, cells)
            y += _ROW
        if len(block.nodes) > NODES:
            body.append(_text(10, y + 14, f"and {count(len(block.nodes) - NODES, 'node')} more", "d"))
            y += _ROW
    high = y + 10
    frame = f'<rect class="r" width="{wide:.0f}" height="{high:.0f}" rx="6"/>'
    return frame + "".join(body), wide, high


def _row(node: str, slots: int, indent: float, y: float, cells: Mapping[Slot, _Cell]) -> Iterator[str]:
    for index in range(slots):
        slot, x = Slot(node, index), indent + index * _CELL
        cell = cells.get(slot) or _Cell("x", f"{slot}: not healthy", 'class="x"')
        yield (
            f'<g><title>{escape(cell.title)}</title><rect {cell.look} x="{x:.1f}" y="{y:.1f}" width="{_CELL - 2}" '
            f'height="{_ROW - 2}" rx="3"/>{_text(x + _CELL / 2 - 1, y + 14, cell.text, "c")}</g>'
        )


def _text(x: float, y: float, text: str, look: str = "") -> str:
    kind = f" class={quoteattr(look)}" if look else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'

"""The picture of a plan: where the ranks of a job would go, how good that is, and what it survives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tlaunch.topology.explain import count
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Slot
from tlaunch.topology.picture import RACKS, SPARE, Mark, Rack, draw, outline
from tlaunch.topology.planned import Planned, Roles, roles_by_node
from tlaunch.topology.survival import divisions

if TYPE_CHECKING:
    from rich.console import RenderableType

GROUP_STYLES = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "bright_blue")
_SPARE_STYLE = "bold yellow"
BAD = "x"
_BAD_STYLE = "bold red"


def plan(planned: Planned) -> RenderableType:
    """Draw which rank sits where and which slots are spare, and say how well it came out.

    Of a machine with many racks the first ones are drawn, and the others are counted by what is on them.
    """
    from rich.console import Group
    from rich.text import Text

    racks = outline(planned.machine)
    roles = roles_by_node(planned)
    shown = racks[:RACKS]
    notes = {rack: _roles(_sum(roles[node.name] for block in rack.blocks for node in block.nodes)) for rack in shown}
    return Group(
        *draw(shown, _marks(planned, shown), notes),
        *_others(planned, racks[RACKS:]),
        Text(_legend(planned), style="dim"),
        Text(""),
        *(Text(f"- {reason}") for reason in _met(planned)),
        *(Text(f"! {unmet}", style="bold yellow") for unmet in planned.placement.unmet),
        Text(""),
        _localities(planned),
        Text(""),
        Text(f"survives, by swaps within {_WHERE[planned.scope]}:"),
        *(Text(f"- {reason}") for reason in planned.survival.reasons),
    )


def sentences(planned: Planned) -> list[str]:
    """Return in words what stands below the picture."""
    scores = ", ".join(f"{name} {found.score:.1f}" for name, found in planned.compared.items())
    return [
        _legend(planned),
        *_met(planned),
        *(f"! {unmet}" for unmet in planned.placement.unmet),
        f"locality score: {scores}",
        f"survives, by swaps within {_WHERE[planned.scope]}: {'; '.join(planned.survival.reasons)}",
    ]


def _met(planned: Planned) -> list[str]:
    return [reason for reason in planned.placement.reasons if reason not in planned.placement.unmet]


_WHERE = {"node": "a node", "domain": "an NVLink domain", "rack": "a rack", "any": "the whole machine"}


def group_of(mesh: Mesh, rank: int) -> int:
    """Return the number of the group that is drawn in one colour: innermost groups, replicas of a flat mesh."""
    return rank // mesh.inner if mesh.grouped else mesh.replica_of(rank)


def _marks(planned: Planned, racks: Iterable[Rack]) -> dict[Slot, Mark]:
    drawn = {slot for rack in racks for slot in rack.slots}
    marks = {slot: Mark(BAD, _BAD_STYLE) for slot in drawn}
    marks |= {slot: Mark(SPARE, _SPARE_STYLE) for slot in planned.placement.spares if slot in drawn}
    for rank, slot in planned.placement.seats.items():
        if slot in drawn:
            marks[slot] = Mark(str(rank), GROUP_STYLES[group_of(planned.mesh, rank) % len(GROUP_STYLES)])
    return marks


def _legend(planned: Planned) -> str:
    mesh = planned.mesh
    groups = f", one colour = one {mesh.dims[-1][0]} group" if mesh.grouped else ""
    bad = f", {BAD} = not healthy" if planned.bad else ""
    return f"mesh {mesh}: number = rank{groups}, {SPARE} = spare{bad}"


def _others(planned: Planned, racks: Sequence[Rack]) -> Sequence[RenderableType]:
    """Count the racks that are not drawn by what is on them."""
    from rich.text import Text

    roles = roles_by_node(planned) if racks else {}
    kinds = Counter(_roles(_sum(roles[node.name] for block in rack.blocks for node in block.nodes)) for rack in racks)
    return [Text(f"{count(number, 'rack')} more with {kind} each") for kind, number in kinds.most_common(RACKS)] + (
        [Text(f"and {count(len(kinds) - RACKS, 'other kind')} of racks")] if len(kinds) > RACKS else []
    )


def _localities(planned: Planned) -> RenderableType:
    """Tabulate the score, and how many ring edges of each dimension leave a level, beside what other launchers do."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    levels = divisions(planned.machine)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("order of the ranks")
    table.add_column("locality score", justify="right")
    dims = [index for index, (_, size) in enumerate(planned.mesh.dims) if size > 1] if levels else []
    for index in reversed(dims):
        name, size = planned.mesh.dims[index]
        table.add_column(f"{name}={size}", justify="right")
    for name, found in planned.compared.items():
        rings = [found.dims[index].ring.leaving for index in reversed(dims)]
        edges = [" / ".join(str(leaving[level]) for level in levels) for leaving in rings]
        table.add_row(name, f"{found.score:.1f}", *edges, style="bold" if name == "tlaunch" else "")
    if not dims:
        return table
    what = " / ".join(f"a {level}" for level in levels)
    ours = planned.compared["tlaunch"].dims
    totals = ", ".join(f"{ours[index].name} {ours[index].ring.total}" for index in reversed(dims))
    note = f"below each dimension: ring edges that leave {what}, of {totals}"
    return Group(table, Text(note, style="dim"))


def _sum(roles: Iterable[Roles]) -> Roles:
    each = list(roles)
    return Roles(sum(role.ranks for role in each), sum(role.spares for role in each), sum(role.bad for role in each))


def _roles(roles: Roles) -> str:
    parts = [count(roles.ranks, "rank"), count(roles.spares, "spare")]
    return ", ".join([*parts, f"{roles.bad} bad"] if roles.bad else parts)

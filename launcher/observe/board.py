"""The picture of a job: its nodes by rack and what each slot is for. Pure; for the live view and ``tlaunch status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tlaunch.launcher.observe.jobview import JobView, Role, RoleKind
from tlaunch.topology.model import Node, Slot
from tlaunch.topology.picture import SPARE, outline

STYLES: Mapping[RoleKind, str] = {
    "rank": "green",
    "spare": "cyan",
    "bad": "bold red",
    "lost": "bold red reverse",
    "awaited": "dim",
    "idle": "dim",
}
"""How a slot is shown, by its role."""

_LABELS: Mapping[RoleKind, str] = {"spare": SPARE, "bad": "bad", "lost": "lost", "awaited": "...", "idle": "-"}
_LEGEND = f"number = rank, {SPARE} = spare, bad = not used, lost = node gone, ... = not there yet"


def board(job: JobView, width: int, height: int, note: str = "") -> Group:
    """Draw a job in at most ``height`` lines of ``width`` columns. ``note`` stands in the first line."""
    room = height - 3  # the headline, the legend, an empty line
    picture = list(_by_node(job, width))
    if len(picture) > room:
        picture = list(_by_rack(job))
    if len(picture) > room:
        left_out = len(picture) - (room - 1)
        picture = [*picture[: max(0, room - 1)], Text(f"  ... and {left_out} racks more", "dim")]
    return Group(headline(job, note), *picture, Text(_LEGEND, "dim", no_wrap=True, overflow="ellipsis"))


def headline(job: JobView, note: str = "") -> Text:
    """Return one line that says how a job stands."""
    plan = job.plan
    parts = [f"job {job.job_id}", note] if note else [f"job {job.job_id}"]
    if plan is None:
        parts.append(f"waiting for nodes, {len(job.alive)} of {len(job.machine.nodes)} are there")
    elif plan.result is not None:
        parts.append(f"ended with code {plan.result.code}")
    else:
        parts += [f"generation {plan.generation}", f"{plan.world_size} ranks ({plan.mesh})"]
        counts = [(job.count(kind), kind) for kind in ("spare", "bad", "lost")]
        parts += [f"{number} {kind}" for number, kind in counts if number or kind == "spare"]
    if job.leader is not None:
        parts.append(f"controller {job.leader}")
    return Text("  ".join(parts), "bold", no_wrap=True, overflow="ellipsis")


def _by_node(job: JobView, width: int) -> Iterator[RenderableType]:
    """Draw every slot of every node, several nodes beside each other, below the title of their rack."""
    names = max((len(node.name) for node in job.machine), default=0)
    slots = max((node.slots for node in job.machine), default=0)
    label = max([len(str(len(job.machine.slots))), *map(len, _LABELS.values())])
    cell = 2 + names + slots * (1 + label) + 2
    columns = max(1, width // cell)
    for rack in outline(job.machine):
        yield Text(rack.title, "bold", no_wrap=True, overflow="ellipsis")
        nodes = [node for block in rack.blocks for node in block.nodes]
        for start in range(0, len(nodes), columns):
            line = Text("", no_wrap=True, overflow="ellipsis")
            for node in nodes[start : start + columns]:
                drawn = _node(job.roles, node, names, label)
                drawn.pad_right(cell - len(drawn))
                line.append_text(drawn)
            line.rstrip()
            yield line


def _node(roles: Mapping[Slot, Role], node: Node, names: int, label: int) -> Text:
    drawn = Text(f"  {node.name:<{names}}")
    for index in range(node.slots):
        role = roles[Slot(node.name, index)]
        text = str(role.rank) if role.kind == "rank" else _LABELS[role.kind]
        drawn.append(" ")
        drawn.append(f"{text:>{label}}", STYLES[role.kind])
    return drawn


def _by_rack(job: JobView) -> Iterator[Text]:
    """Count the roles in each rack."""
    for rack in outline(job.machine):
        counts = Counter(job.roles[slot].kind for slot in rack.slots)
        line = Text(f"  {rack.title} |", no_wrap=True, overflow="ellipsis")
        for kind, style in STYLES.items():
            if counts[kind]:
                line.append(f"  {counts[kind]} {kind}", style)
        yield line


def happenings(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Return a table of (when or which, cause, decision)."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(ratio=1, overflow="fold")
    table.add_column(ratio=1, overflow="fold", style="green")
    for row in rows:
        table.add_row(*row)
    return table

"""``tlaunch topology show`` and ``plan``: machines, and where the ranks of a job would go. Nothing is started."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlaunch.errors import InputError
from tlaunch.launcher.cli.flags import choice, flag, positional, switch, whole
from tlaunch.launcher.cli.options import MESH, SPARES_HELP, spare_request
from tlaunch.topology.model import Machine, Node, Scope, Slot
from tlaunch.topology.spares import SpareRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

_MACHINE = "A YAML file, a known one such as nvl72, or synthetic:racks=2,nodes=18,gpus=4."


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowOptions:
    """``tlaunch topology show``."""

    topology: str | None = positional("TOPOLOGY", _MACHINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """``tlaunch topology plan``: the flags are those of a run, but for what is shown."""

    nodes: int | None = flag("--nodes", "N", "Nodes to run on (default: all that the file names).", whole(1))
    gpus_per_node: int | None = flag(
        "--gpus-per-node", "N", "Ranks for each node (default: as the file says).", whole(1)
    )
    spares: int | SpareRequest | None = flag("--spares", "N|N/rack|Nn", SPARES_HELP, spare_request)  # noqa: RUF009  the field is what it makes
    mesh: str | None = flag("--mesh", *MESH)
    strict: bool = switch("--strict", "Fail when a level of --mesh or the --spares cannot be had.")
    swap_scope: Scope | None = flag(  # noqa: RUF009  as above
        "--swap-scope",
        "node|domain|rack|any",
        "How far a rank may move to a spare (default: rack).",
        choice("node", "domain", "rack", "any"),
    )
    bad: str | None = flag("--bad", "NODE|GPU,...", "What is broken: nodes, and GPUs such as node-03/gpu-2.")
    json: bool = switch("--json", "Print one JSON object.")
    svg: str | None = flag("--svg", "FILE", "Write the picture to an SVG file as well.")
    topology: str | None = positional("TOPOLOGY", _MACHINE)


def show(given: ShowOptions) -> int:
    """``tlaunch topology show``."""
    from tlaunch.topology.files import load
    from tlaunch.topology.picture import show as picture

    _draw(picture(load(_named(given.topology)).machine()))
    return 0


def plan(given: PlanOptions) -> int:
    """``tlaunch topology plan``. Raises ``InputError`` when something does not fit, or cannot be written."""
    from tlaunch.launcher.cli.request import mesh_of
    from tlaunch.topology.files import load
    from tlaunch.topology.planned import planned

    machine = load(_named(given.topology)).machine(given.nodes, given.gpus_per_node)
    spares = given.spares or 0
    mesh = mesh_of(given.mesh, machine, spares)
    bad = _bad(given.bad, machine)
    found = planned(machine, mesh, spares, bad=bad, scope=given.swap_scope or "rack", strict=given.strict)
    if given.svg is not None:
        from tlaunch.topology.svg import draw

        _write(given.svg, draw(found))
    if given.json:
        import json

        from tlaunch.topology.planned import document

        sys.stdout.write(json.dumps(document(found), indent=2, ensure_ascii=False) + "\n")
    else:
        from tlaunch.topology.planpicture import plan as picture

        _draw(picture(found))
    return 0


def _named(topology: str | None) -> str:
    if topology is None:
        raise InputError("topology: expected a YAML file, or a known name such as nvl72")
    return topology


def _bad(text: str | None, machine: Machine) -> frozenset[Slot]:
    """Read which nodes and GPUs are broken."""
    found: set[Slot] = set()
    for word in text.split(",") if text is not None else ():
        name, _, gpu = word.strip().rpartition("/")
        whole = machine.by_name.get(word.strip())
        slots = [slot for slot in _slots_of(whole or machine.by_name.get(name)) if whole or gpu == f"gpu-{slot.index}"]
        if not slots:
            example = f"{machine.nodes[0].name}/gpu-0"
            raise InputError(f"--bad {word.strip()}: expected a node or a GPU of the machine, such as {example}")
        found.update(slots)
    return frozenset(found)


def _slots_of(node: Node | None) -> list[Slot]:
    return [] if node is None else [Slot(node.name, index) for index in range(node.slots)]


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--svg {path}: cannot write it: {reason}; expected the name of a file") from None


def _draw(picture: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False).print(picture)

"""What there is to know about a job's placement before it starts: for a picture, a document, or a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tlaunch.topology.explain import count
from tlaunch.topology.locality import WIDE, Locality
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Scope, Slot, TopologyError
from tlaunch.topology.orders import compared
from tlaunch.topology.placement import Placement, place
from tlaunch.topology.spares import SpareRequest
from tlaunch.topology.survival import Survival, survives


@dataclass(frozen=True, slots=True)
class Planned:
    """A placement, and how good it is.

    ``bad``: the slots that are not used. ``compared``: the locality of this placement (``tlaunch``) and of what other
    launchers would do with the same slots. ``survival``: what may fail, by swaps within ``scope``.
    """

    machine: Machine
    mesh: Mesh
    placement: Placement
    bad: frozenset[Slot]
    compared: Mapping[str, Locality]
    survival: Survival
    scope: Scope


def planned(
    machine: Machine,
    mesh: Mesh,
    spares: int | SpareRequest,
    *,
    bad: Collection[Slot] = (),
    scope: Scope = "rack",
    strict: bool = False,
) -> Planned:
    """Place a job and judge the result. Raises ``TopologyError`` as :func:`~tlaunch.topology.placement.place` does."""
    out = frozenset(bad)
    usable = [slot for slot in machine.slots if slot not in out] if out else list(machine.slots)
    placement = _placed(machine, mesh, spares, usable, strict=strict)
    return Planned(
        machine,
        mesh,
        placement,
        out,
        compared(machine, mesh, placement.seats, usable),
        survives(machine, placement.seats, placement.spares, scope),
        scope,
    )


def _placed(
    machine: Machine, mesh: Mesh, spares: int | SpareRequest, usable: Sequence[Slot], *, strict: bool
) -> Placement:
    """Place with as many spares as there are: a job starts with fewer when slots are bad."""
    room = max(len(usable) - mesh.size, 0)
    kept = spares if isinstance(spares, SpareRequest) else min(spares, room)
    placement = place(machine, mesh, kept, usable=None if len(usable) == len(machine.slots) else usable, strict=strict)
    if isinstance(spares, SpareRequest) or kept == spares:
        return placement
    unmet = f"{kept} of {count(spares, 'spare')}: the other slots are bad"
    if strict:
        raise TopologyError(unmet)
    return replace(placement, reasons=(*placement.reasons, unmet), unmet=(*placement.unmet, unmet))


@dataclass(frozen=True, slots=True)
class Roles:
    """How many ranks, spares and bad slots some nodes have."""

    ranks: int = 0
    spares: int = 0
    bad: int = 0


def roles_by_node(plan: Planned) -> Mapping[str, Roles]:
    """Count the roles of the slots of each node."""
    ranks = Counter(slot.node for slot in plan.placement.seats.values())
    spares = Counter(slot.node for slot in plan.placement.spares)
    bad = Counter(slot.node for slot in plan.bad)
    return {node.name: Roles(ranks[node.name], spares[node.name], bad[node.name]) for node in plan.machine}


def document(plan: Planned) -> dict[str, Any]:
    """Return a plan as one JSON object; slots are written ``NODE/gpu-INDEX``, ranks are the indices of ``ranks``."""
    placement = plan.placement
    return {
        "mesh": str(plan.mesh),
        "nodes": [_node(node) for node in plan.machine],
        "ranks": [str(placement.seats[rank]) for rank in range(plan.mesh.size)],
        "spares": [str(slot) for slot in placement.spares],
        "bad": [str(slot) for slot in sorted(plan.bad)],
        "locality": {name: _locality(found) for name, found in plan.compared.items()},
        "survives": {
            "swap_scope": plan.scope,
            "any": dict(plan.survival.any_of),
            "tightest": plan.survival.tightest,
            "reasons": list(plan.survival.reasons),
        },
        "reasons": list(placement.reasons),
        "unmet": list(placement.unmet),
    }


def _node(node: Node) -> dict[str, Any]:
    levels = {"domain": node.domain, "rack": node.rack, "pod": node.pod}
    return {"name": node.name, "slots": node.slots} | {
        name: value for name, value in levels.items() if value is not None
    }


def _locality(found: Locality) -> dict[str, Any]:
    return {
        "score": round(found.score, 2),
        "dimensions": {
            dim.name: {
                "size": dim.size,
                "ring": {"edges": dim.ring.total} | {f"leaving_{level}": dim.ring.leaving[level] for level in WIDE},
                "pairs": {"edges": dim.pairs.total} | {f"leaving_{level}": dim.pairs.leaving[level] for level in WIDE},
            }
            for dim in found.dims
        },
    }

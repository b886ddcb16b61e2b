"""``tlaunch status``: a job as it stands now, for people and for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.observe.board import board, happenings
from tlaunch.launcher.observe.jobview import JobView, Role
from tlaunch.launcher.observe.report import outcome, row
from tlaunch.topology.model import Node, Slot


def show(job: JobView, console: Console | None = None) -> None:
    """Print the picture of a job and all that happened to it."""
    console = console or Console(highlight=False)
    height = max(console.height, 25) if console.is_terminal else 1_000_000  # a file has room for all of it
    console.print(board(job, console.width, height))
    rows = [row(plan) for plan in job.history]
    console.print(happenings([(f"generation {one.generation}", one.cause, one.decision) for one in rows]))
    if job.result is not None:
        console.print(Text(outcome(job.job_id, job.result, job.history)))


def document(job: JobView) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    plan = job.plan
    return {
        "job": job.job_id,
        "script": job.spec.script if job.spec else None,
        "generation": job.generation,
        "world_size": plan.world_size if plan else 0,
        "mesh": str(plan.mesh) if plan else None,
        "spares": job.count("spare"),
        "restarts": plan.restarts if plan else 0,
        "controller": job.leader,
        "result": {"code": job.result.code, "reason": job.result.reason} if job.result else None,
        "nodes": [_node(job, node) for node in job.machine],
        "history": [_generation(plan) for plan in job.history],
    }


def _node(job: JobView, node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "pod": node.pod,
        "rack": node.rack,
        "domain": node.domain,
        "alive": node.name in job.alive,
        "slots": [_slot(job.roles[Slot(node.name, index)]) for index in range(node.slots)],
    }


def _slot(role: Role) -> dict[str, Any]:
    return {"role": role.kind, "rank": role.rank, "reason": role.reason}


def _generation(plan: Plan) -> dict[str, Any]:
    return {
        "generation": plan.generation,
        "causes": [str(event) for event in plan.events],
        "decisions": list(plan.decisions),
        "reasons": list(plan.reasons),
    }

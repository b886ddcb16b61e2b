"""Why a policy's decision cannot be carried out. Nothing about it is taken for granted: users write policies."""

from __future__ import annotations

from math import isfinite

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.decisions import Grow, MoveGroup, Restart, Shrink, Stop, Swap, Wait
from tlaunch.launcher.core.draft import Draft
from tlaunch.launcher.core.policy import Failure, Room
from tlaunch.topology.model import REACH, Slot, distance


def refusal(decision: object, failure: Failure, draft: Draft) -> str | None:
    """Return what is wrong with a decision about ``failure``, ``None`` when it can be carried out."""
    match decision:
        case Restart() | Swap() | MoveGroup() | Shrink():
            return _change(decision, failure, draft)
        case Wait():
            return _wait(decision, draft.cluster)
        case Stop():
            return _stop(decision)
        case _:
            return "expected a decision"


def cannot_grow(answer: object, room: Room) -> str | None:
    """Return what is wrong with an answer about room to grow; ``None`` is a good answer too."""
    if answer is None:
        return None
    if not isinstance(answer, Grow):
        return "expected to grow, or None"
    if type(answer.replicas) is not int or not 1 <= answer.replicas <= room.replicas:
        return f"there is room for 1 to {room.replicas} replicas"
    return None


def _stop(decision: Stop) -> str | None:
    reason: object = decision.reason
    if not isinstance(reason, str) or not reason:
        return "a stop needs a reason"
    if type(decision.code) is not int or not 0 <= decision.code <= 255:
        return f"expected an exit code from 0 to 255, got {decision.code!r:.20}"
    return None


def _wait(decision: Wait, cluster: Cluster) -> str | None:
    limit = cluster.spec.start_timeout
    seconds: object = decision.seconds
    if not isinstance(seconds, int | float) or not isfinite(seconds) or not 0 < seconds <= limit:
        return f"expected to wait more than 0 and at most {limit:g} seconds"
    if cluster.waiting_since is not None and cluster.now >= cluster.waiting_since + seconds:
        return f"{seconds:g} seconds have been waited"
    return None


def _change(decision: Restart | Swap | MoveGroup | Shrink, failure: Failure, draft: Draft) -> str | None:
    limit = draft.cluster.spec.max_restarts
    if failure.counted and draft.plan.restarts >= limit:
        return f"--max-restarts {limit} reached"
    if isinstance(decision, Shrink):
        return _shrink(decision, failure, draft)
    if type(decision.rank) is not int or decision.rank != failure.rank:
        return f"the failure is that of rank {failure.rank}"
    if isinstance(decision, Swap):
        return _swap(decision, failure, draft.cluster)
    if isinstance(decision, MoveGroup):
        return (
            None if failure.group_move is not None else "no other NVLink domain in the scope is offered for its group"
        )
    return None if failure.kind == "crash" else f"{failure.slot} cannot be used: {failure.reason}"


def _swap(decision: Swap, failure: Failure, cluster: Cluster) -> str | None:
    to: object = decision.to
    machine, scope = cluster.machine, cluster.spec.swap_scope
    if not isinstance(to, Slot) or to not in machine.position:
        return "the machine has no such slot"
    if cluster.plan is not None and to in cluster.plan.by_slot:
        return f"{to} has rank {cluster.plan.by_slot[to].rank}"
    if to not in cluster.usable:
        return f"{to} cannot be used: {cluster.why_unusable(to)}"
    if distance(machine.node_of(failure.slot), machine.node_of(to)) > REACH[scope]:
        return f"{to} is outside --swap-scope {scope} of {failure.slot}"
    return None


def _shrink(decision: Shrink, failure: Failure, draft: Draft) -> str | None:
    fewest = draft.cluster.spec.min_world
    if type(decision.replicas) is not int or decision.replicas < 1:
        return "expected to shrink by 1 replica or more"
    shrunk = draft.shrunk([failure.rank], decision.replicas)
    if shrunk is None:
        return f"{draft.plan.mesh} has no {decision.replicas} replicas to spare"
    return None if shrunk.mesh.size >= fewest else f"{shrunk.mesh.size} ranks would be left, --min-world is {fewest}"

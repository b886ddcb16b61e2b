"""The first plan of a job."""

from __future__ import annotations

from collections.abc import Sequence

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.codec import MAX_BYTES, CodecError, encode
from tlaunch.launcher.core.events import Event, NodesReady, StartOverdue
from tlaunch.launcher.core.generations import ending, following
from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.core.stored import stored
from tlaunch.topology.explain import count
from tlaunch.topology.model import TopologyError
from tlaunch.topology.placement import place

BAD_INPUT = 2
"""The exit code for a job that cannot be run as it was asked for."""

FIRST_PLAN_BYTES = MAX_BYTES * 3 // 4
"""The largest first plan. Those after it tell of failures besides, and have to fit into one document as well."""


def first_plan(cluster: Cluster, events: Sequence[Event]) -> Plan | None:
    """Return the plan that starts the job, one that ends it because it cannot start, or ``None`` to wait on.

    When slots are bad the job starts with fewer spares than it asked for. When not even the ranks have a healthy slot
    each, more nodes may still register, until the start is overdue.
    """
    spec = cluster.spec
    ready = any(isinstance(event, NodesReady) for event in events)
    slots = sum(node.slots for node in cluster.machine if node.name in cluster.alive)
    healthy = len(cluster.usable)
    if ready and slots < spec.world_size + spec.spares:
        wanted = f"{count(spec.world_size, 'rank')} and {count(spec.spares, 'spare')}"
        have = f"{count(len(cluster.alive), 'node')} with {count(slots, 'slot')}"
        return ending(cluster, events, Result(BAD_INPUT, f"the job asks for {wanted}, but there are only {have}"))
    if ready and healthy >= spec.world_size:
        try:
            plan = _placed(cluster, events)
        except TopologyError as error:
            return ending(cluster, events, Result(BAD_INPUT, f"--strict: {error}"))
        return plan if _fits(plan) else ending(cluster, events, Result(BAD_INPUT, _too_large(plan)))
    if any(isinstance(event, StartOverdue) for event in events):
        return ending(cluster, events, Result(1, _why_not(cluster, healthy)))
    return None


def _placed(cluster: Cluster, events: Sequence[Event]) -> Plan:
    spec = cluster.spec
    spares = min(spec.spares, len(cluster.usable) - spec.world_size)
    too_few = f"{spares} of {count(spec.spares, 'spare')}: the other slots are bad"
    if spares < spec.spares and spec.strict:
        raise TopologyError(too_few)
    placement = place(cluster.machine, spec.mesh, spec.spread or spares, usable=cluster.usable, strict=spec.strict)
    reasons = list(placement.reasons)
    if spares < spec.spares:
        reasons.append(too_few)
    nodes = len({slot.node for slot in placement.seats.values()})
    return following(
        None,
        spec.mesh,
        placement.seats,
        bad=cluster.bad,
        restarts=0,
        events=events,
        decisions=[f"start {count(spec.world_size, 'rank')} ({spec.mesh}) on {count(nodes, 'node')}"],
        reasons=reasons,
    )


def _fits(plan: Plan) -> bool:
    try:
        return len(encode(stored(plan, None))) <= FIRST_PLAN_BYTES
    except CodecError:
        return False


def _too_large(plan: Plan) -> str:
    return f"the job has {plan.world_size} ranks: their plan would take more than {FIRST_PLAN_BYTES} bytes"


def _why_not(cluster: Cluster, healthy: int) -> str:
    spec = cluster.spec
    registered = f"{len(cluster.alive)} of {count(spec.nodes, 'node')} registered within {spec.start_timeout:g} s"
    if len(cluster.alive) < spec.nodes:
        return registered
    return f"{registered}, but they have only {count(healthy, 'healthy slot')}: {spec.world_size} ranks need one each"

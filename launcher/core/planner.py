"""From what has happened to the next plan. Pure: the same cluster, events and policy always give the same plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlaunch.launcher.core.blame import judge
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.decisions import Decision, Grow, MoveGroup, Restart, Shrink, Stop, Swap, Wait
from tlaunch.launcher.core.draft import Draft
from tlaunch.launcher.core.events import (
    AckOverdue,
    AllFinished,
    Event,
    NodeLost,
    RankFailed,
    StopRequested,
    hardware_failed,
    named,
    one_line,
)
from tlaunch.launcher.core.generations import ending, following
from tlaunch.launcher.core.invariants import check
from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.core.policy import Failure, Policy, Room
from tlaunch.launcher.core.refusal import cannot_grow, refusal
from tlaunch.launcher.core.start import first_plan
from tlaunch.topology.model import Slot

LADDER = Policy()
"""Takes over where a policy's decision is refused."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``plan``: the next one; ``None`` when nothing is to change, and then ``reasons`` may say why not.

    ``look_again``: the policy waits. Ask again at this time (on the clock of ``cluster.now``) or when anything changes,
    with ``cluster.waiting_since`` saying since when it has been waiting.
    """

    plan: Plan | None = None
    look_again: float | None = None
    reasons: tuple[str, ...] = ()


def decide(cluster: Cluster, events: Sequence[Event], policy: Policy) -> Outcome:
    """Return what to do about events, in the order in which :func:`~tlaunch.launcher.core.detect.detect` gives them.

    Raises:
        InvariantBroken: the plan would be wrong; a fault of this program, and nothing is to change.
    """
    plan = cluster.plan
    if not events or (plan is not None and plan.result is not None):
        return Outcome()
    result = _result(events)
    if result is not None:
        outcome = Outcome(ending(cluster, events, result))
    elif plan is None:
        outcome = Outcome(first_plan(cluster, events))
    else:
        outcome = _recover(cluster, events, policy)
    if outcome.plan is not None:
        check(cluster, outcome.plan)
    return outcome


def _result(events: Sequence[Event]) -> Result | None:
    """Return how the job ends, if it ends whatever else has happened."""
    for event in events:
        if isinstance(event, AllFinished):
            return Result(0, str(event))
        if isinstance(event, StopRequested):
            return Result(event.code, event.reason)
    return None


def _recover(cluster: Cluster, events: Sequence[Event], policy: Policy) -> Outcome:
    hardware = hardware_failed(events)
    crashes = [event for event in events if isinstance(event, RankFailed)]
    draft = Draft(cluster)
    draft.condemn(_bad(cluster, events))
    if not hardware and not crashes:
        return _drain(draft, events, cluster, policy)

    # When hardware fails, processes on healthy slots fail with it: their peers are gone. That is not their fault.
    crash = None if hardware or not crashes else crashes[0]
    _tell_consequences(draft, crashes, crash)
    blame = None if crash is None else judge(draft.cluster, crash)
    if crash is not None and blame is not None:
        draft.charge(blame, crash.slot)
    stays = None if blame is None or blame.bad is not None else crash
    failures = tuple(_failures(draft.cluster, events, stays, 1 if blame is None else blame.tries))
    counted = any(failure.counted for failure in failures)
    traceback = None if crash is None else crash.exit.traceback
    for index, failure in enumerate(failures):
        decision = _settle(draft, failure, failures[index + 1 :], policy)
        if isinstance(decision, Wait):
            first = cluster.now if cluster.waiting_since is None else cluster.waiting_since
            return Outcome(None, first + decision.seconds, (*draft.reasons, str(decision)))
        if isinstance(decision, Stop):
            return _stop(draft, events, Result(decision.code, decision.reason, traceback))
    if draft.given_up:
        left = draft.shrink()
        if draft.given_up:
            limit = cluster.spec.min_world
            why = f"{left} ranks are left, --min-world is {limit}: {failures[0]}"
            return _stop(draft, events, Result(1, why, traceback))
    draft.drain()
    _grow(draft, cluster, policy, restarting=True)
    return Outcome(_sealed(draft, events, restarts=draft.plan.restarts + counted))


def _drain(draft: Draft, events: Sequence[Event], cluster: Cluster, policy: Policy) -> Outcome:
    """Move ranks off slots that work, and take back lost replicas, if that can be done without harm."""
    if draft.cluster.displaced:
        # They have finished, or they would be failures. Nobody else may be started again just for a drain.
        return Outcome(reasons=("drain refused: ranks have finished whose slots are gone",))
    draft.drain()
    _grow(draft, cluster, policy, restarting=bool(draft.decisions))
    if not draft.decisions:
        return Outcome(reasons=tuple(draft.reasons))
    return Outcome(_sealed(draft, events, restarts=draft.plan.restarts))


def _sealed(draft: Draft, events: Sequence[Event], restarts: int) -> Plan:
    before = draft.plan
    return following(
        before,
        before.mesh,
        {seat.rank: seat.slot for seat in before.seats},
        bad=dict(before.bad),
        restarts=restarts,
        faults=before.faults,
        events=events,
        decisions=(*draft.settled.values(), *draft.decisions),
        reasons=draft.reasons,
    )


def _stop(draft: Draft, events: Sequence[Event], result: Result) -> Outcome:
    return Outcome(ending(draft.cluster, events, result, draft.reasons))


def _bad(cluster: Cluster, events: Sequence[Event]) -> dict[Slot, str]:
    """Return the slots that are used no more: broken ones, and those of nodes that do not do as they are told."""
    bad = {slot: reason for slot, reason in cluster.bad.items() if slot not in cluster.drained}
    overdue = {event.node for event in events if isinstance(event, AckOverdue)}
    return bad | {slot: _overdue(cluster) for slot in cluster.machine.slots if slot.node in overdue}


def _overdue(cluster: Cluster) -> str:
    generation = 0 if cluster.plan is None else cluster.plan.generation
    return f"its agent has not applied generation {generation} within {cluster.spec.ack_timeout:g} s"


def _failures(cluster: Cluster, events: Sequence[Event], crash: RankFailed | None, tries: int) -> Iterator[Failure]:
    """Yield what a policy has to decide about, first causes first."""
    assert cluster.plan is not None
    if crash is not None:
        yield Failure("crash", crash.rank, crash.slot, str(crash.exit), crash.exit, tries=tries)
    slots = {rank: cluster.plan.seats[rank].slot for rank in cluster.displaced}
    nodes = [event for event in events if isinstance(event, NodeLost | AckOverdue)]
    for event in nodes:
        reason = event.reason if isinstance(event, NodeLost) else _overdue(cluster)
        for rank in event.ranks:
            if rank in slots:
                yield Failure("node", rank, slots.pop(rank), reason)
    # On broken slots; or finished before their slot was gone, and now they must run again, as everybody must.
    for rank, slot in slots.items():
        lost = slot.node not in cluster.alive
        yield Failure("node" if lost else "slot", rank, slot, cluster.why_unusable(slot))


def _settle(draft: Draft, failure: Failure, pending: Sequence[Failure], policy: Policy) -> Stop | Wait | None:
    """Decide about one failure. Returns a decision that holds for the whole job, if it is one."""
    if failure.rank in draft.moved:
        return None  # with its group
    failure = draft.advised(failure, [each for each in pending if each.rank not in draft.moved])
    decision = _ask(draft, failure, policy)
    offer = f"offered, but not taken: {failure.group_move}"
    if failure.group_move is not None and not isinstance(decision, MoveGroup) and offer not in draft.reasons:
        draft.reasons.append(offer)
    match decision:
        case MoveGroup() if failure.group_move is not None:
            draft.move_group(failure.rank, failure.group_move)
        case Restart():
            draft.restart(failure.rank, draft.plan.restarts + 1 if failure.counted else None)
        case Swap(to=to):
            draft.swap(failure.rank, to)
        case Shrink(replicas=replicas):
            draft.give_up(failure.rank, replicas)
        case Wait() | Stop():
            return decision
    return None


def _ask(draft: Draft, failure: Failure, policy: Policy) -> Decision:
    """Ask the policy; when what it says cannot be done, the ladder."""
    if type(policy) is Policy:
        return policy.on_failure(failure, draft.cluster)
    name = type(policy).__name__
    try:
        decision = policy.on_failure(failure, draft.cluster)
        wrong = refusal(decision, failure, draft)
        if wrong is not None:
            draft.reasons.append(f"policy {name}: {_said(decision)} is refused: {wrong}; the ladder decides")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - users write policies; a wrong one must not end a job
        draft.reasons.append(f"policy {name} raised {type(error).__name__}: {one_line(str(error))}; the ladder decides")
    else:
        if wrong is None:
            return decision
    return LADDER.on_failure(failure, draft.cluster)


def _grow(draft: Draft, before: Cluster, policy: Policy, *, restarting: bool) -> None:
    """Ask the policy whether the job grows, unless it is just shrinking."""
    assert before.plan is not None
    number = draft.cluster.room
    if not number or draft.plan.mesh != before.plan.mesh:
        return
    room, name = Room(number, restarting), type(policy).__name__
    answer: object = LADDER.on_room(room, draft.cluster)
    if type(policy) is not Policy:
        try:
            said: object = policy.on_room(room, draft.cluster)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            why = one_line(str(error))
            draft.reasons.append(f"policy {name} raised {type(error).__name__}: {why}; the ladder decides")
        else:
            wrong = cannot_grow(said, room)
            if wrong is None:
                answer = said
            else:
                draft.reasons.append(f"policy {name}: {_said(said)} is refused: {wrong}; the ladder decides")
    if isinstance(answer, Grow):
        draft.grow(answer.replicas)


def _said(decision: object) -> str:
    """Return what a policy said, which may be anything."""
    known = isinstance(decision, Restart | Swap | MoveGroup | Shrink | Grow | Wait | Stop)
    return one_line(str(decision), 100) if known else type(decision).__name__


def _tell_consequences(draft: Draft, crashes: Sequence[RankFailed], crash: RankFailed | None) -> None:
    others = [event.rank for event in crashes if event is not crash]
    done = [rank for rank, ended in draft.cluster.exits.items() if ended.ok]
    if done and crash is not None and crash.exit.lost_peer:
        draft.reasons.append(f"{named(done)} had ended with exit code 0 while others went on")
    if others:
        cause = "the hardware" if crash is None else f"rank {crash.rank}"
        draft.reasons.append(f"{named(others)} failed as a consequence of {cause}; that is not counted")

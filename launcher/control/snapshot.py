"""From what stands in the store to the core's immutable snapshot. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar, cast, overload

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Ack, Drain, Registration, Report, Stop
from tlaunch.launcher.core.assign import Assignment
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.codec import CodecError, decode
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.hang import Hung, hanging
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.core.stored import KEPT_PLANS, StoredPlan, restored
from tlaunch.launcher.store.protocol import KeyValue
from tlaunch.topology.model import Machine, Node, Slot

log = logging.getLogger(__name__)

T = TypeVar("T")

ESSENTIAL = (JobSpec, StoredPlan)
"""What no job can go on without. Anything else that does not fit its class counts as absent: what one node or operator
has written must not end one controller after the other."""


class _Plans(Sequence[Plan]):
    """Plans as they stand in the store, and whole as far as anybody has looked at them."""

    def __init__(self, stored: tuple[StoredPlan, ...], bases: Mapping[int, StoredPlan]) -> None:
        self.stored = stored
        self._bases = bases
        self._whole: dict[int, Plan] = {}

    @overload
    def __getitem__(self, index: int) -> Plan: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Plan]: ...

    def __getitem__(self, index: int | slice) -> Plan | Sequence[Plan]:
        if isinstance(index, slice):
            return _Plans(self.stored[index], self._bases)
        found = self.stored[index]
        number, base = found.plan.generation, self.base(index)
        if number not in self._whole:
            self._whole[number] = restored(found, base)
        return self._whole[number]

    def __len__(self) -> int:
        return len(self.stored)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as with lists

    def followed_by(self, stored: tuple[StoredPlan, ...], bases: Mapping[int, StoredPlan]) -> _Plans:
        """Return others, of which the last one may have the same base as ours."""
        plans = _Plans(stored, bases)
        base = stored[-1].base if stored else 0
        if base in self._whole and self._bases.get(base) == bases.get(base):
            plans._whole[base] = self._whole[base]
        return plans

    def base(self, index: int) -> Plan | None:
        """Return the base of a plan; ``None`` when it does not stand in the store."""
        found = self._bases.get(self.stored[index].base)
        if found is None:
            return None
        number = found.plan.generation
        if number not in self._whole:
            self._whole[number] = restored(found, None)
        return self._whole[number]


@dataclass(slots=True)
class View:
    """Reads a mirror of the job's keys. Each value is decoded once, however often it is looked at.

    What does not fit its class is logged once and skipped, except for ``ESSENTIAL`` classes: there it is a
    ``CodecError``.
    """

    keys: Keys
    items: Mapping[str, KeyValue]
    _decoded: dict[str, tuple[int, object]] = field(default_factory=dict)
    _plans: _Plans = field(default_factory=lambda: _Plans((), {}))
    _machine: Machine = field(default_factory=lambda: Machine(()))

    def one(self, cls: type[T], key: str) -> T | None:
        """Return what stands under ``key``."""
        kv = self.items.get(key)
        return None if kv is None else self._decode(cls, kv)

    def below(self, cls: type[T], prefix: str) -> Iterator[tuple[str, T]]:
        """Yield (rest of the key, value) of all keys below ``prefix``."""
        for key, kv in self.items.items():
            if key.startswith(prefix) and (value := self._decode(cls, kv)) is not None:
                yield key.removeprefix(prefix), value

    def plans(self) -> Sequence[Plan]:
        """Return the latest plans, oldest first; the last one is current.

        Each is put together when it is looked at for the first time, which may raise ``NoBase``: in a large job a plan
        has many seats, and what came before the current one concerns only a user's policy.
        """
        found = {plan.plan.generation: plan for _, plan in self.below(StoredPlan, self.keys.plans)}
        latest = tuple(found[number] for number in sorted(found)[-KEPT_PLANS:])
        if latest != self._plans.stored:
            self._plans = self._plans.followed_by(latest, found)
        return self._plans

    def base(self) -> Plan | None:
        """Return the base of the current plan."""
        plans = self.plans()
        return self._plans.base(len(plans) - 1) if plans else None

    def machine(self, nodes: tuple[Node, ...]) -> Machine:
        """Return the machine of these nodes, the same one as before when they are the same."""
        if nodes != self._machine.nodes:
            self._machine = Machine(nodes)
        return self._machine

    def bases(self) -> Mapping[int, int]:
        """Return the base of every stored plan."""
        return {plan.plan.generation: plan.base for _, plan in self.below(StoredPlan, self.keys.plans)}

    def head(self) -> Plan | None:
        """Return the current plan."""
        plans = self.plans()
        return plans[-1] if plans else None

    def _decode(self, cls: type[T], kv: KeyValue) -> T | None:
        known = self._decoded.get(kv.key)
        if known is None or known[0] != kv.mod_revision:
            known = self._decoded[kv.key] = (kv.mod_revision, self._fitting(cls, kv))
        return cast("T | None", known[1])

    def _fitting(self, cls: type[T], kv: KeyValue) -> T | None:
        try:
            return decode(cls, kv.value, kv.key)
        except CodecError as error:
            if cls in ESSENTIAL:
                raise
            log.warning("%s; it is ignored", error)
            return None


@dataclass(frozen=True, slots=True)
class Moment:
    """What the controller knows that does not stand in the store: its own clock.

    ``settled``: contact with the store has been unbroken for a whole lease, so that a missing registration means a
    lost node. ``clocks``: what to add to a node's monotonic time to have the controller's.
    """

    now: float
    planned_at: float
    started_at: float
    settled: bool
    waiting_since: float | None = None
    clocks: Mapping[str, float] = field(default_factory=dict)


def snapshot(view: View, spec: JobSpec, moment: Moment, gone: frozenset[str]) -> Cluster:
    """Build the snapshot. ``gone``: nodes that are certainly lost whatever the lease says."""
    history = view.plans()
    plan = history[-1] if history else None
    records = view.below(Registration, view.keys.agents)
    registered = {name: record.node for name, record in records if name == record.node.name}
    seated = frozenset(plan.nodes) if plan else frozenset[str]()
    lost = ((name, view.one(Node, view.keys.node(name))) for name in seated - registered.keys())
    known = {name: node for name, node in lost if node is not None and name == node.name}
    nodes = {**_undescribed(plan), **known, **registered}
    alive = frozenset(registered) | (frozenset() if moment.settled else seated)
    machine = view.machine(tuple(sorted(nodes.values(), key=_physical_order)))
    bad, drained = _bad(view, machine), _drained(view, machine)
    stop = view.one(Stop, view.keys.stop)
    return Cluster(
        spec=spec,
        machine=machine,
        alive=alive - gone,
        plan=plan,
        bad={**drained, **bad},
        drained=frozenset(drained.keys() - bad.keys()),
        exits=_exits(view, plan, moment.clocks, spec.hang_timeout),
        clocks=moment.clocks,
        acked=_acked(view, plan),
        stop=None if stop is None else (stop.reason, stop.code),
        now=moment.now,
        planned_at=moment.planned_at,
        started_at=moment.started_at,
        waiting_since=moment.waiting_since,
        history=history[:-1],
    )


def _undescribed(plan: Plan | None) -> Mapping[str, Node]:
    """Return the nodes of the plan with nothing but their slots: all that is known when a node's own record is gone."""
    slots: dict[str, int] = {}
    for seat in plan.seats if plan else ():
        slots[seat.slot.node] = max(slots.get(seat.slot.node, 0), seat.slot.index + 1)
    return {name: Node(name, count) for name, count in slots.items()}


def _physical_order(node: Node) -> tuple[Any, ...]:
    """Pod, rack, domain, name; numbers inside names count as numbers, and an absent level comes first."""
    return tuple(_natural(part) for part in (node.pod, node.rack, node.domain, node.name))


@lru_cache(maxsize=65536)
def _natural(name: str | None) -> tuple[tuple[int, int, str], ...]:
    parts = re.findall(r"\d+|\D+", name or "")
    return tuple((0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts)


def _bad(view: View, machine: Machine) -> Mapping[Slot, str]:
    reports = view.below(Report, view.keys.reports)
    bad = {Slot(name, index): reason for name, report in reports for index, reason in report.bad.items()}
    return {slot: reason for slot, reason in bad.items() if slot in machine.position}


def _drained(view: View, machine: Machine) -> Mapping[Slot, str]:
    drains = {drain.target: drain.reason for _, drain in view.below(Drain, view.keys.drain(""))}
    targets = {slot: drains.get(str(slot), drains.get(slot.node)) for slot in machine.slots} if drains else {}
    return {slot: reason for slot, reason in targets.items() if reason is not None}


def _exits(view: View, plan: Plan | None, clocks: Mapping[str, float], hang_timeout: float) -> Mapping[int, Exit]:
    """How ranks of the current generation ended, and where all that are left hang, what stands for the end of one.

    A report counts only from the node on which the plan has the rank.
    """
    exits: dict[int, Exit] = {}
    stuck: dict[int, Hung] = {}
    if plan is None:
        return exits
    for name, report in view.below(Report, view.keys.reports):
        if report.generation != plan.generation:
            continue
        ranks = (rank for rank in (*report.exits, *report.hung) if 0 <= rank < plan.world_size)
        seated = {rank for rank in ranks if plan.seats[rank].slot.node == name}
        exits.update({rank: report.exits[rank] for rank in seated & report.exits.keys()})
        stuck.update({rank: report.hung[rank] for rank in seated & report.hung.keys()})
    return {**exits, **hanging(plan, exits, stuck, clocks, hang_timeout)}


def _acked(view: View, plan: Plan | None) -> frozenset[str]:
    """Return the nodes that have applied the plan, as far as they say so.

    A node for which nothing changed needs not; that of rank 0 says so by opening the rendezvous. What else goes wrong
    when ranks are started again is in the node's report.
    """
    if plan is None:
        return frozenset()
    unchanged = {
        name for name, given in view.below(Assignment, view.keys.assigns) if given.generation < plan.generation
    }
    acked = {name for name, ack in view.below(Ack, view.keys.acks) if ack.generation >= plan.generation}
    closed = bool(plan.seats) and plan.seats[0].since == plan.generation
    if closed and view.keys.rendezvous(plan.generation) not in view.items:
        return frozenset(unchanged | acked) - {plan.seats[0].slot.node}
    return frozenset(unchanged | acked)

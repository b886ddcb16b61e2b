"""The controller, a level-triggered loop around the pure core: load, decide, commit, and wait for a change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tlaunch.launcher.control.commit import Committed, Ledger
from tlaunch.launcher.control.deciding import Decider
from tlaunch.launcher.control.probe import Answer, Verdict, probe_all
from tlaunch.launcher.control.records import Registration
from tlaunch.launcher.control.snapshot import Moment, View, snapshot
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.assign import Assignment, assignments, generation_head
from tlaunch.launcher.core.blame import weighty
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.codec import CodecError
from tlaunch.launcher.core.detect import detect, next_deadline
from tlaunch.launcher.core.events import (
    AckOverdue,
    AllFinished,
    Event,
    NodeLost,
    RankFailed,
    SlotFailed,
    StopRequested,
    hardware_failed,
)
from tlaunch.launcher.core.generations import unwritable
from tlaunch.launcher.core.invariants import InvariantBroken
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.core.planner import Outcome
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.core.stored import outdated, stored
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import BadRequest, Compare, Delete, StoreFull, StoreUnknown
from tlaunch.topology.model import Node

log = logging.getLogger(__name__)

LONGEST_PAUSE = 0.1
"""Seconds between news and a look at them, at most; usually a few milliseconds, or none."""

TOLD = 8
"""How many events are logged: the first few say it all when hundreds of ranks fail at once."""


@dataclass
class Controller:
    """One term in office. ``contact_since`` says since when the agent has been in unbroken contact with the store."""

    ledger: Ledger
    spec: JobSpec
    policy: Policy
    timing: Timing
    contact_since: Callable[[], float | None]
    _started_at: float = field(default_factory=time.monotonic)
    _planned: tuple[int, float] = (0, 0.0)
    _struck: dict[str, int] = field(default_factory=dict)
    _clocks: dict[str, float] = field(default_factory=dict)
    _suspected_at: float | None = None
    _crashed_at: float | None = None
    _waiting_since: float | None = None
    _said: tuple[str, ...] = ()
    _full: bool = False
    _decider: Decider = field(init=False)

    def __post_init__(self) -> None:
        self._decider = Decider(self.policy, self.timing.policy)

    async def run(self) -> None:
        """Lead until deposed (a commit loses its comparison) or the job has a result."""
        async with Mirror(self.ledger.store, self.ledger.keys.root) as mirror:
            view = View(self.ledger.keys, mirror.items)
            # That a node has applied the plan matters only when the time to do so is over, which is looked at then.
            reader = mirror.reader(unless=(self.ledger.keys.acks,))
            while True:
                looked = time.monotonic()
                if self._too_early(view):
                    cost = time.monotonic() - looked
                    await reader.changed(self._started_at + self.spec.start_timeout - time.monotonic())
                    await asyncio.sleep(min(cost, LONGEST_PAUSE))
                    continue
                cluster = self._snapshot(view)
                if cluster.plan is not None and cluster.plan.result is not None:
                    return
                plan, wait = await self._decide(view, cluster)
                if plan is not None:
                    committed = await self._commit(view, plan, cluster)
                    if committed is Committed.LOST:
                        return
                    if committed is Committed.FULL:
                        await asyncio.sleep(self.timing.retry)  # then with what has happened meanwhile
                        continue
                    # Deciding again on a copy from before our own commit would only lose the comparison.
                    await self._catch_up(mirror, plan.generation)
                    continue
                cost = time.monotonic() - looked
                await reader.changed(wait)
                # In a large job a look takes a while, and news come one by one: let some more come in as long a time.
                await asyncio.sleep(min(cost, LONGEST_PAUSE))

    def _too_early(self, view: View) -> bool:
        """Whether nodes are missing, and there is time for them to register: then nothing else can be done."""
        keys, items = self.ledger.keys, view.items
        if (
            time.monotonic() >= self._started_at + self.spec.start_timeout
            or keys.generation in items
            or keys.stop in items
        ):
            return False
        return sum(key.startswith(keys.agents) for key in items) < self.spec.nodes

    def _snapshot(self, view: View) -> Cluster:
        now = time.monotonic()
        plan = view.head()
        if plan is not None and plan.generation != self._planned[0]:
            self._planned = (plan.generation, now)
            self._waiting_since = None
        settled = now >= self._settled_at(now)
        moment = Moment(now, self._planned[1], self._started_at, settled, self._waiting_since, dict(self._clocks))
        return snapshot(view, self.spec, moment, self._gone(view))

    def _settled_at(self, now: float) -> float:
        """Return when contact with the store will have been unbroken for a whole lease, if it stays so."""
        since = self.contact_since()
        return (now if since is None else since) + self.timing.lease

    async def _decide(self, view: View, cluster: Cluster) -> tuple[Plan | None, float | None]:
        """Return the next plan, or how long to sleep at most."""
        events = detect(cluster)
        if any(isinstance(event, RankFailed) for event in events):
            # A rank may have failed because a peer's node is gone: find out before anything is decided.
            silent = await self._ask_around(view, cluster)
            cluster = self._snapshot(view)
            events = detect(cluster)
            if silent and self._patience(cluster):
                return None, self.timing.probe
        self._suspected_at = None
        wait = self._before_verdict(cluster, events)
        if wait > 0:
            return None, wait
        if self._must_settle(view, cluster, events):
            return None, self._sleep(cluster, None)
        try:
            outcome = await self._decider.decide(cluster, events)
        except InvariantBroken:
            # A bug of ours, caught before it did harm: the plan stays as it is until something else happens.
            log.exception("no plan was made of: %s", "; ".join(map(str, events[:TOLD])))
            outcome = Outcome()
        if outcome.plan is not None and await self._newcomer_gone(view, cluster, outcome.plan):
            return None, 0.0
        if outcome.look_again is None:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = cluster.now
        self._say(events, outcome)
        return outcome.plan, self._sleep(cluster, outcome.look_again)

    def _before_verdict(self, cluster: Cluster, events: tuple[Event, ...]) -> float:
        """Return how many seconds to wait before a crash is dealt with, so that the rank that failed first is blamed.

        The first to be heard of need not be the first that failed: a victim may end sooner than the cause. That matters
        where the job is about to end or a slot to be given up, and when all those heard of say that they are victims.
        """
        first = next((event for event in events if isinstance(event, RankFailed)), None)
        certain = first is not None and not first.exit.lost_peer and not weighty(cluster, events)
        if first is None or certain or hardware_failed(events):
            self._crashed_at = None
            return 0.0
        if self._crashed_at is None:
            self._crashed_at = cluster.now
        return self._crashed_at + self.timing.verdict - cluster.now

    def _must_settle(self, view: View, cluster: Cluster, events: tuple[Event, ...]) -> bool:
        """Whether to wait with broken hardware: after an outage, nodes of spares must have time to register again.

        A plan made without them would shrink or end a job that can go on as it is. That a job ends waits for nothing.
        """
        broken = any(isinstance(event, NodeLost | SlotFailed | AckOverdue) for event in events)
        ending = any(isinstance(event, AllFinished | StopRequested) for event in events)
        if ending or not broken or cluster.now >= self._settled_at(cluster.now):
            return False
        known = {name for name, _ in view.below(Node, self.ledger.keys.nodes)}
        return bool(known - cluster.alive - self._gone(view))

    def _say(self, events: tuple[Event, ...], outcome: Outcome) -> None:
        """Log what was decided and why, once: a decision to do nothing comes back at every look."""
        decisions = outcome.plan.decisions if outcome.plan else ()
        reasons = outcome.plan.reasons if outcome.plan else outcome.reasons
        events = outcome.plan.events if outcome.plan else events
        said = (*map(str, events[:TOLD]), *decisions, *reasons)
        if said != self._said and (outcome.plan is not None or outcome.reasons):
            for sentence in said:
                log.info("%s", sentence)
        self._said = said

    async def _ask_around(self, view: View, cluster: Cluster) -> frozenset[str]:
        """Probe the agents that run ranks. Strikes off those that are certainly gone, and returns the silent ones.

        Silent is also one that is not registered while contact is too young to tell whether it is lost: when a node has
        only just joined and leads, it has not seen the lease of a lost one run out.
        """
        seated = frozenset(cluster.plan.nodes if cluster.plan else ()) & cluster.alive
        asked = {name: record for name, record in view.below(Registration, self.ledger.keys.agents) if name in seated}
        answers = await self._ask(view, asked)
        self._clocks = {name: answer.clock for name, answer in answers.items() if answer.clock is not None}
        unheard = seated - asked.keys()
        return unheard | {name for name, answer in answers.items() if answer.verdict is Verdict.SILENT}

    async def _newcomer_gone(self, view: View, cluster: Cluster, plan: Plan) -> bool:
        """Whether a plan moves ranks to a node that is certainly gone: nobody has missed its spares so far."""
        if cluster.plan is None or plan.result is not None:
            return False
        newcomers = frozenset(plan.nodes) - frozenset(cluster.plan.nodes)
        registered = view.below(Registration, self.ledger.keys.agents)
        await self._ask(view, {name: record for name, record in registered if name in newcomers})
        return not newcomers.isdisjoint(self._gone(view))

    async def _ask(self, view: View, asked: Mapping[str, Registration]) -> Mapping[str, Answer]:
        """Probe agents, and strike off those that are certainly gone."""
        answers = await probe_all(asked.values(), self.timing.probe)
        for name, answer in answers.items():
            if answer.verdict is Verdict.GONE:
                log.warning("node %s does not answer: its agent is gone", name)
                await self._strike_off(view, name)
        return answers

    async def _strike_off(self, view: View, node: str) -> None:
        """Delete a registration, so that every later controller knows too.

        Should its agent live after all, it registers anew.
        """
        key = self.ledger.keys.agent(node)
        kv = view.items.get(key)
        if kv is not None:
            self._struck[node] = kv.mod_revision
            unchanged = [self.ledger.fence.compare(), Compare(key, mod_revision=kv.mod_revision)]
            await self.ledger.store.txn(unchanged, [Delete(key)])

    def _gone(self, view: View) -> frozenset[str]:
        """Return the nodes that were struck off and have not registered anew."""
        registered = {node: view.items.get(self.ledger.keys.agent(node)) for node in self._struck}
        return frozenset(node for node, kv in registered.items() if kv is None or kv.mod_revision <= self._struck[node])

    def _patience(self, cluster: Cluster) -> bool:
        """Whether to wait on for a silent agent: at most until its lease must have run out."""
        if self._suspected_at is None:
            self._suspected_at = cluster.now
        return cluster.now - self._suspected_at < self.timing.lease

    def _sleep(self, cluster: Cluster, look_again: float | None) -> float | None:
        """Return how many seconds to sleep if nothing happens."""
        deadlines = [deadline for deadline in (next_deadline(cluster), look_again) if deadline is not None]
        settled_at = self._settled_at(cluster.now)
        if cluster.now < settled_at:
            deadlines.append(settled_at)
        return max(0.0, min(deadlines) - cluster.now) if deadlines else None

    async def _commit(self, view: View, plan: Plan, cluster: Cluster) -> Committed:
        """Commit, and tell of anything that hinders it."""
        try:
            outcome = await self._write(view, plan, cluster)
        except (CodecError, BadRequest) as error:
            # Whoever leads next would make the same plan.
            log.error("generation %d cannot be written, which ends the job: %s", plan.generation, error)  # noqa: TRY400
            outcome = await self._write(view, unwritable(plan, str(error)), cluster)
        if outcome is Committed.LOST:
            log.info("generation %d: lost to another controller or to a newer state", plan.generation)
        self._full = outcome is Committed.FULL
        return outcome

    async def _write(self, view: View, plan: Plan, cluster: Cluster) -> Committed:
        previous = dict(view.below(Assignment, self.ledger.keys.assigns))
        wanted = {} if plan.result is not None else assignments(plan, cluster.machine, previous)
        changed = {node: given for node, given in wanted.items() if previous.get(node) != given}
        # One that was written before, for a plan that was never committed, is news to its agent all the same.
        told = {node for node, given in wanted.items() if given.generation == plan.generation}
        head = view.items.get(self.ledger.keys.generation)
        revision = 0 if head is None else head.mod_revision
        record = generation_head(plan, self.spec, told)
        try:
            old = outdated(view.bases(), plan.generation)
            return await self.ledger.commit(revision, stored(plan, view.base()), record, changed, old)
        except StoreUnknown as error:
            log.warning("generation %d: unknown whether it was committed (%s); reading again", plan.generation, error)
            return Committed.UNKNOWN
        except StoreFull as error:
            if not self._full:  # it is tried again many times in a minute
                log.error("generation %d waits until it can be written: %s", plan.generation, error)  # noqa: TRY400
            return Committed.FULL

    async def _catch_up(self, mirror: Mirror, generation: int) -> None:
        """Wait until the mirror shows our own commit; after an unknown outcome, give up once contact is proven anew."""
        start = time.monotonic()
        while self.ledger.keys.plan(generation) not in mirror.items:
            await mirror.changed(self.timing.request)
            if mirror.contact > start + self.timing.request and self.ledger.keys.plan(generation) not in mirror.items:
                return

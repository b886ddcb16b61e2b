"""A node's part in the job, whatever its slots run: keeps its place, follows the plan, reports, and may lead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.challenge import challenge
from tlaunch.launcher.control.commands import Target, obey
from tlaunch.launcher.control.commit import Ledger
from tlaunch.launcher.control.controller import Controller
from tlaunch.launcher.control.election import Fence, campaign
from tlaunch.launcher.control.insist import OwnKey, insist
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.meeting import find_meeting
from tlaunch.launcher.control.membership import JobGone, Membership
from tlaunch.launcher.control.outage import until_hopeless
from tlaunch.launcher.control.records import Ack, Registration, Rendezvous, Report
from tlaunch.launcher.control.reporting import Reporter, longest_wait
from tlaunch.launcher.control.spawn import SpawnError
from tlaunch.launcher.control.tasks import changed, interrupt, until_first
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Get, Store

log = logging.getLogger(__name__)


class NodeSlots(Target, Protocol):
    """What runs on the node. :class:`~tlaunch.launcher.control.slots.Slots` runs processes; a simulation need not."""

    @property
    def report(self) -> Report: ...
    @property
    def busy(self) -> bool:
        """Whether any rank runs here."""
        ...

    async def yield_stale(self, head: Generation, assignment: Assignment) -> None: ...
    def to_start(self, assignment: Assignment) -> tuple[AssignedSeat, ...]: ...
    async def start(self, head: Generation, assignment: Assignment, place: Rendezvous) -> None: ...
    async def warm(self, assignment: Assignment | None) -> None: ...
    def give_up(self, seats: Iterable[AssignedSeat], error: Exception) -> None: ...


class NodeVenue(Protocol):
    """Where the ranks of a generation meet when rank 0 is on this node; one place at a time."""

    async def open(self, generation: int, over: Callable[[], object]) -> Rendezvous:
        """Open the place. ``over`` is called should it end by itself. Raises ``SpawnError`` or ``OSError``."""
        ...

    @property
    def over(self) -> bool:
        """Whether the open place has ended by itself."""
        ...

    def close(self) -> None: ...


class Participant:
    """One node of one job. Whoever makes one calls ``report_due`` whenever the slots' report has changed."""

    def __init__(
        self,
        store: Store,
        registration: Registration,
        spec: JobSpec,
        policy: Policy,
        *,
        slots: NodeSlots,
        venue: NodeVenue,
        timing: Timing,
    ) -> None:
        self._store = store
        self._spec = spec
        self._policy = policy
        self._slots = slots
        self._venue = venue
        self._timing = timing
        self._name = registration.node.name
        # The controller waits for rank 0's node for the first part of it, so that nobody else blames himself before.
        self._patience = spec.ack_timeout + timing.lease
        keys = self._keys = Keys(spec.job_id)
        self._acked = 0
        self._failed = asyncio.Event()
        own = OwnKey(store, keys.report(self._name), timing.retry)
        self._reporter = Reporter(own, lambda: slots.report, longest_wait(spec.nodes, timing.lease))
        self._ack = OwnKey(store, keys.ack(self._name), timing.retry)
        self._membership = Membership(store, keys, registration, timing)
        self._mirror = Mirror(store, keys.head, gap=timing.gap)

    def report_due(self) -> None:
        """Have the slots' report written anew."""
        self._reporter.due()
        if self._unanswered():
            self._failed.set()

    def _unanswered(self) -> bool:
        """Whether ranks of ours have failed in the present generation."""
        return any(ended.code != 0 for ended in self._slots.report.exits.values())

    async def take_part(self, *beside: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Take part until the job has a result, and let other things of the node run beside it once it has joined."""
        membership = self._membership
        await self._reporter.begin(await membership.join(self._reporter.first()))
        if membership.head is not None:
            self._mirror.begin(*membership.head)
        async with self._mirror as head:
            await until_first(
                self._follow(head),
                membership.keep(self._shed),
                campaign(
                    *(self._store, self._keys, membership, self._timing, self._lead),
                    head=head,
                    nodes=self._spec.nodes,
                ),
                challenge(
                    *(self._store, self._keys, self._timing),
                    node=self._name,
                    head=head,
                    nodes=self._spec.nodes,
                    failed=self._failed,
                    unanswered=self._unanswered,
                ),
                obey(self._store, self._keys, self._name, self._slots, head=head, retry=self._timing.retry),
                self._reporter.run(),
                until_hopeless(head, lambda: self._slots.busy, self._timing.outage),
                *(start() for start in beside),
            )

    async def leave(self) -> None:
        """Leave the job."""
        await self._membership.leave()

    async def _lead(self, fence: Fence) -> None:
        log.info("node %s is the controller", self._name)
        controller = Controller(
            ledger=Ledger(self._store, self._keys, fence),
            spec=self._spec,
            policy=self._policy,
            timing=self._timing,
            contact_since=lambda: self._mirror.in_contact_since,
        )
        await controller.run()

    async def _follow(self, head: Mirror) -> None:
        """Apply one generation after the other; a newer one interrupts what is still being done for an older one."""
        applying: asyncio.Task[None] | None = None
        applied = 0
        held: Assignment | None = None
        # Until something is written there is nothing to follow; and each loss of contact is a reason to look again.
        looked = (0, head.in_contact_since)
        reader = head.reader(self._keys.generation)
        try:
            while True:
                kv = head.items.get(self._keys.generation)
                look = (kv.mod_revision if kv else 0, head.in_contact_since)
                if look != looked:
                    generation = None if kv is None else decode(Generation, kv.value, kv.key)
                    concerned = look[1] != looked[1] or held is None or _concerns(self._name, generation, applied)
                    looked = look
                    registered = True
                    if concerned:
                        generation, held, registered = await self._read()
                    if (generation.number if generation else 0) < applied:
                        raise JobGone(self._keys)
                    # Where many nodes change, assignments are written before the plan that they belong to is committed.
                    if generation and held and held.generation <= generation.number > applied:
                        await interrupt(applying)
                        if generation.result is not None:
                            return
                        applying = asyncio.create_task(self._apply(generation, held, anew=applied == 0))
                        applied = generation.number
                    if not registered:
                        # Struck off by a controller that could not reach us; once what it has given to others does not
                        # run here any more, we are a spare again.
                        await self._yield_stale(generation, held)
                        await insist(self._membership.renew, self._timing.retry)
                await changed(reader, applying)
        finally:
            await interrupt(applying)

    async def _shed(self) -> None:
        """End what runs here though the plan has given it to others: before the node may be given anything again."""
        generation, assignment, _ = await self._read()
        await self._yield_stale(generation, assignment)

    async def _yield_stale(self, generation: Generation | None, given: Assignment | None) -> None:
        if generation and given and given.generation <= generation.number:
            await self._slots.yield_stale(generation, given.under(generation))

    async def _read(self) -> tuple[Generation | None, Assignment | None, bool]:
        """Read the head of the plan, our own part of it, and whether we are registered, as of one revision.

        And how far an agent of this name has applied the plan: that is ours, or one that was here before us.
        """
        own = self._keys.agent(self._name)
        keys = (self._keys.generation, self._keys.assign(self._name), own, self._keys.ack(self._name))
        result = await insist(lambda: self._store.txn([], [Get(key) for key in keys]), self._timing.retry)
        heads, assigned, registered, acked = result.reads
        self._acked = decode(Ack, acked[0].value, keys[3]).generation if acked else 0
        head = decode(Generation, heads[0].value, keys[0]) if heads else None
        assignment = decode(Assignment, assigned[0].value, keys[1]) if assigned else None
        if head is not None and assignment is None:
            assignment = Assignment(head.number - 1, None, ())
        return head, assignment, bool(registered)

    async def _apply(self, head: Generation, given: Assignment, *, anew: bool) -> None:
        """Make what runs here equal to the assignment. ``anew``: it is the first that we see."""
        assignment = given.under(head)
        acks = given.generation == head.number
        try:
            async with asyncio.timeout(self._patience):
                await self._slots.yield_stale(head, assignment)
                self._venue.close()
                if anew and self._acked >= given.generation:  # an agent of this name has applied it before us
                    # Its ranks had begun. Their peers would not have them back in the same generation.
                    error = TlaunchError("the node's agent has been started again")
                    self._slots.give_up(self._slots.to_start(assignment), error)
                await self._start(head, assignment)
            if acks:
                await self._ack.put(encode(Ack(head.number)))
            await self._slots.warm(assignment)
        except (TlaunchError, TimeoutError) as error:
            log.exception("generation %d could not be applied", head.number)
            if not acks:
                # Else no ack goes out, and the controller's deadline for it is the next step.
                self._slots.give_up(assignment.seats, error)

    async def _start(self, head: Generation, assignment: Assignment) -> None:
        starting = self._slots.to_start(assignment)
        if any(seat.rank == 0 for seat in starting):
            try:
                place = await self._venue.open(head.number, lambda: self._slots.kill(0))
            except (SpawnError, OSError) as error:
                self._slots.give_up(starting, error)
                return
            key = self._keys.rendezvous(head.number)
            await insist(lambda: self._store.put(key, encode(place)), self._timing.retry)
        elif starting:
            # As long as the controller waits for rank 0's node; what it does then is a new generation.
            place = await find_meeting(self._mirror, self._keys, head.number, self._patience)
        else:
            return
        await self._slots.start(head, assignment, place)
        if self._venue.over:
            self._slots.kill(0)


def _concerns(node: str, head: Generation | None, applied: int) -> bool:
    """Whether a node that has applied generation ``applied`` must read its assignment anew."""
    if head is None or head.number != applied + 1:
        return True
    return head.result is None and (head.changed is None or node in head.changed)

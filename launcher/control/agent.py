"""The agent, one for each node: keeps the node's place in the job, runs its share of the plan, and reports."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import uuid
from pathlib import Path
from typing import NoReturn

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.commands import obey
from tlaunch.launcher.control.commit import Ledger
from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.control.controller import Controller
from tlaunch.launcher.control.election import Fence, campaign
from tlaunch.launcher.control.insist import OwnKey, insist
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.meeting import Meeting, find_meeting, open_meeting
from tlaunch.launcher.control.membership import Membership
from tlaunch.launcher.control.output import Output
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.program import Program
from tlaunch.launcher.control.records import Ack, Registration, Rendezvous
from tlaunch.launcher.control.slots import Slots
from tlaunch.launcher.control.spawn import SpawnError
from tlaunch.launcher.control.tasks import changed, interrupt, until_first
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.zygotes import ZygoteSource, base_environment
from tlaunch.launcher.core.assign import Assignment, Generation
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.endpoints import VARIABLES
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Get, Store
from tlaunch.topology.discover.nvml import gpu_count

log = logging.getLogger(__name__)

FINAL_OUTPUT = 2.0
"""Seconds to hand over what ranks have printed, when the job is over."""


class Agent:
    """One node of one job: ``take_part``, and however that ends, ``end``."""

    def __init__(self, config: AgentConfig, store: Store, spec: JobSpec, policy: Policy, output: Output) -> None:
        self._config = config
        self._store = store
        self._spec = spec
        self._policy = policy
        self._output = output
        self._timing = Timing()
        self._keys = Keys(config.job)
        env = self._env = _worker_base(config)
        log_file = config.log_dir / "agents" / f"{config.node.name}.zygote.log"
        self._zygotes = ZygoteSource(config.zygote, env, log_file, self._timing)
        self._report_due = asyncio.Event()
        self._report = OwnKey(store, self._keys.report(config.node.name), self._timing.retry)
        self._ack = OwnKey(store, self._keys.ack(config.node.name), self._timing.retry)
        program = Program(
            job=config.job,
            argv=config.argv,
            module=config.module,
            start=config.start,
            cwd=str(Path.cwd()),
            env=env,
            log_dir=config.log_dir,
            gpus=_has_gpus(),
        )
        self._slots = Slots(
            config.node, program, self._zygotes.get, output, timing=self._timing, changed=self._report_due.set
        )
        self._listener = Listener(uuid.uuid4().hex)
        self._membership: Membership | None = None
        self._meetings = Mirror(store, self._keys.meetings)
        self._meeting: Meeting | None = None

    async def take_part(self) -> None:
        """Take part until the job has a result.

        The node registers once its standbys are warm: what a plan asks of it is then a matter of moments.
        """
        address = await self._listener.open(self._config.host)
        registration = Registration(
            node=self._config.node,
            host=socket.gethostname(),
            pid=os.getpid(),
            incarnation=self._listener.incarnation,
            address=address,
        )
        await self._slots.warm(None)
        # What an agent of this name may have reported before us concerns nobody any more.
        await self._report.put(encode(self._slots.report))
        membership = self._membership = Membership(self._store, self._keys, registration, self._timing)
        await membership.join()
        async with (
            Mirror(self._store, self._keys.generation, gap=self._timing.gap) as head,
            self._meetings,
        ):
            await until_first(
                self._follow(head, membership),
                membership.keep(),
                campaign(self._store, self._keys, membership, self._timing, lambda fence: self._lead(fence, head)),
                obey(self._store, self._keys, self._config.node.name, self._slots, self._timing.retry),
                self._keep_reporting(),
                self._output.run(),
            )

    async def end(self) -> None:
        """End every process of this node, hand over what they have printed, and leave the job."""
        self._close_meeting()
        await self._slots.stop(self._timing.stop_grace)
        await self._output.drain(FINAL_OUTPUT)
        if self._membership is not None:
            await self._membership.leave()
        await self._zygotes.close()
        await self._listener.close()

    async def _lead(self, fence: Fence, head: Mirror) -> None:
        log.info("node %s is the controller", self._config.node.name)
        controller = Controller(
            ledger=Ledger(self._store, self._keys, fence),
            spec=self._spec,
            policy=self._policy,
            timing=self._timing,
            contact_since=lambda: head.in_contact_since,
        )
        await controller.run()

    async def _follow(self, head: Mirror, membership: Membership) -> None:
        """Apply one generation after the other; a newer one interrupts what is still being done for an older one."""
        applying: asyncio.Task[None] | None = None
        applied = 0
        try:
            while True:
                generation, assignment = await self._read(membership)
                # Where many nodes change, assignments are written before the plan that they belong to is committed.
                if generation and assignment and assignment.generation <= generation.number > applied:
                    await interrupt(applying)
                    if generation.result is not None:
                        return
                    applying = asyncio.create_task(self._apply(generation, assignment))
                    applied = generation.number
                await changed(head, applying)
        finally:
            await interrupt(applying)

    async def _read(self, membership: Membership) -> tuple[Generation | None, Assignment | None]:
        """Read the head of the plan and our own part of it, as of one revision."""
        own = self._keys.agent(self._config.node.name)
        keys = (self._keys.generation, self._keys.assign(self._config.node.name), own)
        result = await insist(lambda: self._store.txn([], [Get(key) for key in keys]), self._timing.retry)
        heads, assigned, registered = result.reads
        if not registered:
            # Struck off by a controller that could not reach us; if the plan has moved our ranks, we are a spare again.
            await insist(membership.renew, self._timing.retry)
        head = decode(Generation, heads[0].value, keys[0]) if heads else None
        assignment = decode(Assignment, assigned[0].value, keys[1]) if assigned else None
        if head is not None and assignment is None:
            assignment = Assignment(head.number - 1, None, ())
        return head, assignment

    async def _apply(self, head: Generation, assignment: Assignment) -> None:
        try:
            await self._slots.yield_stale(head, assignment)
            self._close_meeting()
            await self._start(head, assignment)
            if assignment.generation == head.number:
                await self._ack.put(encode(Ack(head.number)))
            await self._slots.warm(assignment)
        except TlaunchError:
            # No ack goes out, and the controller's deadline for it is the next step.
            log.exception("generation %d could not be applied", head.number)

    async def _start(self, head: Generation, assignment: Assignment) -> None:
        starting = self._slots.to_start(assignment)
        if any(seat.rank == 0 for seat in starting):
            try:
                place = await self._open_meeting(head)
            except (SpawnError, OSError) as error:
                self._slots.give_up(starting, error)
                return
        elif starting:
            # As long as the controller waits for rank 0's node; what it does then is a new generation.
            place = await find_meeting(self._meetings, self._keys, head.number, self._spec.ack_timeout)
        else:
            return
        await self._slots.start(head, assignment, place)
        if self._meeting is not None and self._meeting.process.ended.done():
            self._slots.kill(0)

    async def _open_meeting(self, head: Generation) -> Rendezvous:
        """Open and publish where the ranks of this generation meet."""
        log_file = self._config.log_dir / f"generation-{head.number}" / "rendezvous.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        zygote = await self._zygotes.get()
        self._meeting = await open_meeting(zygote, self._config.host, self._env, str(log_file))
        place = self._meeting.place
        self._meeting.process.ended.add_done_callback(lambda _: self._on_meeting_over(place))
        key = self._keys.rendezvous(head.number)
        await insist(lambda: self._store.put(key, encode(place)), self._timing.retry)
        return place

    def _on_meeting_over(self, place: Rendezvous) -> None:
        """Nobody can meet any more where the store process has died: then the rank beside it fails with it."""
        if self._meeting is not None and self._meeting.place == place:
            log.error("the rendezvous store at %s:%d has ended; its log is rendezvous.log", place.host, place.port)
            self._slots.kill(0)

    def _close_meeting(self) -> None:
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            meeting.process.kill(signal.SIGKILL)

    async def _keep_reporting(self) -> NoReturn:
        """Write our report anew whenever it has changed."""
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            await self._report.put(encode(self._slots.report))


def _worker_base(config: AgentConfig) -> dict[str, str]:
    """Return what workers inherit. How to get at the store is none of their business, a password least of all.

    With a shared zygote the launcher has prepared the environment, and the two have to agree.
    """
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return env if config.zygote else base_environment(env, config.node.slots)


def _has_gpus() -> bool:
    """Tell whether slots are GPUs here."""
    return bool(gpu_count())

"""The agent, one for each node: keeps the node's place in the job, runs its share of the plan, and reports."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.commands import obey
from tlaunch.launcher.control.commit import Ledger
from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.control.controller import Controller
from tlaunch.launcher.control.election import Fence, campaign
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.meeting import Meeting, find_meeting, open_meeting
from tlaunch.launcher.control.membership import Membership
from tlaunch.launcher.control.output import Output
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.records import Ack, Registration, Rendezvous
from tlaunch.launcher.control.slots import Program, Slots
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.zygotes import ZygoteSource, base_environment
from tlaunch.launcher.core.assign import Assignment, Generation
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.endpoints import VARIABLES
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Get, Store, StoreError, StoreRefused
from tlaunch.topology.discover.nvml import gpu_count

log = logging.getLogger(__name__)

T = TypeVar("T")

FINAL_OUTPUT = 2.0
"""Seconds to hand over what ranks have printed, when the job is over."""


class Agent:
    """One node of one job. ``run`` returns when the job has a result."""

    def __init__(self, config: AgentConfig, store: Store, spec: JobSpec, policy: Policy, output: Output) -> None:
        self._config = config
        self._store = store
        self._spec = spec
        self._policy = policy
        self._output = output
        self._timing = Timing()
        self._keys = Keys(config.job)
        env = _worker_base(config)
        log_file = config.log_dir / "agents" / f"{config.node.name}.zygote.log"
        self._zygotes = ZygoteSource(config.zygote, env, log_file, self._timing)
        self._report_due = asyncio.Event()
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
        self._meeting: Meeting | None = None

    async def run(self) -> None:
        """Take part until the job has a result, or until cancelled; then end every process of this node.

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
        membership = Membership(self._store, self._keys, registration, self._timing)
        try:
            await self._slots.warm(None)
            await membership.join()
            async with Mirror(self._store, self._keys.generation, gap=self._timing.lease) as head:
                await _until_first(
                    self._follow(head, membership),
                    membership.keep(),
                    campaign(self._store, self._keys, membership, self._timing, lambda fence: self._lead(fence, head)),
                    obey(self._store, self._keys, self._config.node.name, self._slots),
                    self._report(),
                    self._output.run(),
                )
        finally:
            await self._slots.stop(self._timing.stop_grace)
            await self._output.drain(FINAL_OUTPUT)
            await membership.leave()
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
                if generation is not None and assignment is not None and generation.number > applied:
                    await _interrupt(applying)
                    if generation.result is not None:
                        return
                    applying = asyncio.create_task(self._apply(generation, assignment))
                    applied = generation.number
                await _changed(head, applying)
        finally:
            await _interrupt(applying)

    async def _read(self, membership: Membership) -> tuple[Generation | None, Assignment | None]:
        """Read the head of the plan and our own part of it, as of one revision."""
        own = self._keys.agent(self._config.node.name)
        keys = (self._keys.generation, self._keys.assign(self._config.node.name), own)
        result = await self._insist(lambda: self._store.txn([], [Get(key) for key in keys]))
        heads, assigned, registered = result.reads
        if not registered:
            # Struck off by a controller that could not reach us; if the plan has moved our ranks, we are a spare again.
            await self._insist(membership.renew)
        head = decode(Generation, heads[0].value, keys[0]) if heads else None
        assignment = decode(Assignment, assigned[0].value, keys[1]) if assigned else None
        if head is not None and assignment is None:
            assignment = Assignment(head.number - 1, None, ())
        return head, assignment

    async def _apply(self, head: Generation, assignment: Assignment) -> None:
        try:
            await self._slots.yield_stale(head, assignment)
            self._close_meeting()
            starting = self._slots.to_start(assignment)
            if starting:
                place = await self._meet(head, hosting=any(seat.rank == 0 for seat in starting))
                await self._slots.start(head, assignment, place)
            if assignment.generation == head.number:
                ack = encode(Ack(head.number))
                await self._insist(lambda: self._store.put(self._keys.ack(self._config.node.name), ack))
            await self._slots.warm(assignment)
        except TlaunchError:
            # No ack goes out, and the controller's deadline for it is the next step.
            log.exception("generation %d could not be applied", head.number)

    async def _meet(self, head: Generation, *, hosting: bool) -> Rendezvous:
        """Return where the ranks of this generation meet; open it when rank 0 is ours."""
        if not hosting:
            # As long as the controller waits for rank 0's node; what it does then is a new generation.
            return await find_meeting(
                self._store, self._keys, head.number, timeout=self._spec.ack_timeout, retry=self._timing.retry
            )
        log_file = self._config.log_dir / f"generation-{head.number}" / "rendezvous.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._meeting = await open_meeting(await self._zygotes.get(), self._config.host, str(log_file))
        place = self._meeting.place
        self._meeting.process.ended.add_done_callback(lambda _: self._on_meeting_over(place))
        await self._insist(lambda: self._store.put(self._keys.rendezvous(head.number), encode(place)))
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

    async def _report(self) -> NoReturn:
        """Write our report anew whenever it has changed."""
        key = self._keys.report(self._config.node.name)
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            await self._insist(lambda: self._store.put(key, encode(self._slots.report)))

    async def _insist(self, request: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent request until the store answers: an outage freezes the plan, and ends nothing."""
        while True:
            try:
                return await request()
            except StoreRefused:
                raise
            except StoreError as error:
                log.warning("%s", error)
                await asyncio.sleep(self._timing.retry)


async def _until_first(main: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]) -> None:
    """Run all until ``main`` ends or any of them fails; then cancel the rest and raise the first failure."""
    tasks = [asyncio.ensure_future(part) for part in (main, *others)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _changed(mirror: Mirror, beside: asyncio.Task[None] | None) -> None:
    """Wait for news; should the task beside fail meanwhile, raise what it failed with."""
    news = asyncio.ensure_future(mirror.changed(None))
    try:
        if beside is not None:
            await asyncio.wait([news, beside], return_when=asyncio.FIRST_COMPLETED)
            if beside.done():
                beside.result()
        await news
    finally:
        news.cancel()


async def _interrupt(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


def _worker_base(config: AgentConfig) -> dict[str, str]:
    """Return what workers inherit. How to get at the store is none of their business, a password least of all.

    With a shared zygote the launcher has prepared the environment, and the two have to agree.
    """
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return env if config.zygote else base_environment(env, config.node.slots)


def _has_gpus() -> bool:
    """Tell whether slots are GPUs here."""
    return bool(gpu_count())

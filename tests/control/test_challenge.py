"""A controller that is gone is deposed by those whose ranks have failed; one that is there is left in office."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tlaunch.launcher.control.challenge import challenge
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.records import Leader, Registration
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.topology.model import Node

KEYS = Keys("job")
TIMING = Timing(answer=0.01)


class Greeter(Listener):
    """Says how often it was asked."""

    def __init__(self, incarnation: str) -> None:
        super().__init__(incarnation)
        self.asked = asyncio.Event()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._greet(reader, writer)
        self.asked.set()


@dataclass
class Stage:
    """A controller on ``node-0``, and a challenger on ``node-1`` whose ranks have failed at the end of the setting."""

    store: MemoryStore
    mirror: Mirror
    listener: Greeter
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    unanswered: bool = True

    def is_unanswered(self) -> bool:
        self.looked.set()
        return self.unanswered

    async def deposed(self) -> None:
        while KEYS.leader in self.mirror.items:
            await self.mirror.changed(None)


@contextlib.asynccontextmanager
async def stage(*, unanswered: bool = True, node: str = "node-1", greets: str = "first") -> AsyncIterator[Stage]:
    store = MemoryStore()
    listener = Greeter(greets)
    record = Registration(Node("node-0", 1), "host", 1, "first", await listener.open("127.0.0.1"))
    await store.put(KEYS.agent("node-0"), encode(record))
    await store.put(KEYS.leader, encode(Leader("node-0", "first")))
    async with Mirror(store.client(), KEYS.head) as mirror, asyncio.timeout(20):
        on = Stage(store, mirror, listener, unanswered=unanswered)
        challenging = asyncio.create_task(
            challenge(
                *(store, KEYS, TIMING),
                node=node,
                head=mirror,
                nodes=0,
                failed=on.failed,
                unanswered=on.is_unanswered,
            )
        )
        try:
            yield on
        finally:
            challenging.cancel()
            await asyncio.wait([challenging])
            await listener.close()


async def test_a_controller_whose_agent_is_gone_loses_its_office() -> None:
    async with stage() as on:
        await on.listener.close()
        on.failed.set()
        await on.deposed()


async def test_a_controller_that_has_been_started_anew_has_lost_its_office() -> None:
    async with stage(greets="second") as on:
        on.failed.set()
        await on.deposed()


async def test_a_controller_that_answers_stays() -> None:
    async with stage() as on:
        on.failed.set()
        await on.listener.asked.wait()
        on.listener.asked.clear()
        await on.listener.asked.wait()  # again, because there is still no plan: the first answer has changed nothing
        assert await on.store.get(KEYS.leader) is not None


async def test_nobody_is_asked_when_a_plan_has_dealt_with_it() -> None:
    async with stage(unanswered=False) as on:
        await on.listener.close()
        on.failed.set()
        await on.looked.wait()
        assert await on.store.get(KEYS.leader) is not None


async def test_a_controller_does_not_challenge_itself() -> None:
    async with stage(node="node-0") as on:
        await on.listener.close()
        on.failed.set()
        await on.looked.wait()
        assert await on.store.get(KEYS.leader) is not None

"""Which agent is the controller. The key says so, and every commit checks it: a lock alone is never trusted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.membership import Membership
from tlaunch.launcher.control.records import Leader
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.store.protocol import BadRequest, Compare, Get, Put, Store, StoreError, StoreRefused, WatchBroken

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of one term in office: the leader key as this term created it."""

    key: str
    create_revision: int

    def compare(self) -> Compare:
        return Compare(self.key, create_revision=self.create_revision)


async def campaign(
    store: Store, keys: Keys, membership: Membership, timing: Timing, lead: Callable[[Fence], Awaitable[None]]
) -> NoReturn:
    """Try to become the controller, for ever. ``lead`` runs a term; it returns when it finds itself deposed.

    A term ends at the latest when the lease under the leader key is lost. Raises ``JobGone``.
    """
    registration = membership.registration
    leader = encode(Leader(registration.node.name, registration.incarnation))
    told = ""
    while True:
        lease = await membership.lease()
        try:
            # A lease that is still ours but whose leader key is an old term's would make two terms look alike: the
            # create_revision tells them apart.
            result = await store.txn(
                [*filter(None, [membership.job]), Compare(keys.leader, create_revision=0)],
                [Put(keys.leader, leader, lease.id)],
                [Get(keys.leader), Get(keys.spec)],
            )
            if result.succeeded:
                await _until_lost(lead(Fence(keys.leader, result.revision)), lease.lost())
            elif result.reads[0] and result.reads[0][0].value == leader and result.reads[0][0].lease == lease.id:
                # Our own key from an attempt whose answer was lost, or from a term that ended early.
                await _until_lost(lead(Fence(keys.leader, result.reads[0][0].create_revision)), lease.lost())
            else:
                membership.check(result.reads[1])
                await _vacancy(store, keys.leader, result.revision)
        except (StoreRefused, BadRequest):
            raise
        except StoreError as error:
            if str(error) != told:  # an outage lasts, and there are many tries in a minute
                log.warning("%s", error)
            told = str(error)
            await asyncio.sleep(timing.retry)


async def _until_lost(term: Awaitable[None], lost: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(term), asyncio.ensure_future(lost)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _vacancy(store: Store, key: str, revision: int) -> None:
    """Return when the leader key has been deleted after ``revision``."""
    async for changes in store.watch(key, revision):
        if any(change.key == key and change.kv is None for change in changes.changes):
            return
    raise WatchBroken(f"the watch on {key} ended")

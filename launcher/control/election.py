"""Which agent is the controller. The key says so, and every commit checks it: a lock alone is never trusted."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.membership import Membership
from tlaunch.launcher.control.records import Leader
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.store.mirror import Mirror, Reader
from tlaunch.launcher.store.protocol import BadRequest, Compare, Get, Lease, Put, Store, StoreError, StoreRefused

log = logging.getLogger(__name__)

CANDIDATES = 100
"""How many agents run for office in a second, when nobody holds it. The first one gets it, and the others need not run.
"""


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of one term in office: the leader key as this term created it."""

    key: str
    create_revision: int

    def compare(self) -> Compare:
        return Compare(self.key, create_revision=self.create_revision)


async def campaign(
    store: Store,
    keys: Keys,
    membership: Membership,
    timing: Timing,
    lead: Callable[[Fence], Awaitable[None]],
    *,
    head: Mirror,
    nodes: int,
) -> NoReturn:
    """Try to become the controller, for ever. ``lead`` runs a term; it returns when it finds itself deposed.

    A term ends at the latest when the lease under the leader key is lost. ``head`` mirrors that key; ``nodes`` is how
    many agents there are, about. Raises ``JobGone``.
    """
    registration = membership.registration
    leader = encode(Leader(registration.node.name, registration.incarnation))
    told = ""
    reader = head.reader(keys.leader)
    while True:
        lease = await membership.lease()
        try:
            if _taken(head, keys, leader, lease):
                await reader.changed(None)
                continue
            await asyncio.sleep(random.uniform(0, nodes / CANDIDATES))  # noqa: S311  not a secret
            if _taken(head, keys, leader, lease):
                continue
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
                await _shown(head, reader, keys, result.revision)
        except (StoreRefused, BadRequest):
            raise
        except StoreError as error:
            if str(error) != told:  # an outage lasts, and there are many tries in a minute
                log.warning("%s", error)
            told = str(error)
            await asyncio.sleep(timing.retry)


def _taken(head: Mirror, keys: Keys, leader: bytes, lease: Lease) -> bool:
    """Whether somebody else leads, as far as the mirror shows."""
    held = head.items.get(keys.leader)
    return held is not None and (held.value, held.lease) != (leader, lease.id)


async def _shown(head: Mirror, reader: Reader, keys: Keys, revision: int) -> None:
    """Wait until the mirror shows the leader that we have lost to at ``revision``, or that there is none again."""
    while keys.leader not in head.items and head.revision < revision:
        await reader.changed(None)


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

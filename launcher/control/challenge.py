"""Deposing a controller that is gone, before its lease has run out.

When a node is lost, ranks on other nodes fail within milliseconds. If it was the controller's node, nobody answers to
that, and its lease runs on for seconds. So an agent whose ranks have failed, and that sees no plan come of it, asks
the controller's agent directly. Only a verdict that is certain counts. Even a wrong one would do no harm: a controller
without its key can commit nothing, so there would be an election too many, and never two controllers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NoReturn

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.probe import Verdict, probe
from tlaunch.launcher.control.records import Leader, Registration
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Compare, Delete, KeyValue, Store, StoreError

log = logging.getLogger(__name__)

CHALLENGERS = 500
"""How many agents ask in a second, when ranks have failed on all of them."""


async def challenge(
    store: Store,
    keys: Keys,
    timing: Timing,
    *,
    node: str,
    head: Mirror,
    nodes: int,
    failed: asyncio.Event,
    unanswered: Callable[[], bool],
) -> NoReturn:
    """Watch over the controller from ``node``, for ever.

    ``failed`` is set whenever a rank of ours has failed, ``unanswered`` tells whether that is so and no plan has dealt
    with it. ``head`` mirrors the leader key; ``nodes`` is how many agents there are, about.
    """
    while True:
        await failed.wait()
        failed.clear()
        pause = timing.answer
        while pause < timing.lease:
            # Not all agents in the same moment: the first one to find out is enough.
            await asyncio.sleep(pause + random.uniform(0, nodes / CHALLENGERS))  # noqa: S311  not a secret
            held = head.items.get(keys.leader)
            if held is None or not unanswered() or decode(Leader, held.value, held.key).node == node:
                break
            try:
                await _ask(store, keys, timing, held)
            except StoreError as error:
                log.warning("%s", error)
            pause *= 2


async def _ask(store: Store, keys: Keys, timing: Timing, held: KeyValue) -> None:
    """Ask a controller whether it is there, and delete its key if it is certainly not."""
    leader = decode(Leader, held.value, held.key)
    kv = await store.get(keys.agent(leader.node))
    registration = None if kv is None else decode(Registration, kv.value, kv.key)
    if registration is None or registration.incarnation != leader.incarnation:
        return
    answer = await probe(registration, timing.probe)
    if answer.verdict is Verdict.GONE:
        log.warning("node %s, the controller, does not answer: its agent is gone", leader.node)
        await store.txn([Compare(keys.leader, create_revision=held.create_revision)], [Delete(keys.leader)])

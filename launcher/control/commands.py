"""An operator's trials of failures, carried out by the agent of the node: real kills, not pretended ones."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import NoReturn, Protocol

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import FailSlot, KillNode, KillRank, NodeCommand
from tlaunch.launcher.core.codec import CodecError, decode
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Compare, Delete, Store, StoreError, StoreRefused

log = logging.getLogger(__name__)


class Target(Protocol):
    """What an operator can try failures out on."""

    def kill(self, rank: int, *, trial: bool = False) -> bool: ...
    def fail(self, index: int, reason: str) -> None: ...


async def obey(store: Store, keys: Keys, node: str, slots: Target, *, head: Mirror, retry: float) -> NoReturn:
    """Carry out the commands for this node, for ever. Each is deleted before it is done, so that none is done twice."""
    prefix = keys.node_commands(node)
    reader = head.reader(prefix)
    while True:
        try:
            ours = [kv for key, kv in head.items.items() if key.startswith(prefix)]
            for kv in sorted(ours, key=lambda kv: kv.mod_revision):
                taken = await store.txn([Compare(kv.key, mod_revision=kv.mod_revision)], [Delete(kv.key)])
                if taken.succeeded:
                    _do(decode(NodeCommand, kv.value, kv.key), slots)
            await reader.changed(None)
        except StoreRefused:
            raise
        except (StoreError, CodecError) as error:
            log.warning("%s", error)
            await asyncio.sleep(retry)


def _do(command: NodeCommand, slots: Target) -> None:
    log.warning("operator: %s", command)
    match command:
        case KillRank(rank):
            if not slots.kill(rank, trial=True):
                log.warning("rank %d does not run here any more", rank)
        case FailSlot(index, reason):
            slots.fail(index, reason)
        case KillNode():
            # The lifelines of everything that runs here hang on this process.
            os.kill(os.getpid(), signal.SIGKILL)

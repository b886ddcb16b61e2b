"""Writing in spite of outages: an outage freezes the plan, and ends nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tlaunch.launcher.store.protocol import (
    BadRequest,
    Compare,
    Delete,
    Get,
    Put,
    Store,
    StoreError,
    StoreFull,
    StoreRefused,
)

T = TypeVar("T")

log = logging.getLogger(__name__)


async def insist(request: Callable[[], Awaitable[T]], retry: float) -> T:
    """Repeat an idempotent request every ``retry`` seconds until the store answers.

    Raises ``StoreRefused`` and ``BadRequest``, which no repetition cures.
    """
    told = ""
    while True:
        try:
            return await request()
        except (StoreRefused, BadRequest):
            raise
        except StoreError as error:
            if str(error) != told:  # an outage lasts, and there are many tries in a minute
                log.log(logging.ERROR if isinstance(error, StoreFull) else logging.WARNING, "%s", error)
            told = str(error)
            await asyncio.sleep(retry)


class OwnKey:
    """A key that nobody but us writes.

    Each write names the one before it. So one whose answer got lost, and which a member that had stopped carries out
    much later, cannot overwrite a newer one.
    """

    def __init__(self, store: Store, key: str, retry: float) -> None:
        self._store = store
        self._key = key
        self._retry = retry
        self._revision = 0

    def first(self, value: bytes | None) -> Put | Delete:
        """Return what writes the key in somebody else's transaction, or deletes it; ``adopt`` says that it was done."""
        return Delete(self._key) if value is None else Put(self._key, value)

    def adopt(self, revision: int) -> None:
        """Take note that the key was written at this revision, or is not there when it is 0."""
        self._revision = revision

    async def put(self, value: bytes) -> None:
        """Write, however long it takes until the store can be reached. Raises as ``insist`` does."""
        while not await insist(lambda: self._try(value), self._retry):
            pass

    async def _try(self, value: bytes) -> bool:
        written = await self._store.txn(
            [Compare(self._key, mod_revision=self._revision)], [Put(self._key, value)], [Get(self._key)]
        )
        if written.succeeded:
            self._revision = written.revision
            return True
        # By an attempt of ours whose answer got lost, or by an agent that had our name before us.
        found = written.reads[0]
        self._revision = found[0].mod_revision if found else 0
        return bool(found) and found[0].value == value

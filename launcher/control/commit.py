"""Writing a plan. Every write compares the leader key and the previous generation: a lock alone is never trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from tlaunch.launcher.control.election import Fence
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.core.assign import Assignment, Generation
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.core.stored import KEPT_PLANS, StoredPlan
from tlaunch.launcher.store.protocol import Compare, Delete, Put, Store

TXN_PUTS = 100
TXN_DELETES = 20
"""etcd refuses transactions of more than 128 operations by default (``--max-txn-ops``)."""


class Committed(Enum):
    """What has become of a plan. ``FULL``: the store had no room for it. A ``Ledger`` raises the latter two."""

    DONE = "done"
    LOST = "lost"
    FULL = "full"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The right to write plans, for one term in office."""

    store: Store
    keys: Keys
    fence: Fence

    async def commit(
        self,
        head_revision: int,
        plan: StoredPlan,
        head: Generation,
        changed: Mapping[str, Assignment],
        outdated: Sequence[int] = (),
    ) -> Committed:
        """Make ``plan`` the current one. ``head_revision``: mod_revision of the previous generation key, 0 for none.

        ``outdated``: the generations of plans that are to go.

        Assignments that do not fit into the one transaction are written before it: an agent heeds an assignment only
        once its generation is the current one. Raises ``StoreUnknown`` when the outcome is open; the caller reads
        before it goes on. Raises ``CodecError``, and has written nothing, when the plan cannot be written; so does
        ``BadRequest``, for a store that takes less than ours does, except that assignments may have been written.
        """
        keys = self.keys
        current = [Put(keys.plan(head.number), encode(plan)), Put(keys.generation, encode(head))]
        oldest = [Delete(keys.plan(generation)) for generation in outdated[:TXN_DELETES]]
        if head.number > KEPT_PLANS:
            oldest.append(Delete(keys.rendezvous(head.number - KEPT_PLANS)))
        compare = [self.fence.compare(), Compare(keys.generation, mod_revision=head_revision)]
        batches = list(_batches([Put(keys.assign(node), encode(given)) for node, given in changed.items()]))
        last = batches.pop() if batches and len(batches[-1]) <= TXN_PUTS - 2 else []
        written = await asyncio.gather(*(self.store.txn(compare, batch) for batch in batches), return_exceptions=True)
        for outcome in written:
            if isinstance(outcome, BaseException):
                raise outcome
            if not outcome.succeeded:
                return Committed.LOST
        done = await self.store.txn(compare, [*last, *current, *oldest])
        return Committed.DONE if done.succeeded else Committed.LOST


def _batches(puts: Sequence[Put]) -> Iterator[list[Put]]:
    rest = iter(puts)
    while batch := list(islice(rest, TXN_PUTS)):
        yield batch

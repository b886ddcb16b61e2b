"""Members that answer late, or that have much to tell: nothing is lost by that, and nothing takes them for dead."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.store.members import Members
from tests.support.proxy import Proxy
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.store import Endpoints, EtcdStore, Mirror, connect, tls

pytestmark = pytest.mark.usefixtures("shared_members")

DELAY = 0.5
"""Seconds, in each direction."""


@pytest.fixture
async def slow(members: Members) -> AsyncIterator[EtcdStore]:
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(member.host, DELAY)) for member in members.members]
        store = await connect(Endpoints(tuple(proxy.host for proxy in proxies)))
        yield store
        await store.close()


async def test_slow_members_keep_leases_watches_and_promises(slow: EtcdStore) -> None:
    timing = Timing()
    lease = await slow.lease(timing.lease)
    async with Mirror(slow, "/slow/", gap=timing.gap) as mirror:
        since, until = mirror.in_contact_since, time.monotonic() + 2 * timing.lease
        assert since is not None
        number = 0
        while time.monotonic() < until:
            number += 1
            began = time.monotonic()
            await slow.put("/slow/k", str(number).encode(), lease=lease.id)
            assert time.monotonic() - began < 6 * DELAY, "a status request and the write itself"
            async with asyncio.timeout(6 * DELAY):
                while "/slow/k" not in mirror.items or mirror.items["/slow/k"].value != str(number).encode():
                    await mirror.changed(None)
            assert mirror.in_contact_since == since, "contact was never broken"
            assert lease.valid
    await lease.revoke()


async def test_a_watch_that_always_has_something_to_tell_is_in_contact(members: Members) -> None:
    store = await connect(members.endpoints)
    async with Mirror(store, "/busy/", gap=2.0) as mirror:
        since, until = mirror.in_contact_since, time.monotonic() + 4.0
        while time.monotonic() < until:
            await store.put("/busy/k", b"")
            await mirror.changed(0.3)
            assert mirror.in_contact_since == since
    await store.close()


async def test_a_connection_that_takes_long_is_not_taken_for_one_that_fails(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspected = []

    async def why_refused(*given: object) -> None:
        suspected.append(given)

    monkeypatch.setattr(tls, "why_refused", why_refused)
    with Proxy(members.members[0].host, DELAY) as proxy:
        store = await connect(Endpoints((proxy.host,)))
        await store.close()
    assert not suspected, "a handshake to find out what is wrong, while nothing was"

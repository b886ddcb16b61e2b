"""The cause is reported at once; victims of a large job one after the other, until a plan has dealt with them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tlaunch.launcher.control.insist import OwnKey
from tlaunch.launcher.control.records import Report
from tlaunch.launcher.control.reporting import AT_ONCE, VICTIMS, Reporter, longest_wait
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.hang import Hung
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror

KEY = "/job/reports/node-00"
VICTIM = Exit(code=1, message="RuntimeError: Connection closed by peer")
CAUSE = Exit(signal=9)
LONG = 1000.0


class Node:
    """A node with something to report."""

    def __init__(self, wait: float) -> None:
        self.report = Report(0)
        self.store = MemoryStore()
        self.reporter = Reporter(OwnKey(self.store, KEY, 0.01), lambda: self.report, wait)

    async def says(self, report: Report) -> None:
        """Report, and let the reporter do what it does at once."""
        self.report = report
        self.reporter.due()
        for _ in range(20):
            await asyncio.sleep(0)

    async def said(self) -> Report | None:
        kv = await self.store.get(KEY)
        return None if kv is None else decode(Report, kv.value, KEY)


@asynccontextmanager
async def node(wait: float) -> AsyncIterator[Node]:
    made = Node(wait)
    running = asyncio.create_task(made.reporter.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def test_victims_are_victims() -> None:
    assert VICTIM.lost_peer
    assert not CAUSE.lost_peer


@pytest.mark.parametrize(("wait", "told"), [(0.0, True), (LONG, False)], ids=["small job", "large job"])
async def test_a_victim_waits_in_a_large_job_only(wait: float, told: bool) -> None:
    async with node(wait) as one:
        await one.says(Report(1, {3: VICTIM}))
        assert (await one.said() is not None) == told


async def test_a_victim_tells_in_the_end() -> None:
    async with node(0.01) as one, asyncio.timeout(10), Mirror(one.store, KEY) as mirror:
        await one.says(Report(1, {3: VICTIM}))
        while KEY not in mirror.items:
            await mirror.changed(None)
        assert await one.said() == one.report


@pytest.mark.parametrize(
    "report",
    [Report(1, {3: VICTIM, 4: CAUSE}), Report(1, {3: VICTIM}, {0: "ECC error"}), Report(1, {3: Exit(code=0)})],
    ids=["cause", "bad slot", "finished"],
)
async def test_what_matters_is_told_at_once_even_after_a_victim(report: Report) -> None:
    async with node(LONG) as one:
        await one.says(Report(1, {3: VICTIM}))
        assert await one.said() is None
        await one.says(report)
        assert await one.said() == report


async def test_a_victim_that_a_plan_has_dealt_with_is_not_told() -> None:
    async with node(0.01) as one:
        await one.says(Report(1, {3: VICTIM}))
        one.report = Report(2)  # as when the next plan is applied, which is no news to anybody
        await asyncio.sleep(0.05)
        assert await one.said() is None


async def test_that_ranks_hang_is_told_at_once_and_taken_back() -> None:
    async with node(LONG) as one:
        for report in (Report(1, hung={3: Hung(60.0, 5.0, "host")}), Report(1)):
            await one.says(report)
            assert await one.said() == report


async def test_what_another_agent_of_the_name_has_left_is_over() -> None:
    one = Node(0.0)
    await one.store.put(KEY, b"old")
    done = await one.store.txn([], [one.reporter.first()])
    await one.reporter.begin(done.revision)
    assert await one.said() is None
    running = asyncio.create_task(one.reporter.run())
    await one.says(Report(1, {3: CAUSE}))
    assert await one.said() == one.report
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_first_report_that_was_not_written_with_the_registration_is_written_now() -> None:
    one = Node(0.0)
    one.report = Report(0, {}, {1: "ECC error"})
    await one.store.put(KEY, b"old")
    one.reporter.first()
    await one.reporter.begin(0)
    assert await one.said() == one.report


def test_the_wait_grows_with_the_job_up_to_its_limit() -> None:
    assert longest_wait(AT_ONCE, 4.0) == 0.0
    assert longest_wait(AT_ONCE + VICTIMS, 4.0) == 1.0
    assert longest_wait(100_000, 4.0) == 4.0

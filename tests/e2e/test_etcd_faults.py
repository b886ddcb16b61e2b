"""A job on the user's own etcd, which fails in every way that an etcd can: training goes on, or ends for one reason."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.e2e.faults import fault
from tests.e2e.job import Job, running
from tests.store.members import Member, Members, ctl, single, until_healthy
from tests.support.proxy import Proxy
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.store import Endpoints, connect
from tlaunch.launcher.store.protocol import StoreFull

SMALL = ("--nodes", "2", "--gpus-per-node", "2", "--spares", "1")
LEASE = Timing().lease
AS_EVER = "the other members answer; failures are dealt with as ever"
FROZEN = "the plan is frozen and training goes on; nobody is killed or moved, and all are adopted afterwards"


def options(etcd: Members) -> tuple[str, ...]:
    return (*SMALL, "--etcd", ",".join(etcd.endpoints.hosts))


def still_recovers(job: Job, before: dict[int, str], generations: int = 1) -> None:
    """Check that a failure is dealt with as ever."""
    os.kill(job.last(2)["pid"], signal.SIGKILL)
    assert job.seats(generations, 3) == before
    job.finish()


@fault("etcd", "one member killed", noticed="within 0.1 s, 2 s if it was the leader", decision=AS_EVER, lost="nothing")
def test_a_member_is_killed_and_the_job_still_recovers(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        etcd.leader().kill()
        still_recovers(job, before)
        etcd.heal()


@fault("etcd", "one member stopped", noticed="after 3 s of silence at most", decision=AS_EVER, lost="nothing")
def test_a_member_is_stopped_and_the_job_still_recovers(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        etcd.leader().stop()
        job.goes_on(1.2 * LEASE, 3)
        still_recovers(job, before)
        etcd.heal()


@fault("etcd", "leader moved", noticed="not at all", decision="failures are dealt with as ever", lost="nothing")
def test_the_leader_moves_and_the_job_still_recovers(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        etcd.move_leader(etcd.others(etcd.leader())[0])
        os.kill(job.last(1)["pid"], signal.SIGKILL)
        etcd.move_leader(etcd.others(etcd.leader())[0])  # and once more, while that is dealt with
        assert job.seats(1, 3) == before
        still_recovers(job, before, 2)


@pytest.mark.slow
@fault("etcd", "all down for 30 s", noticed="after 2.5 s without contact", decision=FROZEN, lost="nothing")
def test_all_members_are_killed_for_30_seconds(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        for member in etcd.members:
            member.kill()
        job.goes_on(30, 3)
        etcd.heal()
        job.goes_on(LEASE, 3)
        still_recovers(job, before)


@pytest.mark.slow
@fault(
    "etcd",
    "all down for longer than the lease",
    noticed="after 2.5 s without contact",
    decision=FROZEN,
    lost="nothing",
)
def test_all_members_are_stopped_for_longer_than_a_lease(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        pids = [job.last(rank)["pid"] for rank in range(3)]
        for member in etcd.members:
            member.stop()
        job.goes_on(1.5 * LEASE, 3)
        etcd.heal()
        job.goes_on(1.5 * LEASE, 3)
        assert [job.last(rank)["pid"] for rank in range(3)] == pids, "adopted without a restart"
        still_recovers(job, before)


def test_a_rank_that_fails_during_an_outage_is_restarted_afterwards(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        for member in etcd.members:
            member.stop()
        os.kill(job.last(1)["pid"], signal.SIGKILL)
        time.sleep(1)  # the outage has to last for a while after the failure
        etcd.heal()
        assert job.seats(1, 3) == before
        job.finish()


def test_ctrl_c_during_an_outage_ends_the_job_all_the_same(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        job.seats(0, 3)
        for member in etcd.members:
            member.stop()
        job.process.send_signal(signal.SIGINT)
        assert job.ended() == 130, job.told()
        etcd.heal()


IMPATIENT = """
import functools
import tlaunch.launcher.control.timing as timing
timing.Timing = functools.partial(timing.Timing, outage=5.0)
"""
"""Nobody wants to wait here for as long as agents do by default."""


@pytest.mark.slow
@fault(
    "etcd",
    "gone for good",
    noticed="after 2.5 s without contact",
    decision="ranks train on; when a node has none left it waits, for 10 minutes of the outage in all, and then ends "
    "with exit code 1 and this reason",
    lost="the job, at the first failure; its script's checkpoints remain",
)
def test_an_etcd_that_is_gone_for_good_ends_the_job_when_nothing_runs_any_more(
    tmp_path: Path, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running(tmp_path, *SMALL, "--etcd", member.host) as job:
        job.seats(0, 3)
        processes = psutil.Process(job.process.pid).children(recursive=True)
        member.kill()
        job.goes_on(1.5 * LEASE, 3)
        os.kill(job.last(1)["pid"], signal.SIGKILL)
        assert job.ended() == 1, job.told()
        console = (tmp_path / "console").read_text()
        assert console.count("etcd has been out of reach for 5 s, and no rank runs here any more") == 1
        assert psutil.wait_procs(processes, timeout=20)[1] == []


@fault(
    "etcd",
    "data lost for good",
    noticed="as soon as it answers again",
    decision="the job ends with exit code 1 and this reason; its ranks are killed",
    lost="the job; its script's checkpoints remain",
)
def test_data_that_is_lost_for_good_ends_the_job(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        job.seats(0, 3)
        processes = psutil.Process(job.process.pid).children(recursive=True)
        for member in etcd.members:
            member.lose()
        etcd.heal()
        assert job.ended() == 1, job.told()
        console = (tmp_path / "console").read_text()
        assert console.count(f"job {job.job_id} is gone from etcd") == 1
        assert psutil.wait_procs(processes, timeout=20)[1] == [], "nobody trains on"
        assert len(job.events()) == 1, "nor was another plan made in the empty store"


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Member]:
    """An etcd that takes 16 MiB."""
    (tmp_path / "etcd").mkdir()
    with single(tmp_path / "etcd", flags=("--quota-backend-bytes", str(1 << 24))) as member:
        until_healthy([member])
        yield member


def fill(member: Member) -> None:
    """Write until nothing goes in any more."""

    async def write() -> None:
        store = await connect(Endpoints((member.host,)))
        try:
            while True:
                await store.put("/elsewhere", bytes(1 << 20))
        except StoreFull:
            await store.close()

    asyncio.run(write())


def make_room(member: Member) -> None:
    """Do what the error message tells operators to do."""
    status = json.loads(ctl([member], "endpoint", "status", "-w", "json"))
    ctl([member], "compact", str(status[0]["Status"]["header"]["revision"]))
    ctl([member], "defrag")
    ctl([member], "alarm", "disarm")


@pytest.mark.slow
@fault(
    "etcd",
    "quota full",
    noticed="with the first write",
    decision="training goes on; a recovery waits under one line, and happens when the alarm is disarmed",
    lost="time until there is room",
)
def test_a_recovery_waits_until_a_full_etcd_has_room_again(tmp_path: Path, narrow: Member) -> None:
    with running(tmp_path, *SMALL, "--etcd", narrow.host) as job:
        before = job.seats(0, 3)
        fill(narrow)
        job.goes_on(1.5 * LEASE, 3)
        os.kill(job.last(1)["pid"], signal.SIGKILL)
        console = tmp_path / "console"
        job.until(lambda: "database space exceeded; expected room" in console.read_text(), "a line that says why")
        assert len(job.events()) == 1
        make_room(narrow)
        assert job.seats(1, 3) == before
        job.finish()


@pytest.mark.slow
@fault(
    "etcd",
    "slow by 500 ms",
    noticed="not at all: answers have 3 times as long as the last one took",
    decision="the job starts, runs and recovers, slower by some round trips; nobody counts as dead",
    lost="nothing",
)
def test_a_job_on_a_slow_etcd_starts_runs_and_recovers(tmp_path: Path, etcd: Members) -> None:
    with ExitStack() as stack:
        relays = [stack.enter_context(Proxy(member.host, delay=0.5)) for member in etcd.members]
        hosts = ",".join(relay.host for relay in relays)
        with running(tmp_path, *SMALL, "--etcd", hosts) as job:
            before = job.seats(0, 3)
            job.goes_on(1.5 * LEASE, 3)
            still_recovers(job, before)
            assert "out of reach" not in job.told()

"""A job on the user's own etcd, whose members die and stop under it: the plan is frozen, and training goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.faults import fault
from tests.e2e.job import Job, running
from tests.store.members import Member, Members, ctl, single, until_healthy
from tlaunch.launcher.control.timing import Timing

SMALL = ("--nodes", "2", "--gpus-per-node", "2", "--spares", "1")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Members]:
    (tmp_path / "etcd").mkdir()
    with Members(tmp_path / "etcd") as members:
        members.heal()
        yield members


def options(etcd: Members) -> tuple[str, ...]:
    return (*SMALL, "--etcd", ",".join(etcd.endpoints.hosts))


def goes_on(job: Job, seconds: float) -> None:
    """Check that every rank completes steps for so many seconds, without a new generation."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job.another_step(3)
    assert len(job.events()) == 1, job.told()


def test_a_job_leaves_no_key_behind(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        job.seats(0, 3)
        job.finish()
    assert ctl(etcd.members, "get", "--prefix", "--keys-only", "/tlaunch/").strip() == ""


@fault(
    "etcd",
    "one member killed",
    noticed="within 0.1 s, 2 s if it was the leader",
    decision="the other members answer; failures are dealt with as ever",
    lost="nothing",
)
def test_a_member_is_killed_and_the_job_still_recovers(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        etcd.leader().kill()
        os.kill(job.trace(2)[-1]["pid"], signal.SIGKILL)
        assert job.seats(1, 3) == before
        etcd.heal()
        job.finish()


@fault(
    "etcd",
    "all down for longer than the lease",
    noticed="after 2 s without contact",
    decision="the plan is frozen and training goes on; nobody is killed or moved, and all are adopted afterwards",
    lost="nothing",
)
def test_all_members_are_stopped_for_longer_than_a_lease(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        pids = [job.trace(rank)[-1]["pid"] for rank in range(3)]
        for member in etcd.members:
            member.stop()
        goes_on(job, 2 * Timing().lease)
        etcd.heal()
        goes_on(job, 2 * Timing().lease)
        assert [job.trace(rank)[-1]["pid"] for rank in range(3)] == pids, "adopted without a restart"
        os.kill(pids[0], signal.SIGKILL)
        assert job.seats(1, 3) == before, "and failures are dealt with again"
        job.finish()


def test_a_rank_that_fails_during_an_outage_is_restarted_afterwards(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *options(etcd)) as job:
        before = job.seats(0, 3)
        for member in etcd.members:
            member.stop()
        os.kill(job.trace(1)[-1]["pid"], signal.SIGKILL)
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


def test_etcd_out_of_reach(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL, "--etcd", "127.0.0.1:1") as job:
        assert job.ended() == 2
        console = (tmp_path / "console").read_text()
        assert "127.0.0.1:1" in console
        assert len(console.splitlines()) == 1


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Member]:
    """An etcd that lets in nobody but root with the password "secret"."""
    (tmp_path / "etcd").mkdir()
    with single(tmp_path / "etcd", flags=("--auth-token", "simple", "--bcrypt-cost", "4")) as member:
        until_healthy([member])
        for command in ("user add root:secret", "user grant-role root root", "auth enable"):
            ctl([member], *command.split())
        yield member


def test_etcd_that_refuses_the_password(tmp_path: Path, guarded: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLAUNCH_ETCD_PASSWORD", "a-wrong-one")
    with running(tmp_path, *SMALL, "--etcd", guarded.host, "--etcd-user", "root") as job:
        assert job.ended() == 2
    (line,) = (tmp_path / "console").read_text().splitlines()
    assert line.startswith(f"tlaunch: etcd at {guarded.host} refuses user 'root'")
    assert "a-wrong-one" not in line


def test_the_password_lets_the_job_in_and_stays_out_of_its_ranks(
    tmp_path: Path, guarded: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLAUNCH_ETCD_PASSWORD", "secret")
    with running(tmp_path, *SMALL, "--etcd", guarded.host, "--etcd-user", "root") as job:
        job.seats(0, 3)
        for process in psutil.Process(job.process.pid).children(recursive=True):
            if "tlaunch.launcher.control" not in process.cmdline():
                assert not [name for name in process.environ() if name.startswith("TLAUNCH_ETCD")], process.cmdline()
        job.finish()

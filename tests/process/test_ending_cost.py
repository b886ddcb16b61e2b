"""A worker's end is quick and leaves alone what is shared with the zygote; peers and threads get what they wait for."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.conftest import Outcome, run, run_each
from tlaunch.launcher.control.spawn import Process, Zygote
from tlaunch.launcher.process.messages import Work

# Pages that an end may touch. It is about 3,500, and 40,000 when the interpreter takes everything apart.
PAGES = 10_000

# The worker forks, so that it can ask what its child has touched in all its life. What the child touches before its
# end is not much.
SCRIPT = """
    import atexit, gc, os, sys, torch
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    if pid := os.fork():
        _, status, usage = os.wait4(pid, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_minflt, flush=True)
        os._exit(0)
"""

ENDS = {
    "returns": ("", 0),
    "exits": ("sys.exit(3)", 3),
    "fails": ("raise ValueError('too bad')", 1),
    "is interrupted": ("raise KeyboardInterrupt", -2),
    "is ended by its exception hook": ("sys.excepthook = lambda *_: sys.exit(4); 1 / 0", 4),
    "cannot write": ("os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('x')", 120),
    "has no collector": ("gc.disable()", 0),
    "has a thread": (
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        0,
    ),
    "has a process group": (
        "from torch.distributed import *; init_process_group('gloo', store=HashStore(), rank=0, world_size=1)",
        0,
    ),
}


@pytest.mark.parametrize("name", ENDS)
async def test_an_end_touches_few_pages(name: str, standby: Process, work: Callable[..., Work]) -> None:
    end, code = ENDS[name]
    outcome = await run(standby, work(textwrap.dedent(SCRIPT) + end))
    assert standby.note is None
    seen, pages = map(int, outcome.stdout.split())
    assert seen == code
    assert pages < PAGES


async def test_the_interpreters_own_end_is_the_way_out(standby: Process, work: Callable[..., Work]) -> None:
    outcome = await run(standby, work(textwrap.dedent(SCRIPT) + "atexit._clear(); sys.exit(3)"))
    seen, pages = map(int, outcome.stdout.split())
    assert seen == 3
    assert pages > PAGES  # or what is measured above says nothing


# A thread that Python has not started, made without letting go of the interpreter's lock, so that it waits for that.
FOREIGN = """
    import ctypes, sys
    from tlaunch.launcher.elastic.foreign_threads import wait_for_foreign_threads
    sys.setswitchinterval(600)
    done = []
    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def run(_):
        done.append("done")
    ctypes.PyDLL(None).pthread_create(ctypes.byref(ctypes.c_ulong()), None, run, None)
    before = list(done)
    wait_for_foreign_threads()
    print(before, done)
"""
BUSY = """
    import ctypes
    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def run(_):
        while True:
            pass
    ctypes.CDLL(None).pthread_create(ctypes.byref(ctypes.c_ulong()), None, run, None)
"""


async def test_a_foreign_thread_that_waits_for_the_interpreter(standby: Process, work: Callable[..., Work]) -> None:
    assert await run(standby, work(textwrap.dedent(FOREIGN))) == Outcome("[] ['done']\n", "", 0)


async def test_a_foreign_thread_that_never_rests(standby: Process, work: Callable[..., Work]) -> None:
    assert await run(standby, work(textwrap.dedent(BUSY))) == Outcome("", "", 0)


GROUP = """
    import atexit, os, sys, torch, torch.distributed as dist
    folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    x = torch.tensor([rank + 1.0])
"""
# Rank 0 ends in the middle of a collective. Its exit handlers are the last that is seen of it; rank 1 gives it many
# times as long as an end takes, and then joins in.
UNFINISHED = """
    import select
    if rank == 0:
        work = dist.all_reduce(x, async_op=True)
        atexit.register(lambda: open(f"{folder}/gate", "w").write(str(os.getpid())))
        sys.exit(code)
    else:
        peer = os.pidfd_open(int(open(f"{folder}/gate").read()))
        if select.select([peer], [], [], 60 if code else 0.5)[0]:
            print("gone")
        else:
            dist.all_reduce(x)
            print(x.item())
"""
TRAINED = """
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    print(model.module.weight.grad.tolist())
"""


async def run_group(zygote: Zygote, work: Callable[..., Work], source: str, size: int) -> list[Outcome]:
    script = textwrap.dedent(GROUP) + textwrap.dedent(source)
    folder = work().cwd
    return await run_each(zygote, [work(script, argv=(folder, str(rank), str(size))) for rank in range(size)])


@pytest.mark.parametrize(("code", "seen"), [(0, "3.0\n"), (1, "gone\n")], ids=["succeeded", "failed"])
async def test_only_success_waits_for_the_peers(
    code: int, seen: str, zygote: Zygote, work: Callable[..., Work], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    ends = await run_group(zygote, work, f"    code = {code}\n{UNFINISHED}", 2)
    assert ends == [Outcome("", "", code), Outcome(seen, "", 0)]


async def test_a_process_group_that_nobody_destroys(zygote: Zygote, work: Callable[..., Work]) -> None:
    # Eight, because what goes wrong when the end does not wait for gloo's threads goes wrong in one of eight.
    assert await run_group(zygote, work, TRAINED, 8) == [Outcome("[[1.0, 1.0]]\n", "", 0)] * 8

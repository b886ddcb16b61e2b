"""Where a fork cannot stand in for a fresh interpreter, and where none is wanted, there is a fresh one."""

from __future__ import annotations

import socket
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.conftest import (
    IMPORT_SECONDS,
    Outcome,
    run,
)
from tlaunch.launcher.control.spawn import Process, Zygote
from tlaunch.launcher.process.messages import Work


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

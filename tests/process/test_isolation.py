"""What goes beyond one script's output: random states, child processes, data loaders, error files, descriptors."""

from __future__ import annotations

import json
import os
import socket
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.conftest import DEADLINE, IMPORT_SECONDS, Outcome, RunningZygote, run, run_each
from tlaunch.launcher.control.spawn import Process, Zygote
from tlaunch.launcher.process.messages import Work


@pytest.mark.parametrize(
    "draw",
    [
        "__import__('random').random()",
        "__import__('numpy').random.random()",
        "__import__('torch').rand(1).item()",
        "__import__('torch').initial_seed()",
        "__import__('multiprocessing').current_process().authkey",
        "next(__import__('tempfile')._get_candidate_names())",
        "__import__('uuid').uuid4()",
    ],
)
async def test_random_states_are_not_shared(zygote: Zygote, work: Callable[..., Work], draw: str) -> None:
    outcomes = await run_each(zygote, [work(f"print({draw})")] * 2)
    assert outcomes[0].stderr == outcomes[1].stderr == ""
    assert outcomes[0].stdout != outcomes[1].stdout


async def test_a_seed_gives_what_it_gives_anywhere(
    standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome]
) -> None:
    source = """
        import random, numpy, torch
        random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
        print(random.random(), numpy.random.random(), torch.rand(3), torch.randn(2), torch.nn.Linear(2, 2).weight)
    """
    task = work(textwrap.dedent(source))
    assert await run(standby, task) == plain(task)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_multiprocessing(
    method: str, standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome]
) -> None:
    source = """
        import multiprocessing, os, sys

        class Thing:
            pass

        def double(x):
            assert multiprocessing.parent_process() is not None
            return x * 2, Thing(), __name__, sys.argv, os.getcwd(), os.environ.get("MARK")

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            with context.Pool(2) as pool:
                results = pool.map(double, [1, 2])
            print([r[0] for r in results], type(results[0][1]) is Thing, [r[2:] for r in results])
            queue = context.Queue()
            process = context.Process(target=queue.put, args=("hello",), name="child")
            process.start()
            print(queue.get(), process.name)
            process.join()
            print(process.exitcode, multiprocessing.active_children())
            with context.Manager() as manager:
                print(manager.dict(a=1).copy())
    """
    task = work(textwrap.dedent(source), argv=(method,), env={"MARK": "x"})
    forked = await run(standby, task)
    assert forked.stderr == ""
    assert forked == plain(task)


async def test_multiprocessing_of_a_module(
    standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome], tmp_path: Path
) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "job.py").write_text(
        textwrap.dedent("""
            import multiprocessing
            from . import __name__ as package

            def name(_):
                return __name__, package

            if __name__ == "__main__":
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(pool.map(name, [0]))
        """)
    )
    task = work(argv=("pack.job",), module=True)
    assert await run(standby, task) == plain(task) == Outcome("[('__mp_main__', 'pack')]\n", "", 0)


async def test_data_loader_workers(standby: Process, work: Callable[..., Work]) -> None:
    source = """
        import torch
        from torch.utils.data import DataLoader, Dataset, get_worker_info

        class Squares(Dataset):
            def __len__(self):
                return 8
            def __getitem__(self, i):
                return torch.tensor([i * i, get_worker_info().id])

        print(torch.cat(list(DataLoader(Squares(), batch_size=4, num_workers=2))).tolist())
    """
    outcome = await run(standby, work(textwrap.dedent(source)))
    assert outcome == Outcome(f"{[[i * i, i // 4] for i in range(8)]}\n", "", 0)


async def test_autograd_and_threads_work_after_the_fork(standby: Process, work: Callable[..., Work]) -> None:
    source = """
        import torch
        torch.set_num_threads(2)
        x = torch.randn(512, 512, requires_grad=True)
        (x @ x).relu().sum().backward()
        print(x.grad.shape, torch.get_num_threads())
    """
    outcome = await run(standby, work(textwrap.dedent(source)))
    assert outcome == Outcome("torch.Size([512, 512]) 2\n", "", 0)


async def test_descriptors_are_handed_over(standby: Process, work: Callable[..., Work]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = "import os; fd = int(os.environ['GIFT']); os.write(fd, b'thank you'); print(os.get_inheritable(fd))"
        outcome = await run(standby, work(source, fds={"GIFT": theirs.fileno()}))
        theirs.close()
        assert ours.recv(100) == b"thank you"
        assert ours.recv(100) == b""
    assert outcome == Outcome("False\n", "", 0)


async def test_a_large_environment_arrives(standby: Process, work: Callable[..., Work]) -> None:
    env = {f"LARGE_{number}": "x" * 100_000 for number in range(20)}
    outcome = await run(standby, work("import os; print(sum(map(len, os.environ.values())) > 2_000_000)", env=env))
    assert outcome == Outcome("True\n", "", 0)


RECORDING = """
import sys
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise ValueError("recorded by the script")

main()
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f():\n    raise ValueError('plain')\nf()", "ValueError: plain"),
        (RECORDING, "ValueError: recorded by the script"),
    ],
)
async def test_error_file(
    standby: Process, work: Callable[..., Work], tmp_path: Path, source: str, message: str
) -> None:
    file = tmp_path / "error.json"
    standby.start(work(source, env={"TORCHELASTIC_ERROR_FILE": str(file), "LOCAL_RANK": "3"}))
    ended = await standby.ended
    written = json.loads(file.read_text())["message"]
    assert (ended.code, ended.signal, ended.ok) == (1, None, False)
    assert ended.message == written["message"] == message
    assert ended.traceback == written["extraInfo"]["py_callstack"]
    assert ended.traceback is not None
    assert ended.traceback.startswith('Traceback (most recent call last):\n  File "')
    assert "tlaunch/launcher" not in ended.traceback
    assert ended.timestamp == int(written["extraInfo"]["timestamp"])
    assert ended.error_file == str(file)


async def test_error_file_has_the_traceback_that_was_printed(
    standby: Process, work: Callable[..., Work], tmp_path: Path
) -> None:
    source = "def f():\n    raise ValueError('plain')\nf()"
    task = work(source, env={"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")})
    outcome = await run(standby, task)
    assert standby.ended.result().traceback == outcome.stderr


@pytest.mark.parametrize("source", ["raise SystemExit(3)", "import os; os._exit(3)", "import sys; sys.exit('text')"])
async def test_an_exit_is_no_exception(
    standby: Process, work: Callable[..., Work], tmp_path: Path, source: str
) -> None:
    file = tmp_path / "error.json"
    await run(standby, work(source, env={"TORCHELASTIC_ERROR_FILE": str(file)}))
    assert not file.exists()
    ended = standby.ended.result()
    assert (ended.traceback, ended.error_file) == (None, None)


async def test_a_broken_error_file(own_zygote: RunningZygote, work: Callable[..., Work], tmp_path: Path) -> None:
    zygote = await Zygote.connect(own_zygote.socket_path, timeout=DEADLINE)
    env = {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    for content in ("", "{", "[]", '{"message": {}}', '{"message": 3}', '{"other": 1}'):
        (tmp_path / "error.json").write_text(content)
        standby = await zygote.standby(timeout=IMPORT_SECONDS)
        outcome = await run(standby, work("import os; os._exit(3)", env=env))
        assert outcome.code == 3
        assert standby.ended.result().traceback is None
    await zygote.close()


async def test_a_signal_is_named(standby: Process) -> None:
    standby.kill()
    ended = await standby.ended
    assert (ended.code, ended.signal) == (None, 9)
    assert ended.message == f"Signal 9 (SIGKILL) received by PID {standby.pid}"
    assert str(ended) == "killed by SIGKILL"


STORE = "tlaunch.launcher.elastic.tcpstore"


async def test_four_ranks_meet_at_a_store_of_their_own(
    zygote: Zygote, work: Callable[..., Work], tmp_path: Path
) -> None:
    source = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        x = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(x)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
        model(torch.ones(1, 2)).sum().backward()
        print(dist.get_rank(), dist.get_world_size(), x.item(), model.module.weight.grad.tolist())
        dist.destroy_process_group()
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        store = await zygote.standby(timeout=IMPORT_SECONDS)
        logs = {"stdout": str(tmp_path / "store"), "stderr": str(tmp_path / "store")}
        store.start(work(argv=(STORE,), module=True, fds={"TLAUNCH_STORE_FD": listener.fileno()}, **logs))
    env = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "4", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    script = textwrap.dedent(source)
    outcomes = await run_each(zygote, [work(script, env={**env, "RANK": str(rank)}) for rank in range(4)])
    assert outcomes == [Outcome(f"{rank} 4 10.0 [[1.0, 1.0]]\n", "", 0) for rank in range(4)]
    assert store.state == "running"
    store.kill()
    await store.ended
    assert (tmp_path / "store").read_text() == ""
    with pytest.raises(ProcessLookupError):
        os.kill(store.pid, 0)

from __future__ import annotations

import asyncio
import functools
import json
import subprocess

import pytest

from tests.cli.conftest import Tlaunch
from tests.observe.jobs import END, JOB, KEYS, START, SWAP, fill
from tlaunch.errors import InputError, TlaunchError
from tlaunch.launcher.cli import operate
from tlaunch.launcher.cli.operate import Target
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Drain, FailSlot, KillNode, KillRank, NodeCommand, Stop
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.hosts import registry
from tlaunch.launcher.hosts.registry import RunningJob
from tlaunch.launcher.store.etcd import connect
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import KeyValue


@pytest.fixture
async def job() -> Target:
    store = MemoryStore()
    await fill(store, START, SWAP, without=("node-1",))
    return Target(store, KEYS)


async def orders(job: Target, node: str) -> list[object]:
    return [decode(NodeCommand, kv.value, kv.key) for kv in (await job.store.list(job.keys.node_commands(node))).items]


async def test_kill_a_rank_where_it_sits_now(job: Target) -> None:
    assert await operate.kill_rank(job, 4) == "job gpt-a1: rank 4 on node-3/gpu-0 is to be killed"
    assert await orders(job, "node-3") == [KillRank(4)]
    assert await orders(job, "node-2") == []


async def test_two_orders_do_not_overwrite_each_other(job: Target) -> None:
    await operate.kill_rank(job, 4)
    await operate.kill_rank(job, 4)
    assert await orders(job, "node-3") == [KillRank(4), KillRank(4)]


async def test_kill_a_gpu(job: Target) -> None:
    assert await operate.kill_gpu(job, "node-0/gpu-1") == "job gpt-a1: node-0/gpu-1 is to be reported as broken"
    assert await orders(job, "node-0") == [FailSlot(1, "reported as broken by an operator")]


async def test_kill_a_node(job: Target) -> None:
    assert await operate.kill_node(job, "node-2") == "job gpt-a1: everything on node-2 is to be killed"
    assert await orders(job, "node-2") == [KillNode()]


@pytest.mark.parametrize("name", ["node-0", "node-0/gpu-1", "node-0/1"])
async def test_drain(job: Target, name: str) -> None:
    written = name.replace("/1", "/gpu-1")
    assert await operate.drain(job, name) == f"job gpt-a1: {written} is to be drained"
    kv = await job.store.get(KEYS.drain(written))
    assert kv is not None
    assert decode(Drain, kv.value, kv.key) == Drain(written, "drained by an operator")


@pytest.mark.parametrize(
    ("act", "arg", "line"),
    [
        (operate.kill_rank, 6, "no rank 6 in job gpt-a1: expected 0 to 5"),
        (operate.kill_gpu, "node-0", "'node-0' does not name a slot: expected NODE/gpu-INDEX, such as node-03/gpu-2"),
        (operate.kill_gpu, "node-0/gpu-2", "no GPU 2 on node-0; expected 0 to 1"),
        (operate.kill_gpu, "node-9/gpu-0", "no node 'node-9' in job gpt-a1; did you mean node-3?"),
        (operate.kill_node, "nod-2", "no node 'nod-2' in job gpt-a1; did you mean node-2?"),
        (operate.kill_node, "elsewhere", "no node 'elsewhere' in job gpt-a1"),
        (operate.kill_node, "node-1", "node node-1 of job gpt-a1 is lost already"),
        (operate.drain, "node-1/gpu-0", "node node-1 of job gpt-a1 is lost already"),
        (operate.drain, "node-0/gpu-7", "no GPU 7 on node-0; expected 0 to 1"),
    ],
)
async def test_unknown_names_are_one_line_and_write_nothing(job: Target, act: object, arg: object, line: str) -> None:
    before = (await job.store.list("/")).revision
    with pytest.raises(InputError) as caught:
        await act(job, arg)  # type: ignore[operator]
    assert str(caught.value) == line
    assert (await job.store.list("/")).revision == before


async def test_a_job_that_has_ended_has_no_ranks() -> None:
    store = MemoryStore()
    await fill(store, START, END)
    with pytest.raises(InputError, match=r"^no rank 0 in job gpt-a1: it has no ranks at present$"):
        await operate.kill_rank(Target(store, KEYS), 0)


async def test_a_job_that_is_not_in_the_store() -> None:
    store = MemoryStore()
    await fill(store, START)
    with pytest.raises(InputError, match=r"^no job 'gpt-b1' in this etcd; did you mean gpt-a1\?$"):
        await Target(store, Keys("gpt-b1")).view()


async def test_the_only_job_of_a_store() -> None:
    store = MemoryStore()
    with pytest.raises(InputError, match=r"^no job is running in this etcd$"):
        await operate.only_job(store)
    await fill(store, START)
    assert await operate.only_job(store) == JOB
    await fill(store, keys=Keys("bert"))
    with pytest.raises(InputError, match=r"^several jobs are running: bert, gpt-a1; name one of them$"):
        await operate.only_job(store)


# --- stop ----------------------------------------------------------------------------------------------------------


async def asked_to_stop(job: Target) -> KeyValue:
    """Wait until the order stands in the store."""
    async with Mirror(job.store, KEYS.stop) as mirror:
        while KEYS.stop not in mirror.items:
            await mirror.changed(None)
        return mirror.items[KEYS.stop]


async def test_stop_waits_for_the_launcher_to_let_go_of_the_job(job: Target) -> None:
    await job.store.put(KEYS.launcher, b"{}")
    stopping = asyncio.create_task(operate.stop(job, 10))
    kv = await asked_to_stop(job)
    assert not stopping.done()
    assert decode(Stop, kv.value, kv.key) == Stop("stopped by an operator", 143)
    await job.store.delete(KEYS.launcher)
    assert await stopping == "job gpt-a1 has ended"


async def test_stop_waits_for_the_launcher_process_of_a_job_on_this_machine(job: Target) -> None:
    launcher = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220  started in no time
    local = RunningJob(JOB, "localhost:1", launcher.pid, registry._start_time(launcher.pid) or 0)
    stopping = asyncio.create_task(operate.stop(Target(job.store, KEYS, local), 10))
    await asked_to_stop(job)
    assert not stopping.done()
    launcher.kill()
    assert await stopping == "job gpt-a1 has ended"
    assert await operate.stop(Target(job.store, KEYS, local), 10) == "job gpt-a1 has ended"  # it was gone before
    launcher.wait()


async def test_stop_gives_up_at_its_deadline(job: Target) -> None:
    await job.store.put(KEYS.launcher, b"{}")
    with pytest.raises(TlaunchError, match=r"^job gpt-a1 was asked to stop but goes on after 0.01 s$"):
        await operate.stop(job, 0.01)


# --- the whole way, from the words to the store ----------------------------------------------------------------------


@pytest.fixture
def stored(tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A job in memory that every connection leads to."""
    store = MemoryStore()
    asyncio.run(fill(store, START, SWAP))

    async def connect(_: object) -> MemoryStore:
        return store.client()

    monkeypatch.setattr("tlaunch.launcher.store.etcd.connect", connect)
    return store


def test_a_registered_job_is_found(tlaunch: Tlaunch, stored: MemoryStore) -> None:
    with registry.register(JOB, "127.0.0.1:2379"):
        assert tlaunch("kill", "--rank", "4") == (0, "job gpt-a1: rank 4 on node-3/gpu-0 is to be killed\n", "")
        assert tlaunch("drain", "node-0")[:2] == (0, "job gpt-a1: node-0 is to be drained\n")
        assert tlaunch("kill", "--node", "node-9", "--job-id", JOB) == (
            2,
            "",
            "tlaunch: no node 'node-9' in job gpt-a1; did you mean node-3?\n",
        )
        code, out, _ = tlaunch("status", "--json")
        assert (code, json.loads(out)["generation"]) == (0, 3)
        assert "generation 3  6 ranks (dp=3,tp=2)" in tlaunch("status", JOB)[1]
    assert tlaunch("status")[0] == 2


def test_a_named_etcd_needs_no_registry(tlaunch: Tlaunch, stored: MemoryStore) -> None:
    assert tlaunch("kill", "--rank", "0", "--etcd", "a:1")[0] == 0
    assert tlaunch("status", "gpt-b1", "--etcd", "a:1") == (
        2,
        "",
        "tlaunch: no job 'gpt-b1' in this etcd; did you mean gpt-a1?\n",
    )


def test_the_connection_is_closed(tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[MemoryStore] = []

    async def connect(_: object) -> MemoryStore:
        clients.append(MemoryStore())
        return clients[-1]

    monkeypatch.setattr("tlaunch.launcher.store.etcd.connect", connect)
    assert tlaunch("status", "--etcd", "a:1") == (2, "", "tlaunch: no job is running in this etcd\n")
    with pytest.raises(TlaunchError, match="closed"):
        asyncio.run(clients[0].list("/"))


def test_an_etcd_that_cannot_be_reached_is_one_line(tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlaunch.launcher.store.etcd.connect", functools.partial(connect, timeout=1.0))
    code, out, err = tlaunch("status", "--etcd", "127.0.0.1:1")
    assert (code, out) == (2, "")
    assert err.startswith("tlaunch: no etcd member of 127.0.0.1:1 answered")
    assert err.count("\n") == 1

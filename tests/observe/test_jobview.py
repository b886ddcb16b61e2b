from __future__ import annotations

from tests.observe.jobs import END, JOB, KEYS, MACHINE, RESTART, SPEC, START, SWAP, fill, slot
from tlaunch.launcher.observe.jobview import JobView, Role, from_listing
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.topology.model import Machine, Node


async def view(store: MemoryStore, asked: Machine | None = None) -> JobView:
    return from_listing(JOB, (await store.list(KEYS.root)).items, asked)


async def test_an_empty_store_is_a_job_that_nobody_knows() -> None:
    job = await view(MemoryStore())
    assert (job.spec, job.plan, job.generation, job.leader, job.result) == (None, None, 0, None, None)
    assert job.roles == {}


async def test_everything_of_a_job_is_there() -> None:
    store = MemoryStore()
    await fill(store, START, RESTART, SWAP)
    job = await view(store)
    assert job.spec == SPEC
    assert job.machine == MACHINE
    assert job.alive == {"node-0", "node-1", "node-2", "node-3"}
    assert job.leader == "node-0"
    assert job.history == (START, RESTART, SWAP)
    assert job.plan == SWAP
    assert job.generation == 3


async def test_a_job_is_not_mixed_up_with_one_whose_id_begins_alike() -> None:
    store = MemoryStore()
    await fill(store, START)
    await fill(store, START, RESTART, keys=type(KEYS)(JOB + "-b"))
    assert (await view(store)).generation == 1


async def test_roles_while_the_job_runs() -> None:
    store = MemoryStore()
    await fill(store, START, SWAP, without=("node-1",))
    job = await view(store)
    assert dict(job.roles) == {
        slot("node-0/gpu-0"): Role("rank", 0),
        slot("node-0/gpu-1"): Role("rank", 1),
        slot("node-1/gpu-0"): Role("lost", 2),
        slot("node-1/gpu-1"): Role("lost", 3),
        slot("node-2/gpu-0"): Role("bad", reason="XID 79"),
        slot("node-2/gpu-1"): Role("rank", 5),
        slot("node-3/gpu-0"): Role("rank", 4),
        slot("node-3/gpu-1"): Role("spare"),
    }
    assert (job.count("rank"), job.count("lost"), job.count("spare"), job.count("bad")) == (4, 2, 1, 1)


async def test_roles_before_the_start() -> None:
    store = MemoryStore()
    await fill(store, without=("node-0",))
    asked = Machine((Node("node-x", 1), *MACHINE.nodes))
    job = await view(store, asked)
    assert [node.name for node in job.machine] == ["node-x", "node-0", "node-1", "node-2", "node-3"]
    assert job.roles[slot("node-x/gpu-0")] == Role("awaited")
    assert job.roles[slot("node-0/gpu-0")] == Role("awaited")
    assert job.roles[slot("node-1/gpu-0")] == Role("idle")


async def test_after_the_end_nobody_is_lost() -> None:
    store = MemoryStore()
    await fill(store, START, END, without=("node-1", "node-2"))
    job = await view(store)
    assert job.result == END.result
    assert {role.kind for role in job.roles.values()} == {"idle", "bad"}

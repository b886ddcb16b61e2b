"""What an operator does to a running job, as records in its store. The answers say what was asked for, in one line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from tlaunch.errors import InputError, TlaunchError
from tlaunch.launcher.cli.nearest import did_you_mean
from tlaunch.launcher.cli.options import StoreOptions
from tlaunch.launcher.control.layout import ROOT, Keys
from tlaunch.launcher.control.records import Drain, FailSlot, KillNode, KillRank, NodeCommand, Stop
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.hosts import registry
from tlaunch.launcher.hosts.registry import RunningJob
from tlaunch.launcher.observe.jobview import JobView, from_listing
from tlaunch.launcher.store.protocol import Store
from tlaunch.topology.model import Node, Slot

STOPPED = 143
"""The exit code of a job that an operator has stopped: as if its launcher had got SIGTERM."""

STOP_DEADLINE = 60.0
"""Seconds to wait for the end of a job that was asked to stop."""


@dataclass(frozen=True, slots=True)
class Target:
    """A job and the store it stands in. ``local``: its entry in the registry of this machine, if it was found there."""

    store: Store
    keys: Keys
    local: RunningJob | None = None

    async def view(self) -> JobView:
        """Look at the job.

        Raises:
            InputError: there is no such job in the store.
        """
        listing = await self.store.list(self.keys.root)
        job = from_listing(self.keys.job, listing.items)
        if job.spec is None:
            near = did_you_mean(self.keys.job, await _jobs(self.store))
            raise InputError(f"no job {self.keys.job!r} in this etcd{near}")
        return job


@contextlib.asynccontextmanager
async def target(given: StoreOptions, job_id: str | None) -> AsyncIterator[Target]:
    """Connect to the store of a job: the one that the options name, else the one that the job is registered with here.

    Raises:
        InputError: there is no such job, or several could be meant.
        StoreError: the store cannot be reached, or refuses us.
    """
    from tlaunch.launcher.store.etcd import connect

    local = None
    endpoints = given.endpoints(os.environ)
    if endpoints is None:
        local = registry.find(job_id)
        job_id = local.job_id
        endpoints = replace(given, etcd=local.etcd).endpoints(os.environ)
        assert endpoints is not None, "etcd is given"
    store = await connect(endpoints)
    try:
        yield Target(store, Keys(job_id if job_id is not None else await only_job(store)), local)
    finally:
        await store.close()


async def only_job(store: Store) -> str:
    """Return the id of the one job in a store.

    Raises:
        InputError: there is none, or there are several.
    """
    jobs = await _jobs(store)
    if not jobs:
        raise InputError("no job is running in this etcd")
    if len(jobs) > 1:
        raise InputError(f"several jobs are running: {', '.join(jobs)}; name one of them")
    return jobs[0]


async def _jobs(store: Store) -> list[str]:
    keys = [kv.key for kv in (await store.list(ROOT)).items]
    return sorted({key.removeprefix(ROOT).partition("/")[0] for key in keys if key.endswith("/spec")})


async def kill_rank(job: Target, rank: int) -> str:
    """Have the process of a rank killed."""
    view = await job.view()
    seats = view.plan.seats if view.plan else ()
    if rank >= len(seats):
        raise InputError(f"no rank {rank} in job {view.job_id}: {_ranks(len(seats))}")
    slot = seats[rank].slot
    await _order(job, slot.node, KillRank(rank))
    return f"job {view.job_id}: rank {rank} on {slot} is to be killed"


async def kill_gpu(job: Target, name: str) -> str:
    """Have a slot reported as broken, and what runs on it killed."""
    view = await job.view()
    slot = Slot.parse(name)
    _check_slot(view, slot)
    await _order(job, slot.node, FailSlot(slot.index, "reported as broken by an operator"))
    return f"job {view.job_id}: {slot} is to be reported as broken"


async def kill_node(job: Target, name: str) -> str:
    """Have everything on a node killed, its agent included."""
    view = await job.view()
    _node(view, name)
    await _order(job, name, KillNode())
    return f"job {view.job_id}: everything on {name} is to be killed"


async def drain(job: Target, name: str) -> str:
    """Have the ranks of a node or slot moved away."""
    view = await job.view()
    if "/" in name:
        slot = Slot.parse(name)
        _check_slot(view, slot)
        name = str(slot)
    else:
        _node(view, name)
    await job.store.put(job.keys.drain(name), encode(Drain(name, "drained by an operator")))
    return f"job {view.job_id}: {name} is to be drained"


async def stop(job: Target, deadline: float = STOP_DEADLINE) -> str:
    """Have a job ended, and wait until it has.

    Raises:
        TlaunchError: it has not ended within ``deadline`` seconds.
    """
    await job.view()
    await job.store.put(job.keys.stop, encode(Stop("stopped by an operator", STOPPED)))
    try:
        async with asyncio.timeout(deadline):
            await (_gone(job) if job.local is None else _exited(job.local))
    except TimeoutError:
        who = f"; its launcher is process {job.local.pid}" if job.local else ""
        raise TlaunchError(f"job {job.keys.job} was asked to stop but goes on after {deadline:g} s{who}") from None
    return f"job {job.keys.job} has ended"


async def _gone(job: Target) -> None:
    """Wait until the launcher has taken its key away."""
    from tlaunch.launcher.store.mirror import Mirror

    async with Mirror(job.store, job.keys.launcher) as mirror:
        while mirror.items:
            await mirror.changed(None)


async def _exited(local: RunningJob) -> None:
    """Wait until the launcher has ended; its etcd may have gone before."""
    fd = registry.launcher_fd(local)
    if fd is None:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _order(job: Target, node: str, command: NodeCommand) -> None:
    await job.store.put(job.keys.node_commands(node) + secrets.token_hex(8), encode(command))


def _node(view: JobView, name: str) -> Node:
    if name not in view.machine.by_name:
        raise InputError(f"no node {name!r} in job {view.job_id}{did_you_mean(name, view.machine.by_name)}")
    if name not in view.alive:
        raise InputError(f"node {name} of job {view.job_id} is lost already")
    return view.machine.by_name[name]


def _check_slot(view: JobView, slot: Slot) -> None:
    slots = _node(view, slot.node).slots
    if slot.index >= slots:
        raise InputError(f"no GPU {slot.index} on {slot.node}; expected 0 to {slots - 1}")


def _ranks(number: int) -> str:
    return f"expected 0 to {number - 1}" if number else "it has no ranks at present"

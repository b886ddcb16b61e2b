"""All nodes of a job on this machine: an agent for each, one zygote, and an embedded etcd unless one is given."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from tlaunch.errors import InputError
from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.zygotes import base_environment, zygote_process
from tlaunch.launcher.core.plan import Result
from tlaunch.launcher.hosts.agents import AgentProcess
from tlaunch.launcher.hosts.claim import claim
from tlaunch.launcher.hosts.registry import register
from tlaunch.launcher.hosts.request import RunRequest
from tlaunch.launcher.hosts.watch import Watch
from tlaunch.launcher.observe.events import EventLog
from tlaunch.launcher.observe.follow import Follower
from tlaunch.launcher.observe.view import View
from tlaunch.launcher.process.scratch import Scratch
from tlaunch.launcher.store.embedded import EmbeddedEtcd
from tlaunch.launcher.store.endpoints import ETCD
from tlaunch.launcher.store.etcd import connect
from tlaunch.launcher.store.protocol import Store
from tlaunch.topology.model import Node

LOOPBACK = "127.0.0.1"
SCRATCH = "tlaunch-run-"
LONGEST_SOCKET = 105
"""Bytes that the path of the zygote's socket may have: two less than in unix(7), for those of the agents' savers."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_local(request: RunRequest, view: View) -> int:
    """Run a job to its end and return the exit code.

    That is 0, the script's own, or 128 + the number of the signal that ended it. The first signal ends the job in
    order, a second one at once.

    Raises:
        TlaunchError: the job could not be started.
    """
    return asyncio.run(_LocalRun(request, view).run())


class _LocalRun:
    def __init__(self, request: RunRequest, view: View) -> None:
        self._request = request
        self._view = view
        self._timing = Timing()
        self._timing.check(request.spec)
        self._agents: list[AgentProcess] = []
        self._watch = Watch(
            Keys(request.spec.job_id),
            request.machine,
            self._agents,
            patience=self._timing.stop_grace + self._timing.request,
            request=self._timing.request,
        )

    async def run(self) -> int:
        """Start everything, watch it, and take it down again."""
        running = asyncio.create_task(self._run())
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # the user has asked for that, with nohup for example
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number, running)
        try:
            return await running
        except asyncio.CancelledError:
            if self._watch.signal is None:
                raise
            result = Result(128 + self._watch.signal, f"killed by {self._watch.signal.name}")
            self._view.close(result)
            return result.code

    def _on_signal(self, number: signal.Signals, running: asyncio.Task[int]) -> None:
        first = self._watch.signal is None
        self._watch.signal = self._watch.signal or number
        self._watch.wake.set()
        if first and self._agents:
            return
        for agent in self._agents:
            agent.kill()
        running.cancel()

    async def _run(self) -> int:
        async with contextlib.AsyncExitStack() as stack:
            try:
                store, log = await self._start(stack)
            except OSError as error:
                if error.filename is None:
                    raise
                # A place that the user has chosen: the log directory, the temporary one, or what stands in them.
                raise InputError(f"{error.filename}: {error.strerror}") from error
            result = await self._watch.run(store, Follower(self._view, log))
            await self._finish_agents()
            self._view.close(result)
            return result.code

    async def _start(self, stack: contextlib.AsyncExitStack) -> tuple[Store, EventLog]:
        """Start everything that the job needs; the stack ends it in reverse order."""
        request = self._request
        env = base_environment(os.environ, len(request.machine.slots))
        scratch = Scratch(SCRATCH)
        stack.callback(scratch.remove)
        zygote = _socket_in(scratch.path)
        await stack.enter_async_context(zygote_process(zygote, env, request.log_dir / "zygote.log", self._view.notice))
        etcd, endpoints = None, request.endpoints
        if endpoints is None:
            etcd = await stack.enter_async_context(EmbeddedEtcd(request.log_dir))
            endpoints = etcd.endpoints
        store = await connect(endpoints)
        stack.push_async_callback(store.close)
        if etcd is not None:
            stack.callback(asyncio.create_task(self._mind(etcd, store)).cancel)
        stack.enter_context(register(request.spec.job_id, endpoints.environment()[ETCD]))
        await stack.enter_async_context(claim(store, self._watch.keys, request.spec, self._timing, self._watch.fail))
        # Only now that the id is ours: the file could be that of the job that has it.
        log = stack.enter_context(EventLog(request.log_dir, self._view.notice))
        stack.push_async_callback(self._finish_agents)
        for node in request.machine:
            await self._start_agent(node, {**env, **endpoints.environment()}, zygote)
        return store, log

    async def _mind(self, etcd: EmbeddedEtcd, store: Store) -> None:
        """Nothing that the job still needs outlives its own etcd, and nobody need wait for its answers."""
        self._watch.fail(f"the embedded etcd has ended: {await etcd.ended()}")
        await store.close()

    async def _start_agent(self, node: Node, env: dict[str, str], zygote: str) -> None:
        request = self._request
        config = AgentConfig(
            job=request.spec.job_id,
            node=node,
            discover=request.discover,
            host=LOOPBACK,
            log_dir=request.log_dir,
            zygote=zygote,
            start=request.start,
            policy=request.policy,
            lifeline=None,
            module=request.module,
            argv=request.argv,
        )
        agent = AgentProcess(config, env, self._view, self._watch.wake.set)
        self._agents.append(agent)
        await agent.start()

    async def _finish_agents(self) -> None:
        """Wait until all agents have ended. They do not by themselves where the store has told them of no result."""
        if not self._watch.agents_know:
            for agent in self._agents:
                agent.terminate()
        grace = self._timing.stop_grace + self._timing.saver + self._timing.reap
        await asyncio.gather(*(agent.finish(grace, self._timing.reap) for agent in self._agents))


def _socket_in(folder: Path) -> str:
    path = folder / "zygote"
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        raise InputError(f"{path}: too long for a socket, which takes {LONGEST_SOCKET} bytes; set a shorter TMPDIR")
    return str(path)

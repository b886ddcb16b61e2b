"""All nodes of a job on this machine: an embedded etcd unless one is given, one zygote for all, an agent for each node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Stop
from tlaunch.launcher.control.snapshot import View as Reader
from tlaunch.launcher.control.spawn import ZygoteProcess
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.core.plan import Result
from tlaunch.launcher.hosts.agents import AgentProcess
from tlaunch.launcher.hosts.claim import claim
from tlaunch.launcher.hosts.registry import register
from tlaunch.launcher.hosts.request import RunRequest
from tlaunch.launcher.observe.events import EventLog
from tlaunch.launcher.observe.follow import Follower
from tlaunch.launcher.observe.jobview import read
from tlaunch.launcher.observe.view import View
from tlaunch.launcher.store.embedded import EmbeddedEtcd
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.launcher.store.etcd import connect
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Store, StoreError

LOOPBACK = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_local(request: RunRequest, view: View) -> int:
    """Run a job to its end and return the exit code: 0, the script's own, or 128 + the number of the signal that ended it.

    The first signal ends the job in order, a second one at once.

    Raises:
        TlaunchError: the job could not be started.
    """
    return asyncio.run(_LocalRun(request, view).run())


class _LocalRun:
    def __init__(self, request: RunRequest, view: View) -> None:
        self._request = request
        self._view = view
        self._timing = Timing()
        self._keys = Keys(request.spec.job_id)
        self._agents: list[AgentProcess] = []
        self._wake = asyncio.Event()
        self._signal: int | None = None
        self._task: asyncio.Task[int] | None = None

    async def run(self) -> int:
        """Start everything, watch it, and take it down again."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            async with contextlib.AsyncExitStack() as stack:
                return await self._run(stack)
        except asyncio.CancelledError:
            if self._signal is None:
                raise
            self._view.close(Result(128 + self._signal, f"killed by {signal.Signals(self._signal).name}"))
            return 128 + self._signal

    async def _run(self, stack: contextlib.AsyncExitStack) -> int:
        request = self._request
        base = _environment(request)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tlaunch-"))
        zygote = str(Path(folder) / "zygote")
        await stack.enter_async_context(ZygoteProcess(zygote, base, request.log_dir / "zygote.log"))
        endpoints = request.endpoints
        if endpoints is None:
            etcd = await stack.enter_async_context(EmbeddedEtcd(request.log_dir / "etcd.log"))
            endpoints = etcd.endpoints
        store = await connect(endpoints)
        stack.push_async_callback(store.close)
        stack.enter_context(register(request.spec.job_id, ",".join(endpoints.hosts)))
        await stack.enter_async_context(claim(store, self._keys, request.spec, self._timing))
        stack.push_async_callback(self._finish_agents)
        await self._start_agents({**base, **endpoints.environment()}, zygote)
        result = await self._watch(store)
        await self._finish_agents()
        self._view.close(result)
        return result.code

    async def _start_agents(self, env: Mapping[str, str], zygote: str) -> None:
        request = self._request
        for node in request.machine:
            config = AgentConfig(
                job=request.spec.job_id,
                node=node,
                host=LOOPBACK,
                log_dir=request.log_dir,
                zygote=zygote,
                start=request.start,
                policy=request.policy,
                module=request.module,
                argv=request.argv,
            )
            agent = AgentProcess(config, env, self._view, self._wake.set)
            self._agents.append(agent)
            await agent.start()

    async def _watch(self, store: Store) -> Result:
        """Follow the job until it has a result, all agents are gone, or a stop that was asked for takes too long."""
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        gone: set[str] = set()
        async with Mirror(store, self._keys.root) as mirror, contextlib.AsyncExitStack() as stack:
            follower = Follower(self._view, stack.enter_context(EventLog(self._request.log_dir)))
            reader = Reader(self._keys, mirror.items)
            pump = asyncio.create_task(self._pump(mirror))
            stack.callback(pump.cancel)
            while True:
                self._wake.clear()
                job = read(reader, self._request.machine)
                follower.look(job)
                if job.result is not None:
                    return job.result
                self._notice_ends(gone, started=job.plan is not None)
                if len(gone) == len(self._agents):
                    return Result(1, f"every agent has ended; the last words of {self._agents[-1].name}: {self._last_words()}")
                if self._signal is not None and deadline is None:
                    deadline = loop.time() + self._timing.stop_grace + self._timing.request
                    await self._request_stop(store, self._signal)
                if deadline is not None and self._signal is not None and loop.time() >= deadline:
                    name = signal.Signals(self._signal).name
                    return Result(128 + self._signal, f"stopped by {name}; no controller answered in time")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await self._wake.wait()

    async def _pump(self, mirror: Mirror) -> None:
        while True:
            await mirror.changed(None)
            self._wake.set()

    def _notice_ends(self, gone: set[str], *, started: bool) -> None:
        """Tell of agents that have ended. Before there is a plan, that is the end: the job would wait for their nodes in vain."""
        for agent in self._agents:
            if agent.code is None or agent.name in gone:
                continue
            gone.add(agent.name)
            if not started:
                raise AgentFailed(agent)
            self._view.notice(f"the agent of {agent.name} has ended ({_ending(agent.code)})")

    async def _request_stop(self, store: Store, number: int) -> None:
        name = signal.Signals(number).name
        self._view.notice(f"{name}: stopping; once more to kill everything at once")
        try:
            await store.put(self._keys.stop, encode(Stop(f"stopped by {name}", 128 + number)))
        except StoreError as error:
            self._view.notice(str(error))

    def _last_words(self) -> str:
        return self._agents[-1].last_words() if self._agents else ""

    async def _finish_agents(self) -> None:
        grace = self._timing.stop_grace + self._timing.reap
        await asyncio.gather(*(agent.finish(grace) for agent in self._agents))

    def _on_signal(self, number: int) -> None:
        if self._signal is None and self._agents:
            self._signal = number
            self._wake.set()
        else:
            self._signal = self._signal or number
            for agent in self._agents:
                agent.kill()
            if self._task is not None:
                self._task.cancel()


class AgentFailed(TlaunchError):
    """An agent ended before the job had begun."""

    def __init__(self, agent: AgentProcess) -> None:
        super().__init__(f"{agent.name}: {agent.last_words() or _ending(agent.code)}")
        self.exit_code = agent.code if agent.code and agent.code > 0 else 1


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _environment(request: RunRequest) -> dict[str, str]:
    """Return what workers inherit. Several of them on one machine get one thread each unless the user says otherwise, as
    under torchrun; the zygote must have that before it imports torch."""
    env = dict(os.environ)
    if len(request.machine.slots) > 1:
        env.setdefault("OMP_NUM_THREADS", "1")
    return env

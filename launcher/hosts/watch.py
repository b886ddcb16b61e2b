"""Watching a job from the launcher until it has a result."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.membership import JobGone
from tlaunch.launcher.control.records import Stop
from tlaunch.launcher.control.snapshot import View as Reader
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.core.plan import Result
from tlaunch.launcher.hosts.agents import AgentProcess
from tlaunch.launcher.observe.follow import Follower
from tlaunch.launcher.observe.jobview import JobView, from_listing, read
from tlaunch.launcher.observe.view import View
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Store, StoreError
from tlaunch.topology.model import Machine


class AgentFailed(TlaunchError):
    """An agent ended before the job had begun."""

    def __init__(self, agent: AgentProcess) -> None:
        super().__init__(f"{agent.name}: {agent.last_words() or agent.ending}")
        self.exit_code = agent.code if agent.code and agent.code > 0 else 1


@dataclass
class Watch:
    """One job under watch. ``wake`` is set by whoever has news: the mirror, an agent's end, a signal, ``fail``.

    ``patience``: seconds that a stop which was asked for may take before the launcher goes on without an answer.
    ``request``: seconds that one request to the store may take.
    ``agents_know``: the store has told them of the result, so that they end by themselves.
    """

    keys: Keys
    machine: Machine
    agents: Sequence[AgentProcess]
    patience: float
    request: float
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    signal: signal.Signals | None = None
    agents_know: bool = False
    _failure: str | None = None
    _in_reach: bool = True
    _asked_at: float | None = None
    _gone: set[str] = field(default_factory=set)

    def fail(self, reason: str) -> None:
        """End the watch: the job cannot come to a result any more."""
        self._failure = self._failure or reason
        self.wake.set()

    async def run(self, store: Store, follower: Follower) -> Result:
        """Follow the job until it has a result, no agent is left, a stop takes too long, or ``fail`` is called.

        Raises:
            AgentFailed: an agent ended before there was a plan; the job would wait for its node in vain.
        """
        async with Mirror(store, self.keys.root) as mirror:
            reader = Reader(self.keys, mirror.items)
            pump = asyncio.create_task(self._pump(mirror))
            try:
                while True:
                    self.wake.clear()
                    self._tell_of_contact(mirror, follower.view)
                    job = read(reader, self.machine)
                    if self._deserted(job):
                        job = await self._latest(store) or job
                    follower.look(job)
                    result = self._result(job, follower.view)
                    if result is not None:
                        return result
                    deadline = await self._stop_on_signal(store, follower)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(deadline):
                            await self.wake.wait()
            finally:
                pump.cancel()
                await asyncio.wait([pump])

    async def _pump(self, mirror: Mirror) -> None:
        """Wake the watch by what the mirror brings, also by its end: when the store refuses us for example."""
        try:
            while True:
                await mirror.changed(None)
                if self.keys.spec not in mirror.items:
                    self.fail(str(JobGone(self.keys)))
                self.wake.set()
        except StoreError as error:
            self.fail(str(error))

    def _tell_of_contact(self, mirror: Mirror, view: View) -> None:
        in_reach = mirror.in_contact_since is not None
        if in_reach != self._in_reach:
            self._in_reach = in_reach
            view.notice("etcd is in reach again" if in_reach else "etcd is out of reach: the ranks go on without help")

    def _deserted(self, job: JobView) -> bool:
        """Whether the job, as far as the mirror knows, has lost the agents that it cannot do without."""
        ended = [agent.code is not None for agent in self.agents]
        return job.result is None and self._failure is None and (all(ended) or (job.plan is None and any(ended)))

    async def _latest(self, store: Store) -> JobView | None:
        """Read the job from the store itself; ``None`` when that cannot be done in time.

        An agent's end and the result that it ended for come by different ways. The result may be the later one, for
        example when the launcher was stopped (Ctrl-Z) while the job ended.
        """
        try:
            listing = await store.list(self.keys.root, timeout=self.request)
        except StoreError:
            return None
        return from_listing(self.keys.job, listing.items, self.machine)

    def _result(self, job: JobView, view: View) -> Result | None:
        if job.result is not None:
            self.agents_know = True
            return job.result
        if self._failure is not None:
            return Result(1, self._failure)
        for agent in self.agents:
            if agent.code is None or agent.name in self._gone:
                continue
            if job.plan is None:
                raise AgentFailed(agent)
            self._gone.add(agent.name)
            view.notice(f"the agent of {agent.name} has ended: {agent.ending}")
        if len(self._gone) == len(self.agents):
            last = self.agents[-1]
            return Result(1, f"every agent has ended before the job had a result; {last.name}: {last.last_words()}")
        if self.signal is not None and not job.alive and job.plan is None:
            return Result(128 + self.signal, f"stopped by {self.signal.name} before any node had registered")
        if self.signal is not None and self._asked_at is not None:
            now = asyncio.get_running_loop().time()
            if now >= self._asked_at + self.patience:
                return Result(128 + self.signal, f"stopped by {self.signal.name}; no controller answered in time")
        return None

    async def _stop_on_signal(self, store: Store, follower: Follower) -> float | None:
        """Ask the controller to end the job, once; returns until when (loop time) it has to answer."""
        if self.signal is None:
            return None
        if self._asked_at is None:
            self._asked_at = asyncio.get_running_loop().time()
            follower.view.notice(f"{self.signal.name}: stopping; once more to kill everything at once")
            try:
                await store.put(self.keys.stop, encode(Stop(f"stopped by {self.signal.name}", 128 + self.signal)))
            except StoreError as error:
                follower.view.notice(str(error))
        return self._asked_at + self.patience

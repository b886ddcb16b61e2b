"""Some of the agents of a job, in one process: real in everything but that their slots run nothing.

    python simulated_agents.py --etcd HOST:PORT --job ID --nodes N --first I --count M [--slots 4] [--lease 4]

Agents ``I`` to ``I + M - 1`` of a job of ``N`` nodes, each with a store client and a connection of its own. The program
takes orders as JSON lines on standard input and answers on standard output; times are ``time.monotonic()``, which all
processes of a machine share. The first answer is ``{"said": "ready"}``.

=======================================  ===========================================================================
order                                    effect
=======================================  ===========================================================================
``{"do": "start"}``                      each agent connects, registers and takes part; when the last one has
                                         connected: ``{"said": "connected", "at": t}``
``{"do": "fail", "node": n, "slot": i}`` the slot is reported bad: ``{"said": "fault", "at": t}``
``{"do": "kill", "node": n}``            the agent is gone, without a word to anybody: ``{"said": "fault", "at": t}``
``{"do": "end"}``                        all end, at once
=======================================  ===========================================================================

``{"said": "applied", "generation": g, "known": t, "at": t, "acks": n}`` says that all agents here that live have
applied generation g: when the last of them learned of it, and when it had done so.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import astuple

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.participant import Participant
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.records import Registration, Rendezvous, Report
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.launcher.store.etcd import EtcdStore, connect_and_get
from tlaunch.launcher.store.watch import Patience
from tlaunch.topology.model import Node

RACK = 18
"""Nodes to a rack, each of which is one NVLink domain, as in a GB200 NVL72."""


def say(**fields: str | float) -> None:
    """Answer with one line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


class SimulatedSlots:
    """Slots that would run what the assignment asks for, if they ran anything."""

    def __init__(self, applied: Callable[[int], None]) -> None:
        self.known: dict[int, float] = {}
        self.done: dict[int, float] = {}
        self.changed: Callable[[], None] = lambda: None
        self._applied = applied
        self._generation = 0
        self._running: dict[int, AssignedSeat] = {}
        self._exits: dict[int, Exit] = {}
        self._bad: dict[int, str] = {}

    @property
    def report(self) -> Report:
        return Report(self._generation, dict(self._exits), dict(self._bad))

    @property
    def busy(self) -> bool:
        return bool(self._running)

    async def yield_stale(self, head: Generation, assignment: Assignment) -> None:
        self.known.setdefault(head.number, time.monotonic())
        if head.number != self._generation:
            self._generation = head.number
            self._exits.clear()
        self._running = {seat.index: seat for seat in self._running.values() if seat in assignment.seats}

    def to_start(self, assignment: Assignment) -> tuple[AssignedSeat, ...]:
        return tuple(
            seat for seat in assignment.seats if seat.index not in self._running and seat.index not in self._bad
        )

    async def start(self, head: Generation, assignment: Assignment, place: Rendezvous) -> None:
        self._running |= {seat.index: seat for seat in self.to_start(assignment)}

    async def warm(self, assignment: Assignment | None) -> None:
        """Note that everything before the standbys has been done."""
        self.done.setdefault(self._generation, time.monotonic())
        self._applied(self._generation)

    def kill(self, rank: int, *, trial: bool = False) -> bool:
        return False

    def fail(self, index: int, reason: str) -> None:
        self._bad[index] = reason
        self._running.pop(index, None)
        self.changed()

    def give_up(self, seats: Iterable[AssignedSeat], error: Exception) -> None:
        raise AssertionError(f"nothing is started here that could fail: {error}")


class NoVenue:
    """A place to meet for ranks that do not exist."""

    over = False

    async def open(self, generation: int, over: Callable[[], object]) -> Rendezvous:
        return Rendezvous("127.0.0.1", 29500)

    def close(self) -> None:
        pass


class SimulatedAgent:
    """One agent: what ``tlaunch.launcher.control`` does, without zygote, processes and output."""

    def __init__(
        self, endpoints: Endpoints, job: str, node: Node, timing: Timing, applied: Callable[[int], None]
    ) -> None:
        self.node = node
        self.slots = SimulatedSlots(applied)
        self._endpoints = endpoints
        self._job = job
        self._timing = timing
        self._listener = Listener(uuid.uuid4().hex)
        self._address = ""
        self._store: EtcdStore | None = None
        self._spec: JobSpec
        self.running: asyncio.Task[None] | None = None

    async def _connect(self) -> None:
        """Connect to the store, as an agent does before it warms its standbys."""
        self._address = await self._listener.open("127.0.0.1")
        scale = self._timing.lease / Timing().lease
        patience = Patience(*(scale * seconds for seconds in astuple(Patience())))
        self._store, found = await connect_and_get(
            self._endpoints, Keys(self._job).spec, timeout=60.0, patience=patience
        )
        assert found is not None, "the job has no spec"
        self._spec = decode(JobSpec, found.value, found.key)

    def start(self, connected: Callable[[], None]) -> None:
        """Do what an agent does whose standbys are warm."""
        self.running = asyncio.create_task(self._run(connected), name=self.node.name)
        self.running.add_done_callback(_fail)

    async def die(self) -> None:
        """Be gone, and leave everything in the store to the lease."""
        assert self.running is not None
        self.running.cancel()
        await asyncio.wait([self.running])

    async def _run(self, connected: Callable[[], None]) -> None:
        await self._connect()
        assert self._store is not None
        connected()
        try:
            participant = Participant(
                self._store,
                Registration(self.node, "simulated", os.getpid(), self._listener.incarnation, self._address),
                self._spec,
                Policy(),
                slots=self.slots,
                venue=NoVenue(),
                timing=self._timing,
            )
            self.slots.changed = participant.report_due
            await participant.take_part()
        finally:
            await self._listener.close()
            await self._store.close()


class Agents:
    """All agents of this process."""

    def __init__(self, given: argparse.Namespace) -> None:
        timing = Timing(lease=given.lease, gap=given.lease * 0.6)
        endpoints = Endpoints(hosts=(given.etcd,))
        self._told = 0
        self._connected = 0
        self._looking = False
        self._agents = {
            node.name: SimulatedAgent(endpoints, given.job, node, timing, self._applied)
            for node in (node_of(index, given.slots) for index in range(given.first, given.first + given.count))
        }

    async def obey(self) -> None:
        """Take orders until the end."""
        loop = asyncio.get_running_loop()
        say(said="ready")
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            match order["do"]:
                case "start":
                    for agent in self._agents.values():
                        agent.start(self._one_connected)
                case "fail":
                    say(said="fault", at=time.monotonic())
                    self._agents[order["node"]].slots.fail(order["slot"], "simulated")
                case "kill":
                    say(said="fault", at=time.monotonic())
                    await self._agents.pop(order["node"]).die()
                    self._applied(0)
                case _:
                    return

    def _one_connected(self) -> None:
        self._connected += 1
        if self._connected == len(self._agents):
            say(said="connected", at=time.monotonic())

    def _applied(self, _: int) -> None:
        """Look soon whether all have applied something new: once, when many say so together."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(0.01, self._look)

    def _look(self) -> None:
        self._looking = False
        everybody = [agent.slots for agent in self._agents.values()]
        generation = min(max(slots.done, default=0) for slots in everybody)
        if generation > self._told:
            self._told = generation
            known = max(min(at for number, at in slots.known.items() if number >= generation) for slots in everybody)
            done = max(min(at for number, at in slots.done.items() if number >= generation) for slots in everybody)
            say(said="applied", generation=generation, known=known, at=done)


def _fail(agent: asyncio.Task[None]) -> None:
    """End the process when an agent fails: whoever measures would wait for it in vain."""
    if not agent.cancelled() and (error := agent.exception()) is not None:
        logging.error("agent %s: %s", agent.get_name(), error)  # noqa: LOG015
        os._exit(1)


def node_of(index: int, slots: int) -> Node:
    """Return a node of the simulated machine."""
    rack = f"rack-{index // RACK:04d}"
    return Node(f"node-{index:05d}", slots, rack, rack)


async def run(given: argparse.Namespace) -> None:
    """Be the agents, then leave without ceremony: ten thousand of them need a while to say goodbye."""
    await Agents(given).obey()


def main() -> None:
    """Take orders."""
    parser = argparse.ArgumentParser(description="Simulated agents of one job.")
    parser.add_argument("--etcd", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--lease", type=float, default=4.0)
    parser.add_argument("--profile")
    given = parser.parse_args()
    logging.basicConfig(level=os.environ.get("LL", "WARNING"), stream=sys.stderr, format="%(created)f %(message)s")
    # A full collection looks at every object of the process: at those of hundreds of agents, which in truth have a
    # process each. The others go on.
    gc.set_threshold(*gc.get_threshold()[:2], 1_000_000)
    profile = cProfile.Profile() if given.profile else None
    if profile:
        profile.enable()
    with asyncio.Runner() as runner:
        runner.run(run(given))
        if profile:
            profile.disable()
            profile.dump_stats(given.profile)
        os._exit(0)


if __name__ == "__main__":
    main()

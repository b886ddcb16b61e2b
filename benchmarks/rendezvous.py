"""How the agents of a large job find together, learn of a swap, and get over the loss of their controller.

    python benchmarks/rendezvous.py [--agents 18,128,1024,4096] [--repeats N] [--peers 18,128] [--json FILE]

The agents are real in everything but that their slots run nothing: the real store client, each with a connection of its
own, and the real logic of agents and controller, against one real etcd on this machine (``benchmarks/scripts/
simulated_agents.py``). They share as many processes as there are cores, and those cores with etcd.

``start``: from the order to start, before anybody has connected, until every agent has applied the first plan.
``rest``: two seconds in which nothing happens.
``swap``: one slot is reported bad; until the last agent knows of the next plan, and has applied it. ``controller``: the
leading agent is gone without a word, and its lease has to run out; until another has been elected, has committed a plan
without the lost node, and every agent has applied that. Store operations are etcd's own counts. Processor time is that
of etcd and of all agents; it says more than the clock where a machine is not quiet.

What the agents share, and agents on machines of their own do not: the interpreters, in which full garbage collections
are switched off, as they would walk through what hundreds of agents hold; the cores, with etcd; and the moment at which
all of them start.

Leases are 4 s, as in real jobs, up to 512 agents, and longer beyond that: to stay alive each agent talks to etcd all
the time, and here all of them share the cores of one machine. ``--lease`` sets them.

The peer is torchrun's dynamic rendezvous on its C10d store, with a thread for each node, in one process of the
installed torch: from the order to join until every node has its rank. It has 20 s for that, and a size that it has
not managed once is not tried again. Nor are jobs of more than 2,048 agents repeated, unless ``--repeats`` says so. That
makes 5 minutes in all.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Leader
from tlaunch.launcher.core.assign import Assignment
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store import EmbeddedEtcd, connect
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Store
from tlaunch.topology.mesh import Mesh

SCRIPTS = Path(__file__).parent / "scripts"
SLOTS = 4
RACK = 18
DEADLINE = 60.0
PEER_DEADLINE = 20.0
ONCE = 2048
"""Jobs of more agents are run once."""
REPEATS = 3
PHASES = ("start", "rest", "swap", "controller")
REST = 2.0
"""Seconds in which nothing happens, before the swap."""

COUNTERS = {
    "writes": "etcd_mvcc_put_total",
    "written": "etcd_debugging_mvcc_total_put_size_in_bytes",
    "reads": "etcd_mvcc_range_total",
    "transactions": "etcd_mvcc_txn_total",
    "received": "etcd_network_client_grpc_received_bytes_total",
    "sent": "etcd_network_client_grpc_sent_bytes_total",
    "keepalives": 'grpc_server_msg_received_total{grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease"',
    "sent on watches": 'grpc_server_msg_received_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch"',
    "etcd, CPU s": "process_cpu_seconds_total",
}


@dataclass(slots=True)
class Round:
    """One run with so many agents. Times in seconds, sizes in bytes."""

    agents: int
    lease: float
    times: dict[str, float] = field(default_factory=dict)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """One rendezvous of torchrun; ``seconds`` is ``None`` when it did not come about in time."""

    nodes: int
    seconds: float | None


class Metrics:
    """What etcd counts."""

    def __init__(self, host: str) -> None:
        self._url = f"http://{host}/metrics"

    async def read(self) -> dict[str, float]:
        text = await asyncio.to_thread(self._fetch)
        return {
            name: sum(map(float, re.findall(rf"^{re.escape(counter)}(?:[,{{].*}})? (\S+)$", text, re.MULTILINE)))
            for name, counter in COUNTERS.items()
        }

    def _fetch(self) -> str:
        with urllib.request.urlopen(self._url, timeout=10) as answer:  # noqa: S310 - our own etcd
            text: str = answer.read().decode()
        return text


class Herd:
    """The processes of the agents."""

    def __init__(self, etcd: str, job: str, agents: int, lease: float, profile: str | None) -> None:
        shares = min(agents, os.cpu_count() or 1)
        self._parts = list(itertools.pairwise(agents * index // shares for index in range(shares + 1)))
        self._common = ["--etcd", etcd, "--job", job, "--slots", str(SLOTS), "--lease", str(lease)]
        self._profile = profile
        self._processes: list[asyncio.subprocess.Process] = []

    async def open(self) -> None:
        for first, end in self._parts:
            own = ["--first", str(first), "--count", str(end - first)]
            profile = ["--profile", f"{self._profile}.{first}"] if self._profile else []
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, str(SCRIPTS / "simulated_agents.py"), *self._common, *own, *profile),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            )
        for process in self._processes:
            await self._hear(process, "ready")

    async def close(self) -> None:
        for process in self._processes:
            self._tell(process, {"do": "end"})
        for process in self._processes:
            await process.wait()

    async def start(self) -> float:
        """Let all agents start, and return when the last one has connected."""
        for process in self._processes:
            self._tell(process, {"do": "start"})
        return max([float((await self._hear(process, "connected"))["at"]) for process in self._processes])

    def cpu(self) -> float:
        """Return how many seconds the processes have kept cores busy."""
        return sum(map(_cpu_seconds, self._processes))

    async def fault(self, order: dict[str, Any]) -> float:
        """Give the order to whoever has the node, and return when it was carried out."""
        index = int(order["node"].removeprefix("node-"))
        position = next(number for number, (first, end) in enumerate(self._parts) if first <= index < end)
        self._tell(self._processes[position], order)
        said = await self._hear(self._processes[position], "fault")
        return float(said["at"])

    async def applied(self, generation: int) -> tuple[float, float]:
        """Wait until everybody has applied a generation; return when the last one knew and when it had done so."""
        known, done = [], []
        for process in self._processes:
            while (said := await self._hear(process, "applied"))["generation"] < generation:
                pass
            known.append(said["known"])
            done.append(said["at"])
        return max(known), max(done)

    @staticmethod
    def _tell(process: asyncio.subprocess.Process, order: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")

    @staticmethod
    async def _hear(process: asyncio.subprocess.Process, what: str) -> dict[str, Any]:
        assert process.stdout is not None
        while True:
            line = await process.stdout.readline()
            if not line:
                raise SystemExit(f"the simulated agents have ended before they said {what!r}")
            said: dict[str, Any] = json.loads(line)
            if said["said"] == what:
                return said


def _cpu_seconds(process: asyncio.subprocess.Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spec_of(job: str, agents: int) -> JobSpec:
    """Return a job with one tensor-parallel group to a node and 2 spare nodes to a rack."""
    spare = max(1, agents // RACK * 2)
    return JobSpec(job, agents, spare * SLOTS, Mesh.parse(f"dp={agents - spare},tp={SLOTS}"))


async def measure(agents: int, folder: Path, lease: float | None, profile: str | None) -> Round:
    """Run one job."""
    lease = lease or max(4.0, agents / 128)
    result = Round(agents, lease)
    job = f"herd-{agents}"
    keys = Keys(job)
    async with EmbeddedEtcd(folder) as etcd, asyncio.timeout(DEADLINE + agents / 20):
        host = etcd.endpoints.hosts[0]
        store = await connect(etcd.endpoints)
        herd = Herd(host, job, agents, lease, profile)
        metrics = Metrics(host)
        try:
            await store.put(keys.spec, encode(spec_of(job, agents)))
            await herd.open()
            async with Mirror(store, keys.leader, keys.generation) as heads:
                await start(result, herd, metrics)
                await swap(result, herd, metrics, await leader(store, keys))
                await until_it_has_ranks(store, herd, heads, keys)
                await loss(result, herd, metrics, heads, keys)
        finally:
            if not {*PHASES} <= {*result.counts}:
                print(f"{agents} agents, as far as it went: {result}", file=sys.stderr)
            await herd.close()
            await store.close()
    return result


async def start(result: Round, herd: Herd, metrics: Metrics) -> None:
    """Measure until all have applied the first plan."""
    async with counted(result, "start", herd, metrics):
        begun = time.monotonic()
        connected = await herd.start()
        _, done = await herd.applied(1)
    result.times["start: all connected"] = connected - begun
    result.times["start: all assigned"] = done - begun


async def swap(result: Round, herd: Herd, metrics: Metrics, controller: str) -> None:
    """Measure what a bad slot leads to."""
    node = next(name for name in ("node-00001", "node-00002") if name != controller)
    async with counted(result, "rest", herd, metrics):
        await asyncio.sleep(REST)
    async with counted(result, "swap", herd, metrics):
        at = await herd.fault({"do": "fail", "node": node, "slot": 1})
        known, done = await herd.applied(2)
    result.times["swap: all know"] = known - at
    result.times["swap: all applied"] = done - at


async def loss(result: Round, herd: Herd, metrics: Metrics, heads: Mirror, keys: Keys) -> None:
    """Measure what the end of the controller's agent leads to."""
    old = heads.items[keys.leader]
    generation = heads.items[keys.generation].mod_revision
    async with counted(result, "controller", herd, metrics):
        at = await herd.fault({"do": "kill", "node": decode(Leader, old.value, keys.leader).node})
        while (new := heads.items.get(keys.leader, old)).create_revision == old.create_revision:
            await heads.changed(None)
        result.times["controller: elected"] = time.monotonic() - at
        while heads.items[keys.generation].mod_revision == generation:
            await heads.changed(None)
        assert new.value != old.value
        result.times["controller: committed"] = time.monotonic() - at
        _, done = await herd.applied(3)
    result.times["controller: all applied"] = done - at


async def until_it_has_ranks(store: Store, herd: Herd, heads: Mirror, keys: Keys) -> None:
    """Lose controllers on nodes without ranks: nobody needs another plan because of them."""
    while True:
        node = await leader(store, keys)
        given = await store.get(keys.assign(node))
        if given is not None and decode(Assignment, given.value, given.key).seats:
            return
        old = heads.items[keys.leader].create_revision
        await herd.fault({"do": "kill", "node": node})
        while keys.leader not in heads.items or heads.items[keys.leader].create_revision == old:
            await heads.changed(None)


@asynccontextmanager
async def counted(result: Round, what: str, herd: Herd, metrics: Metrics) -> AsyncIterator[None]:
    """Note what etcd counts meanwhile, and how much of the cores is used."""
    busy, before = herd.cpu(), await metrics.read()
    yield
    after = await metrics.read()
    result.counts[what] = {name: after[name] - before[name] for name in after} | {"agents, CPU s": herd.cpu() - busy}


async def leader(store: Store, keys: Keys) -> str:
    """Return the node of the controller."""
    found = await store.get(keys.leader)
    assert found is not None
    return decode(Leader, found.value, keys.leader).node


async def peer(nodes: int) -> Peer:
    """Let torchrun's rendezvous find together."""
    command = [sys.executable, str(SCRIPTS / "c10d_rendezvous.py"), "--nodes", str(nodes)]
    command += ["--deadline", str(PEER_DEADLINE)]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(DEADLINE):  # torch has to be imported, and all connected
            said, _ = await process.communicate(b"go\n")
    except TimeoutError:
        process.kill()
        await process.wait()
        return Peer(nodes, None)
    lines = said.splitlines()
    return Peer(nodes, json.loads(lines[-1])["seconds"] if len(lines) == 2 else None)


def show(rounds: Iterable[Round], peers: Iterable[Peer]) -> None:
    """Print medians (and ranges) for each number of agents."""
    by_agents: dict[int, list[Round]] = {}
    for each in rounds:
        by_agents.setdefault(each.agents, []).append(each)
    table = Table("", *map(str, by_agents), title=f"simulated agents, median (range), {os.cpu_count()} cores")
    first = next(iter(by_agents.values()))[0]
    table.add_row("lease, s", *(f"{some[0].lease:g}" for some in by_agents.values()))
    for what in first.times:
        cells = ([each.times[what] for each in some] for some in by_agents.values())
        table.add_row(f"{what}, s", *(f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in cells))
    for phase, counters in first.counts.items():
        for name in counters:
            counts = (statistics.median(each.counts[phase][name] for each in some) for some in by_agents.values())
            table.add_row(
                f"{phase}: {name}",
                *(f"{value:,.2f}" if name.endswith("CPU s") else f"{value:,.0f}" for value in counts),
            )
    Console().print(table)
    theirs: dict[int, list[Peer]] = {}
    for one in peers:
        theirs.setdefault(one.nodes, []).append(one)
    table = Table("nodes", "seconds", title="torchrun's c10d rendezvous, median (range)")
    for nodes, found in theirs.items():
        times = [one.seconds for one in found if one.seconds is not None]
        never = (
            [f"not within {PEER_DEADLINE:g}: {len(found) - len(times)} of {len(found)}"]
            if len(times) < len(found)
            else []
        )
        took = [f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"] if times else []
        table.add_row(str(nodes), "; ".join(took + never))
    if theirs:
        Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how simulated agents find together.")
    parser.add_argument("--agents", default="18,128,1024,4096", help="numbers of agents, separated by commas")
    parser.add_argument("--peers", default="18,128", help="numbers of nodes for torchrun's rendezvous")
    parser.add_argument("--repeats", type=int, help=f"of each size; default: {REPEATS}, 1 beyond {ONCE} agents")
    parser.add_argument("--lease", type=float, help="seconds, instead of what the number of agents asks for")
    parser.add_argument("--json", type=Path, help="also write every single measurement to this file")
    parser.add_argument("--profile", help="write cProfile statistics of the agents' processes to FILE.N")
    given = parser.parse_args()
    # Each agent takes a few descriptors, and so does etcd for it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rounds: list[Round] = []
    peers: list[Peer] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(given.repeats or REPEATS):
            rounds += [
                asyncio.run(measure(agents, Path(folder), given.lease, given.profile))
                for agents in numbers(given.agents)
                if given.repeats or not repeat or agents <= ONCE
            ]
            hopeless = {each.nodes for each in peers if each.seconds is None}
            peers += [asyncio.run(peer(nodes)) for nodes in numbers(given.peers) if nodes not in hopeless]
            if given.json:
                found = {"agents": [asdict(each) for each in rounds], "peers": [asdict(each) for each in peers]}
                given.json.write_text(json.dumps(found, indent=1) + "\n")
    show(rounds, peers)


def numbers(text: str) -> list[int]:
    """Read numbers that are separated by commas."""
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    main()

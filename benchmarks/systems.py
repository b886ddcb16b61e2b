"""The launchers that are measured side by side: how each runs a script, and what of its own recovery it shows."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from measuring import BIN, Family, lines_of

HOST = "127.0.0.1"
PORT_SECONDS = 60.0
LOGGED_AT = "%Y-%m-%d %H:%M:%S,%f"
LAST_CALL = "--rdzv-conf=lastcall_timeout=5"


@dataclass
class Job:
    """A running job: ``nodes`` of ``slots`` each, of which one node is spare if there are more than one."""

    family: Family
    folder: Path
    script: tuple[str, ...]
    nodes: int
    slots: int

    @property
    def active(self) -> int:
        """Nodes that shall have ranks."""
        return max(1, self.nodes - 1)


@dataclass(frozen=True)
class System:
    """A launcher of torchrun's kind: one agent for each node, started by hand.

    ``peer``: it lives in the environment of the peers. ``noticed``: what it prints when it has noticed.
    """

    name: str
    program: str
    peer: bool = False
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    noticed: str = r"failed \(exitcode"

    def start(self, job: Job, bin_folder: Path) -> None:
        """Start every node; the first hosts the store, where there is one."""
        endpoint = f"{HOST}:{free_port()}"
        for node in range(job.nodes):
            command = (
                str(bin_folder / self.program),
                f"--nnodes={job.active}",
                f"--nproc-per-node={job.slots}",
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint={endpoint}",
                "--rdzv-id=recovery",
                "--max-restarts=3",
                "--monitor-interval=0.1",
                *self.options,
                *job.script,
            )
            job.family.start(command, {**self.env, "BENCHMARK_NODE": str(node)}, job.folder, branch=str(node))
            if node == 0 and job.nodes > 1:
                wait_for_port(endpoint)

    def kill_node(self, job: Job, node: str, pids: Sequence[int]) -> float:
        """Kill everything on a node, its ranks ``pids`` among them; returns when."""
        members = list(job.family.members(node))
        at = time.monotonic()
        for pid in members:
            os.kill(pid, signal.SIGKILL)
        return at

    def may_lose(self, job: Job, node: str) -> bool:
        """Whether the job is meant to survive the loss of a node: not of the one that hosts the store."""
        return node != "0"

    def phases(self, job: Job, killed: float) -> dict[str, float]:
        """Return when what happened after ``killed``, as far as the launcher shows it."""
        at = job.family.first_line(self.noticed, killed)
        return {} if at is None else {"noticed": at}


@dataclass(frozen=True)
class DLRover(System):
    """Its ``--standalone`` crashes with torch 2.13, so its master is started here.

    It has no spare nodes: all of them have ranks, and the job goes on with fewer. By default its master waits a minute
    for a lost node; it is given a shorter time here.
    """

    def start(self, job: Job, bin_folder: Path) -> None:
        port = free_port()
        name = f"recovery-{job.family.name[:8]}"
        master = ("-u", "-m", "dlrover.python.master.main", "--port", str(port), "--node_num", str(job.nodes))
        where = ("--job_name", name, "--platform", "local")
        job.family.start((str(bin_folder / "python"), *master, *where), {}, job.folder, branch="master")
        wait_for_port(f"{HOST}:{port}")
        for node in range(job.nodes):
            env = {
                "DLROVER_MASTER_ADDR": f"{HOST}:{port}",
                "ELASTIC_JOB_NAME": name,
                "NODE_ID": str(node),
                "NODE_RANK": str(node),
                "NODE_NUM": str(job.nodes),
                "BENCHMARK_NODE": str(node),
            }
            nodes = ("--nnodes=1",) if job.nodes == 1 else (f"--nnodes={job.active}:{job.nodes}", LAST_CALL)
            options = (*nodes, f"--nproc-per-node={job.slots}", "--max-restarts=3", "--monitor-interval=0.1")
            command = (str(bin_folder / self.program), *options, *self.options, *job.script)
            job.family.start(command, env, job.folder, branch=str(node))


@dataclass(frozen=True)
class Tlaunch(System):
    """One launcher starts all agents. ``lose_controller``: let the node that is lost be the controller's."""

    lose_controller: bool = False

    def start(self, job: Job, bin_folder: Path) -> None:
        options = (f"--nodes={job.nodes}", f"--gpus-per-node={job.slots}", f"--log-dir={job.folder / 'logs'}")
        spares = f"--spares={job.slots * (job.nodes - job.active)}"
        env = {"XDG_RUNTIME_DIR": str(job.folder)}
        job.family.start((str(BIN / self.program), *options, spares, *job.script), env, job.folder)

    def kill_node(self, job: Job, node: str, pids: Sequence[int]) -> float:
        agent = next(pid for pid in job.family.members() if f"--node={node}".encode() in command_line(pid))
        at = time.monotonic()
        for pid in (agent, *pids):
            with contextlib.suppress(ProcessLookupError):  # a rank dies with its agent
                os.kill(pid, signal.SIGKILL)
        return at

    def may_lose(self, job: Job, node: str) -> bool:
        leaders = [(at, text.split()[1]) for at, text in self._logs(job) if text.endswith("is the controller")]
        return (max(leaders)[1] == node) == self.lose_controller

    def phases(self, job: Job, killed: float) -> dict[str, float]:
        """``noticed``: by the agent that the rank belonged to, or by the controller. ``decided``: the plan is there."""
        told = re.compile(r"rank \d+ has ended|does not answer")
        noticed = [at for at, text in self._logs(job) if at > killed and told.search(text)]
        wall = time.time() - time.monotonic()
        plans = [line["time"] - wall for line in lines_of(job.folder / "logs" / "events.jsonl")]
        decided = [at for at in plans if at > killed]
        return {**({"noticed": min(noticed)} if noticed else {}), **({"decided": min(decided)} if decided else {})}

    def _logs(self, job: Job) -> Iterator[tuple[float, str]]:
        """Yield what the agents have logged, with the time by the monotonic clock."""
        wall = time.time() - time.monotonic()
        for path in (job.folder / "logs" / "agents").glob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                fields = line.split(" ", 4)
                with contextlib.suppress(ValueError):  # a line of a traceback
                    at = dt.datetime.strptime(" ".join(fields[:2]), LOGGED_AT).astimezone()
                    yield at.timestamp() - wall, fields[-1]


def command_line(pid: int) -> list[bytes]:
    """Return the words of a process's command line; none when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for_port(endpoint: str) -> None:
    """Wait until somebody listens there."""
    host, _, port = endpoint.partition(":")
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), 1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


CURE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
FT = ("--term-timeout=5", "--workers-stop-timeout=5", "--ignore-missing-fault-tol-cfg")
SYSTEMS = (
    Tlaunch("tlaunch", "tlaunch"),
    Tlaunch("tlaunch, controller's node", "tlaunch", lose_controller=True),
    System("torchrun", "torchrun"),
    System("torchrun, cured", "torchrun", env={CURE: "1"}),
    System("ft_launcher", "ft_launcher", peer=True, options=FT),
    DLRover("DLRover", "dlrover-run", peer=True),
)

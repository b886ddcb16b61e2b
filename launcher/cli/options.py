"""Every option of the command line, declared once. Defaults that depend on other options are applied in ``request``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from tlaunch.launcher.cli.flags import choice, flag, positional, rest, switch, whole
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.topology.model import Scope
from tlaunch.topology.spares import SpareRequest

MACHINE = "Machine"
JOB = "Job"
RECOVERY = "Recovery"
STORE = "Store"


def spare_request(word: str) -> int | SpareRequest:
    """Read how many slots to keep spare: a plain number where it is one."""
    request = SpareRequest.read(word)
    return request.count if request == SpareRequest(request.count) else request


SPARES_HELP = "GPUs kept spare: in all, in each rack (or domain, pod), or whole nodes (default: 0)."
MESH = ("dp=N,tp=N@domain,...", "Parallel dimensions, the last fastest; @LEVEL to stay within (default: dp=all).")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Which etcd to use."""

    etcd: str | None = flag(
        "--etcd", "ENDPOINTS", "etcd to use, HOST:PORT,...; without one tlaunch runs its own.", panel=STORE
    )
    etcd_user: str | None = flag(
        "--etcd-user", "NAME", "User; the password is taken from TLAUNCH_ETCD_PASSWORD.", panel=STORE
    )
    etcd_cacert: str | None = flag("--etcd-cacert", "FILE", "Certificate that etcd's must be signed by.", panel=STORE)
    etcd_cert: str | None = flag("--etcd-cert", "FILE", "Our certificate.", panel=STORE)
    etcd_key: str | None = flag("--etcd-key", "FILE", "The key of our certificate.", panel=STORE)

    def endpoints(self, env: Mapping[str, str]) -> Endpoints | None:
        """Combine the flags with the environment; ``None`` when neither names an etcd.

        Raises:
            InputError: they do not fit together.
        """
        return Endpoints.given(
            self.etcd, env=env, user=self.etcd_user, cacert=self.etcd_cacert, cert=self.etcd_cert, key=self.etcd_key
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(StoreOptions):
    """``tlaunch [OPTIONS] SCRIPT [ARGS...]``: what was given, ``None`` where nothing was."""

    nodes: int | None = flag("--nodes", "N", "Nodes to run on (default: 1).", whole(1), panel=MACHINE)
    gpus_per_node: int | None = flag(
        "--gpus-per-node", "N", "Ranks that fit on a node (default: its GPUs, else 1).", whole(1), panel=MACHINE
    )
    spares: int | SpareRequest | None = flag(  # noqa: RUF009  as dataclasses.field
        "--spares", "N|N/rack|Nn", SPARES_HELP, spare_request, panel=MACHINE
    )
    topology: str | None = flag(
        "--topology",
        "FILE|NAME|auto",
        "The machine: a YAML file, a known one such as nvl72, synthetic:racks=2,nodes=18,gpus=4, "
        "or auto: each node finds out where it is.",
        panel=MACHINE,
    )
    mesh: str | None = flag("--mesh", *MESH, panel=JOB)
    strict: bool = switch(
        "--strict", "Do not start when a level of --mesh or the --spares cannot be had.", panel=JOB, in_file=True
    )
    job_id: str | None = flag("--job-id", "ID", "Name of the job (default: script and a random end).", panel=JOB)
    log_dir: str | None = flag("--log-dir", "DIR", "Where logs go (default: tlaunch-logs/JOB).", panel=JOB)
    start: Literal["fork", "fresh"] | None = flag(
        "--start",
        "fork|fresh",
        "Fork ranks from a warm process, or start fresh interpreters (default: fork).",
        choice("fork", "fresh"),
        panel=JOB,
    )
    config: str | None = flag(
        "--config", "FILE", "YAML file with any of these options; flags win.", panel=JOB, in_file=False
    )
    module: bool = switch("-m", "SCRIPT is the name of a module, as in python -m.", panel=JOB)
    max_restarts: int | None = flag(
        "--max-restarts",
        "N",
        "Failures of the script itself that are forgiven, replaced hardware aside (default: 3).",
        whole(0),
        panel=RECOVERY,
    )
    swap_scope: Scope | None = flag(  # noqa: RUF009  as dataclasses.field: the field is what it makes
        "--swap-scope",
        "node|domain|rack|any",
        "How far a rank may move to a spare (default: rack).",
        choice("node", "domain", "rack", "any"),
        panel=RECOVERY,
    )
    min_world: int | None = flag(
        "--min-world", "N", "Fewest ranks to shrink to (default: one replica).", whole(1), panel=RECOVERY
    )
    hang_timeout: int | None = flag(
        "--hang-timeout",
        "SECONDS",
        "How long no rank may print or get further before one counts as hung; 0 is for ever (default: 0).",
        whole(0),
        panel=RECOVERY,
    )
    policy: str | None = flag(
        "--policy", "MODULE:CLASS", "Your own policy on failures (default: the ladder).", panel=RECOVERY
    )
    version: bool = switch("--version", "Show the version and exit.")
    help: bool = switch("--help", "Show this page and exit.")
    script: str | None = positional("SCRIPT", "The training script.")
    args: tuple[str, ...] = rest("ARGS", "Everything after SCRIPT belongs to it.")

    def over(self, config: RunOptions) -> RunOptions:
        """Return these options, completed with what stands in a configuration file.

        What to run is taken from one place as a whole: a script given here does not get the arguments of another.
        """
        unset = {field.name for field in fields(self) if getattr(self, field.name) is None}
        if self.script is None:
            unset |= {"args", "module"}
        return replace(self, strict=self.strict or config.strict, **{name: getattr(config, name) for name in unset})


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOptions(StoreOptions):
    """``tlaunch status``."""

    json: bool = switch("--json", "Print one JSON object.")
    job: str | None = positional("JOB", "The job's id; may be left out when only one is running here.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOptions(StoreOptions):
    """``tlaunch stop``."""

    job: str | None = positional("JOB", "The job's id; may be left out when only one is running here.")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions(StoreOptions):
    """The flag that commands share whose words name something else than a job."""

    job_id: str | None = flag("--job-id", "ID", "The job; may be left out when only one is running here.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOptions(JobOptions):
    """``tlaunch drain``."""

    target: str | None = positional("NODE|GPU", "A node, or a GPU such as node-03/gpu-2.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KillOptions(JobOptions):
    """``tlaunch kill``."""

    rank: int | None = flag("--rank", "R", "Kill the process of this rank; --max-restarts does not count it.", whole(0))
    gpu: str | None = flag("--gpu", "NODE/gpu-I", "Report this GPU as broken and kill what runs on it.")
    node: str | None = flag("--node", "NODE", "Kill everything on this node, its agent included.")

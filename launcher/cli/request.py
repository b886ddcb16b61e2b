"""From what the user gave to what is to be started: defaults, and every check that needs nothing to run."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from tlaunch.errors import InputError
from tlaunch.launcher.cli.options import RunOptions
from tlaunch.launcher.cli.script import check_module, check_script
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.hosts.request import RunRequest
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine
from tlaunch.topology.placement import place
from tlaunch.topology.spares import SpareRequest
from tlaunch.topology.yamltree import is_name

LOGS = "tlaunch-logs"
AUTO = "auto"
"""In place of a topology: each agent finds out where its node is."""


def build(given: RunOptions, env: Mapping[str, str]) -> RunRequest:
    """Turn options into a request. The log directory is made last, when everything else has been found good.

    Raises:
        InputError: what is wrong with which option, and what was expected.
    """
    argv = _argv(given)
    machine = machine_of(given.topology, given.nodes, given.gpus_per_node)
    spares = given.spares or 0
    mesh = mesh_of(given.mesh, machine, spares)
    if given.strict and given.topology != AUTO:  # else it is known when the nodes have registered
        place(machine, mesh, spares, strict=True)
    min_world = given.min_world if given.min_world is not None else mesh.replica_size
    if min_world > mesh.size:
        raise InputError(f"--min-world {min_world}: the job has {mesh.size} ranks; expected at most that many")
    job_id = given.job_id if given.job_id is not None else _new_job_id(argv[0], module=given.module)
    if not is_name(job_id):
        raise InputError(
            f"--job-id {job_id!r}: expected at most 128 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    if given.policy is not None:
        _check_policy(given.policy)
    spec = JobSpec(
        job_id=job_id,
        nodes=len(machine.nodes),
        spares=total_of(spares, machine),
        spread=spares if isinstance(spares, SpareRequest) else None,
        strict=given.strict,
        mesh=mesh,
        script=argv[0],
        max_restarts=given.max_restarts if given.max_restarts is not None else 3,
        swap_scope=given.swap_scope or "rack",
        min_world=min_world,
        hang_timeout=float(given.hang_timeout or 0),
    )
    return RunRequest(
        spec=spec,
        machine=machine,
        discover=given.topology == AUTO,
        argv=argv,
        module=given.module,
        start=given.start or "fork",
        policy=given.policy,
        endpoints=given.endpoints(env),
        log_dir=_log_dir(Path(given.log_dir or Path(LOGS) / job_id)),
    )


def _argv(given: RunOptions) -> tuple[str, ...]:
    if given.script is None:
        what = "module" if given.module else "script"
        raise InputError(f"no {what} given; expected tlaunch [OPTIONS] SCRIPT [ARGS...], see tlaunch --help")
    if given.module:
        check_module(given.script)
    else:
        check_script(given.script)
    return (given.script, *given.args)


def machine_of(topology: str | None, nodes: int | None, gpus_per_node: int | None) -> Machine:
    """Return the nodes to run on: 1 of them unless told otherwise, with the GPUs that they are known to have.

    Raises:
        TopologyError: the description is wrong or too small.
    """
    from tlaunch.topology.files import default_machine, load

    if topology == AUTO:
        return _found_here(nodes or 1, gpus_per_node)
    if topology is not None:
        return load(topology).machine(nodes or 1, gpus_per_node)
    if gpus_per_node is None:
        from tlaunch.topology.discover.nvml import gpu_count

        gpus_per_node = gpu_count() or 1
    return default_machine(nodes or 1, gpus_per_node)


def _found_here(nodes: int, gpus_per_node: int | None) -> Machine:
    """Return nodes that stand where this machine does, as far as anybody knows: all their agents run on it."""
    from tlaunch.topology.discover.gather import discover, placed
    from tlaunch.topology.files import default_machine

    found = discover(alone=True)
    slots = gpus_per_node or found.node(found.nodes[0]).slots
    return Machine(tuple(placed(node, found) for node in default_machine(nodes, slots)))


def total_of(spares: int | SpareRequest, machine: Machine) -> int:
    """Return how many slots are to be spare in all."""
    return spares if isinstance(spares, int) else spares.total(machine)


def mesh_of(text: str | None, machine: Machine, spares: int | SpareRequest) -> Mesh:
    """Return the mesh of a job that leaves ``spares`` slots of a machine free; all ranks along ``dp`` when not given.

    A plain number of spares and the mesh have to account for every slot. Where each region keeps some, or whole nodes
    are kept, what is left over is spare as well.

    Raises:
        InputError: it does not fit; the message says what would.
    """
    slots, kept = len(machine.slots), total_of(spares, machine)
    world = slots - kept
    if world < 1:
        most = f"expected at most {slots - 1}" if isinstance(spares, int) else f"that is {kept}; expected fewer"
        raise InputError(f"--spares {spares}: the machine has {_slots(machine)}; {most}")
    if text is None:
        return Mesh.flat(world)
    mesh = Mesh.parse(text)
    if mesh.size > world or (mesh.size < world and isinstance(spares, int)):
        left = f"{_slots(machine)} less {kept} spare{'s' * (kept != 1)} leave {world}"
        raise InputError(f"--mesh {mesh}: needs {mesh.size} ranks, but {left}; {_what_fits(mesh, world, slots)}")
    return mesh


def _what_fits(mesh: Mesh, world: int, slots: int) -> str:
    replicas, rest = divmod(world, mesh.replica_size)
    if replicas and not rest and mesh.replicas > 1:
        return f"expected --mesh {mesh.resized(replicas)}"
    if mesh.size <= slots:
        return f"expected --spares {slots - mesh.size}, or a mesh of {world}"
    return f"expected a mesh of {world}, or {mesh.size - world} slots more"


def _slots(machine: Machine) -> str:
    """Write ``72 slots (18 nodes x 4)``."""
    nodes, slots = len(machine.nodes), len(machine.slots)
    sizes = {node.slots for node in machine.nodes}
    shape = f"{nodes} node{'s' * (nodes != 1)}" + (f" x {sizes.pop()}" if len(sizes) == 1 else "")
    return f"{slots} slot{'s' * (slots != 1)} ({shape})"


def _new_job_id(target: str, *, module: bool) -> str:
    name = target.rpartition(".")[2] if module else Path(target).stem
    readable = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:60]
    return f"{readable or 'job'}-{secrets.token_hex(3)}"


def _check_policy(policy: str) -> None:
    """Make one now: what an agent would only find out after everything has been started."""
    from tlaunch.launcher.control.policies import load_policy

    load_policy(policy)


def _log_dir(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--log-dir {path}: cannot make the directory: {error.strerror}") from None
    return path.absolute()

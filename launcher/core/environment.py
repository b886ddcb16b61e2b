"""The environment of a rank: torchrun's contract, complete, and a little of our own."""

from __future__ import annotations

from collections.abc import Mapping

from tlaunch.errors import InputError
from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.topology.model import Node, Slot

VISIBLE = "CUDA_VISIBLE_DEVICES"

ROLE = "default"
"""torchrun's default of ``--role``. There is one role, so that the ranks in it are the ranks in the job."""


def worker_environment(
    base: Mapping[str, str],
    *,
    generation: Generation,
    assignment: Assignment,
    seat: AssignedSeat,
    node: Node,
    master: tuple[str, int],
    job_id: str,
    error_file: str,
    gpus: bool,
) -> dict[str, str]:
    """Return what the process of ``seat`` finds in ``os.environ``: ``base`` and what torchrun would set.

    ``master``: host and port at which this generation's store listens. ``gpus``: the node's slots are its GPUs, in the
    order in which ``base`` shows them. Raises ``InputError`` when ``base`` shows fewer GPUs than the node has slots.
    """
    host, port = master
    env = dict(base)
    env |= {
        "RANK": str(seat.rank),
        "WORLD_SIZE": str(generation.world_size),
        "LOCAL_RANK": str(seat.local_rank),
        "LOCAL_WORLD_SIZE": str(len(assignment.seats)),
        "GROUP_RANK": str(assignment.group_rank),
        "GROUP_WORLD_SIZE": str(generation.group_world_size),
        "ROLE_NAME": ROLE,
        "ROLE_RANK": str(seat.rank),
        "ROLE_WORLD_SIZE": str(generation.world_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        # How often workers were started again, for whatever reason: scripts look for their checkpoint when it is not 0.
        "TORCHELASTIC_RESTART_COUNT": str(generation.number - 1),
        "TORCHELASTIC_MAX_RESTARTS": str(generation.max_restarts),
        "TORCHELASTIC_RUN_ID": job_id,
        # The store at MASTER_ADDR:MASTER_PORT is there already: rank 0 must connect to it like all others, not listen.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": error_file,
        "TLAUNCH_JOB_ID": job_id,
        "TLAUNCH_GENERATION": str(generation.number),
        "TLAUNCH_SLOT": str(Slot(node.name, seat.index)),
    }
    env.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if node.slots > 1:
        # As torchrun does for several ranks on a node. By its slots, not by the ranks of the moment: one that is left
        # alone on its node would take all cores from then on, and add up its floats in another order.
        env.setdefault("OMP_NUM_THREADS", "1")
    if gpus:
        devices = visible_devices(base.get(VISIBLE), node, assignment)
        if devices is not None:
            env[VISIBLE] = devices
    return env


def visible_devices(inherited: str | None, node: Node, assignment: Assignment) -> str | None:
    """Return the node's GPUs in an order in which number ``LOCAL_RANK`` is the rank's slot; ``None``: as they are.

    The slots of the ranks come first, in the order of local ranks, then the others. ``inherited`` is the list that the
    agent was started with (indices or UUIDs); slot ``i`` is the ``i``-th of it.
    """
    devices = [str(index) for index in range(node.slots)]
    if inherited is not None:
        devices = [device.strip() for device in inherited.split(",") if device.strip()]
    if len(devices) < node.slots:
        raise InputError(
            f"{node.name}: {VISIBLE}={inherited!r} shows {len(devices)} GPUs, expected {node.slots} or more"
        )
    first = [seat.index for seat in assignment.seats]
    order = first + [index for index in range(len(devices)) if index not in first]
    if order == sorted(order):
        return inherited
    return ",".join(devices[index] for index in order)

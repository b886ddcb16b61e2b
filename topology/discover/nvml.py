"""The GPUs of this node, as the NVIDIA driver sees them through NVML. Makes no CUDA context."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from tlaunch.topology.discover.gpus import mig, read_gpus
from tlaunch.topology.discover.library import DriverError, NoDriver, driver
from tlaunch.topology.discover.report import Coordinates, Gpu, Report, fail
from tlaunch.topology.discover.visible import VARIABLE, visible

LOG = logging.getLogger(__name__)


def gpu_count(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return how many GPUs a process on this node can use, ``None`` when there is none or no driver.

    Respects ``CUDA_VISIBLE_DEVICES`` as CUDA does. Never raises: a driver that is there but does not work counts as
    none and is logged as one warning.
    """
    present = _present()
    if not present:
        return None
    listed = environ.get(VARIABLE)
    return (present if listed is None else _visible(listed, present)) or None


def report(node: str, environ: Mapping[str, str] = os.environ) -> Report:
    """Say what this node's driver knows: its GPUs, how many of them can be used, and the NVLink domain.

    Where the NVLink fabric ends at the node, the domain is the node itself, if NVLink joins all of its GPUs.

    Raises:
        TopologyError: two GPUs have one uuid, or one that is to be used is cut into parts (MIG).
    """
    try:
        with driver() as pynvml:
            gpus, notes = read_gpus(pynvml)
            shown, more = visible(environ.get(VARIABLE), gpus)
            for gpu in shown:
                if mig(pynvml, gpu):
                    fail(
                        "nvml",
                        node,
                        f"gpu {gpu.index}",
                        f"is cut into parts (MIG); expected whole GPUs: nvidia-smi -i {gpu.index} -mig 0",
                    )
    except NoDriver as error:
        return Report("nvml", "this node", notes=(str(error),))
    except DriverError as error:
        return Report("nvml", "this node", notes=(f"{error}, so no GPU is used; try nvidia-smi",))
    faults = tuple(f"gpu {gpu.index}: {gpu.fault}" for gpu in gpus if gpu.fault)
    usable = [gpu for gpu in shown if gpu.uuid is not None]
    if not gpus:
        return Report("nvml", "this node", notes=("a driver without GPUs",))
    domain, why = _domain(node, usable)
    return Report(
        "nvml",
        "this node",
        {node: Coordinates(domain=domain, slots=len(usable) or None)},
        {node: gpus},
        (*notes, *more, *faults, *why),
    )


def _domain(node: str, gpus: Sequence[Gpu]) -> tuple[str | None, tuple[str, ...]]:
    """Return the NVLink domain of a node from those of its GPUs, and why there is none."""
    cliques = sorted({gpu.clique for gpu in gpus if gpu.clique is not None})
    if len(cliques) == 1:
        return cliques[0], ()
    if cliques:
        return None, (
            f"its GPUs are in {len(cliques)} NVLink domains ({', '.join(cliques)}): it is in none as a whole",
        )
    indices = {gpu.index for gpu in gpus}
    joined = len(gpus) > 1 and all(indices <= {gpu.index, *gpu.peers} for gpu in gpus)
    return (node if joined and not any(gpu.unsettled for gpu in gpus) else None), ()


def _present() -> int:
    try:
        with driver() as pynvml:
            return int(pynvml.nvmlDeviceGetCount())
    except NoDriver:
        return 0
    except DriverError as error:
        LOG.warning("%s, so no GPU is used; try nvidia-smi", error)
        return 0


def _visible(listed: str, present: int) -> int:
    """Count what ``CUDA_VISIBLE_DEVICES`` lists: up to the first that does not exist, none if one stands twice."""
    devices: list[str] = []
    for device in (part.strip() for part in listed.split(",")):
        exists = int(device) < present if device.isdecimal() else device.startswith(("GPU-", "MIG-"))
        if not exists:
            break
        devices.append(device)
    return len(devices) if len(set(devices)) == len(devices) else 0

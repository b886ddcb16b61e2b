"""The NVLink fabric beyond the node: which GPUs of other nodes NVLink reaches, ``ClusterUUID.CliqueID``."""

from __future__ import annotations

import uuid
from ctypes import byref
from dataclasses import dataclass
from typing import Any

from tlaunch.topology.discover.library import code


@dataclass(frozen=True, slots=True)
class Fabric:
    """What one GPU knows about the fabric.

    ``clique``: its NVLink domain, ``None`` when it is in none or does not know yet. ``unsettled``: there is a fabric,
    but the GPU is in no domain of it. ``note``: why, where that is worth telling. ``fault``: why its links cannot be
    used.
    """

    clique: str | None = None
    unsettled: bool = False
    note: str | None = None
    fault: str | None = None


def fabric(pynvml: Any, device: Any) -> Fabric:  # noqa: ANN401  ctypes
    """Ask a GPU for its fabric. A driver or GPU that knows none gives ``Fabric()``.

    Raises:
        pynvml.NVMLError: the GPU is lost.
    """
    info = _info(pynvml, device)
    if info is None or info.state == pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return Fabric()
    if info.state != pynvml.NVML_GPU_FABRIC_STATE_COMPLETED:
        waiting = {pynvml.NVML_GPU_FABRIC_STATE_NOT_STARTED: "has not started"}.get(info.state, "is in progress")
        note = f"its registration with the NVLink fabric {waiting}: the domain is not known yet"
        return Fabric(unsettled=True, note=note)
    if info.status != pynvml.NVML_SUCCESS:
        note = f"its registration with the NVLink fabric has failed (NVML error {info.status})"
        return Fabric(unsettled=True, note=note)
    return _completed(pynvml, info)


def _info(pynvml: Any, device: Any) -> Any:  # noqa: ANN401
    """Return the newest structure that the driver and this pynvml both know, ``None`` when there is none."""
    ways = (
        ("nvmlDeviceGetGpuFabricInfo_v4", "c_nvmlGpuFabricInfo_v4_t"),
        ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t"),
        ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t"),
    )
    for function, structure in ways:
        ask, form = getattr(pynvml, function, None), getattr(pynvml, structure, None)
        if ask is None or form is None:  # an older pynvml
            continue
        info = form()
        try:
            ask(device, byref(info))
        except pynvml.NVMLError as error:
            if code(error) in {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED}:
                raise
            continue  # an older driver, or a GPU without a fabric
        return info
    return None


def _completed(pynvml: Any, info: Any) -> Fabric:  # noqa: ANN401
    cluster = uuid.UUID(bytes=bytes(info.clusterUuid))
    fault = _fault(pynvml, info)
    if not cluster.int:
        return Fabric(fault=fault)  # a fabric manager of this node alone: NVLink ends at the node
    cliques = _cliques(pynvml, info)
    if not cliques:
        return Fabric(unsettled=True, note="it is in an NVLink fabric but in no clique of it", fault=fault)
    note = None
    if len(cliques) > 1:
        note = f"it is in {len(cliques)} cliques ({', '.join(map(str, cliques))}); the lowest is taken"
    return Fabric(f"{cluster}.{cliques[0]}", note=note, fault=fault)


def _cliques(pynvml: Any, info: Any) -> list[int]:  # noqa: ANN401
    """Return the cliques whose memory the GPU can reach by pointer, lowest first. From v4 on there may be several."""
    if not hasattr(info, "cliques"):
        return [int(info.cliqueId)]
    listed = list(info.cliques)[: int(info.numCliques)]
    kind = getattr(pynvml, "NVML_GPU_FABRIC_CLIQUE_TYPE_UNICAST_POINTER", 0)
    return sorted({int(clique.id) for clique in listed if clique.type == kind})


def _fault(pynvml: Any, info: Any) -> str | None:  # noqa: ANN401
    unhealthy = getattr(pynvml, "NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY", 2)
    if getattr(info, "healthSummary", 0) == unhealthy:
        return "its NVLink fabric is unhealthy"
    shift = getattr(pynvml, "NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ROUTE_UNHEALTHY", 4)
    width = getattr(pynvml, "NVML_GPU_FABRIC_HEALTH_MASK_WIDTH_ROUTE_UNHEALTHY", 0x3)
    if (int(info.healthMask) >> shift) & width == 1:
        return "an NVLink route of it is unhealthy"
    return None

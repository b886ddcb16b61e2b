"""The GPUs of this node, as the NVIDIA driver sees them through NVML. Makes no CUDA context."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

LOG = logging.getLogger(__name__)


def gpu_count(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return how many GPUs a process on this node can use, ``None`` when there is none or no driver.

    Respects ``CUDA_VISIBLE_DEVICES`` as CUDA does. Never raises: a driver that is there but does not work counts as
    none and is logged as one warning.
    """
    present = _present()
    if not present:
        return None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return (present if visible is None else _visible(visible, present)) or None


def _present() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetCount())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}:
            return 0  # no driver: the usual machine without GPUs
        LOG.warning("the NVIDIA driver does not work (NVML: %s), so no GPU is used; try nvidia-smi", error)
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

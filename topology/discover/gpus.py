"""The GPUs of this node, one by one, as the driver sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tlaunch.topology.discover.fabric import fabric
from tlaunch.topology.discover.health import fault_of
from tlaunch.topology.discover.library import code, unless
from tlaunch.topology.discover.report import Gpu
from tlaunch.topology.model import TopologyError


def read_gpus(pynvml: Any) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:  # noqa: ANN401  a module
    """Return all GPUs by index, and what people should know. One that does not answer has a ``fault``.

    Raises:
        TopologyError: two GPUs have one uuid.
        pynvml.NVMLError: the driver does not work.
    """
    gpus: list[Gpu] = []
    devices: dict[int, Any] = {}
    notes: list[str] = []
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        try:
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu, note = _read(pynvml, index, device)
        except pynvml.NVMLError as error:
            gpus.append(Gpu(index, fault=fault_of(pynvml, code(error), str(error))))
            continue
        devices[index] = device
        gpus.append(gpu)
        notes += [f"gpu {index}: {note}"] if note else []
    _check_unique(gpus)
    return tuple(replace(gpu, peers=_peers(pynvml, gpu.index, devices)) for gpu in gpus), tuple(notes)


def mig(pynvml: Any, gpu: Gpu) -> bool:  # noqa: ANN401
    """Tell whether a GPU is cut into parts (MIG)."""
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
        return bool(pynvml.nvmlDeviceGetMigMode(device)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError:
        return False


def _read(pynvml: Any, index: int, device: Any) -> tuple[Gpu, str | None]:  # noqa: ANN401
    known = fabric(pynvml, device)
    ecc = unless(None, pynvml.nvmlDeviceGetCurrentEccMode, device)
    gpu = Gpu(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(device)),
        pci=_pci(pynvml, device),
        name=unless(None, pynvml.nvmlDeviceGetName, device),
        clique=known.clique,
        unsettled=known.unsettled,
        ecc=None if ecc is None else bool(ecc),
        fault=known.fault,
    )
    return gpu, known.note


def _pci(pynvml: Any, device: Any) -> str | None:  # noqa: ANN401
    info = unless(None, pynvml.nvmlDeviceGetPciInfo, device)
    if info is None:
        return None
    address = info.busId
    return address.decode("ascii", "replace") if isinstance(address, bytes) else str(address)


def _peers(pynvml: Any, index: int, devices: dict[int, Any]) -> tuple[int, ...]:  # noqa: ANN401
    """Return the other GPUs of the node that NVLink reaches, over switches too."""
    if index not in devices:
        return ()
    found = []
    for other, device in devices.items():
        if other == index:
            continue
        try:
            status = pynvml.nvmlDeviceGetP2PStatus(devices[index], device, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        except pynvml.NVMLError:
            continue
        if status == pynvml.NVML_P2P_STATUS_OK:
            found.append(other)
    return tuple(found)


def _check_unique(gpus: list[Gpu]) -> None:
    first: dict[str, int] = {}
    for gpu in gpus:
        if gpu.uuid is not None and first.setdefault(gpu.uuid, gpu.index) != gpu.index:
            raise TopologyError(
                f"nvml: gpu {gpu.index}: uuid: {gpu.uuid} is that of gpu {first[gpu.uuid]} too; "
                "expected a uuid of its own for each GPU"
            )

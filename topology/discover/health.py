"""Whether GPUs can be used: what the driver says of each, and the XID errors that it reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tlaunch.topology.discover.fabric import fabric
from tlaunch.topology.discover.library import DriverError, code, driver, unless

FALLEN_OFF = 79
"""The XID of a GPU that has fallen off the bus."""
PROGRAM_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""XIDs that a faulty program causes on a sound GPU; NVIDIA's device plugin leaves them out in the same way."""


@dataclass(frozen=True, slots=True)
class Health:
    """The state of one GPU. ``reason`` says what is wrong and is ``None`` when it is ``ok``.

    ``uncorrected``: memory errors that ECC could not correct since the driver was loaded; ``None`` without ECC. By
    themselves they are no fault where the GPU replaces broken rows (Ampere and later): there the rows count.
    """

    index: int
    ok: bool
    reason: str | None = None
    uncorrected: int | None = None


@dataclass(frozen=True, slots=True)
class Xid:
    """An error that the driver has reported. ``gpu`` is the uuid, ``None`` when the GPU cannot even be asked for it.

    ``hardware``: not one of those that a faulty program causes.
    """

    gpu: str | None
    number: int

    @property
    def hardware(self) -> bool:
        return self.number not in PROGRAM_XIDS

    def __str__(self) -> str:
        return f"XID {self.number} on {self.gpu or 'a GPU that does not answer'}"


def health() -> tuple[Health, ...]:
    """Read the state of every GPU of this node, by NVML's index. Takes some milliseconds and makes no CUDA context.

    Raises:
        NoDriver: there is none.
        DriverError: it does not work.
    """
    with driver() as pynvml:
        return tuple(_read(pynvml, index) for index in range(int(pynvml.nvmlDeviceGetCount())))


@contextlib.contextmanager
def xids() -> Iterator[XidWatch]:
    """Listen for XID errors of all GPUs of this node, from now on until the context ends.

    Raises:
        NoDriver: there is none.
        DriverError: it does not work, or no GPU reports such errors.
    """
    with driver() as pynvml:
        events = pynvml.nvmlEventSetCreate()
        try:
            _register(pynvml, events)
            yield XidWatch(pynvml, events)
        finally:
            pynvml.nvmlEventSetFree(events)


class XidWatch:
    """What ``xids`` gives. ``wait`` blocks: give it a thread."""

    def __init__(self, pynvml: Any, events: Any) -> None:  # noqa: ANN401
        self._pynvml = pynvml
        self._events = events

    def wait(self, seconds: float) -> Xid | None:
        """Return the next error, ``None`` when there is none within ``seconds``.

        Raises:
            DriverError: the driver has stopped working.
        """
        pynvml = self._pynvml
        try:
            event = pynvml.nvmlEventSetWait_v2(self._events, max(0, round(seconds * 1000)))
        except pynvml.NVMLError as error:
            if code(error) == pynvml.NVML_ERROR_TIMEOUT:
                return None
            if code(error) == pynvml.NVML_ERROR_GPU_IS_LOST:
                return Xid(None, FALLEN_OFF)
            raise DriverError(f"the NVIDIA driver does not work (NVML: {error})") from None
        try:
            uuid = str(pynvml.nvmlDeviceGetUUID(event.device))
        except pynvml.NVMLError:
            uuid = None
        return Xid(uuid, int(event.eventData))


def _register(pynvml: Any, events: Any) -> None:  # noqa: ANN401
    heard = 0
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        try:
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            pynvml.nvmlDeviceRegisterEvents(device, pynvml.nvmlEventTypeXidCriticalError, events)
        except pynvml.NVMLError:
            continue  # lost, or too old to report: health says so
        heard += 1
    if not heard:
        raise DriverError("no GPU of this node reports XID errors")


def fault_of(pynvml: Any, number: int | None, text: str) -> str:  # noqa: ANN401
    """Say in words why a GPU does not answer."""
    known = {
        pynvml.NVML_ERROR_GPU_IS_LOST: "it has fallen off the bus; the node needs a reboot",
        pynvml.NVML_ERROR_RESET_REQUIRED: "it needs a reset",
    }
    return known.get(number, f"it does not answer (NVML: {text})")


def _read(pynvml: Any, index: int) -> Health:  # noqa: ANN401
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceGetUUID(device)  # the handle alone can be that of a GPU which has gone since
        uncorrected = unless(
            None,
            pynvml.nvmlDeviceGetTotalEccErrors,
            device,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        )
        reason = _recovery(pynvml, device) or _memory(pynvml, device, uncorrected) or fabric(pynvml, device).fault
    except pynvml.NVMLError as error:
        return Health(index, ok=False, reason=fault_of(pynvml, code(error), str(error)))
    return Health(index, ok=reason is None, reason=reason, uncorrected=uncorrected)


def _recovery(pynvml: Any, device: Any) -> str | None:  # noqa: ANN401
    """What the driver itself says has to be done with the GPU; drivers before 570 say nothing."""
    field = getattr(pynvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 230)
    values = unless(None, pynvml.nvmlDeviceGetFieldValues, device, [field])
    if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS or not values[0].value.uiVal:
        return None
    actions = {
        1: "a reset of the GPU",
        2: "a reboot of the node",
        3: "peer traffic to be drained",
        4: "the node drained and the GPU reset",
        5: "the IMEX domain to be recovered",
        6: "a reset of the bus",
        7: "a reboot of the system",
    }
    action = int(values[0].value.uiVal)
    return f"the driver asks for {actions.get(action, f'recovery action {action}')}"


def _memory(pynvml: Any, device: Any, uncorrected: int | None) -> str | None:  # noqa: ANN401
    rows: tuple[int, ...] = unless((), pynvml.nvmlDeviceGetRemappedRows, device)
    if not rows:  # a GPU that cannot replace rows
        return f"{uncorrected} memory errors that ECC could not correct" if uncorrected else None
    _, _, pending, failed = rows
    if failed:
        return "broken memory rows that could not be replaced"
    return "broken memory rows wait for a reset to be replaced" if pending else None

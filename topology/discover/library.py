"""The NVIDIA driver's library, opened and closed. Makes no CUDA context."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tlaunch.errors import TlaunchError

T = TypeVar("T")


class DriverError(TlaunchError):
    """The NVIDIA driver is there but does not work."""


class NoDriver(DriverError):
    """This machine has no NVIDIA driver: the usual machine without GPUs."""


@contextlib.contextmanager
def driver() -> Iterator[Any]:
    """Load and open NVML; yields the ``pynvml`` module.

    Raises:
        NoDriver: there is none.
        DriverError: it does not work.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if code(error) in {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}:
            raise NoDriver("no NVIDIA driver") from None
        raise DriverError(f"the NVIDIA driver does not work (NVML: {error})") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise DriverError(f"the NVIDIA driver does not work (NVML: {error})") from None
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def code(error: Exception) -> int | None:
    """Return the number of an NVML error."""
    value = getattr(error, "value", None)
    return value if isinstance(value, int) else None


def unless(default: T, call: Callable[..., T], *arguments: object) -> T:
    """Call a function of NVML; return ``default`` where this driver or this GPU does not have it.

    A GPU that is lost or needs a reset raises as ever: that is no answer to the question.
    """
    import pynvml

    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if code(error) in {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED}:
            raise
        return default

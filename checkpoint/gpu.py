"""Copies from GPUs into an arena, beside everything else that they do.

The arena's pages are locked and made known to CUDA once, so that the device writes to them by itself. The copies run on
a stream of their own, behind what had been asked of the device before; what is asked of it later waits for them only
where it must: see :class:`Copied`.

This follows torch's and CUDA's documentation. It has not run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tlaunch.checkpoint.arena import Arena

log = logging.getLogger(__name__)

_PORTABLE = 1
"""``cudaHostRegisterPortable``: locked for every device, not only for the current one."""


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies on a CUDA device."""
    return tensor.is_cuda


@dataclass(frozen=True, slots=True)
class Copied:
    """The end of the copies from one device."""

    device: torch.device
    event: torch.cuda.Event

    def hold_up(self) -> None:
        """Have what is put on the device's current stream from now on run after the copies. Does not wait."""
        torch.cuda.current_stream(self.device).wait_event(self.event)

    def wait(self) -> None:
        """Wait for the copies."""
        self.event.synchronize()


def beside(arena: Arena, copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[Copied]:
    """Begin to copy tensors on GPUs, the second of each pair, to their places in the arena."""
    if not copies:
        return []
    pin(arena)
    streams: dict[torch.device, torch.cuda.Stream] = {}
    for place, source in copies:
        if source.device not in streams:
            stream = streams[source.device] = torch.cuda.Stream(source.device)
            stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(streams[source.device]):
            place.copy_(source, non_blocking=True)
            source.record_stream(streams[source.device])  # its memory is not given to others before
    ends = []
    for device, stream in streams.items():
        event = torch.cuda.Event(blocking=True)  # else the copier would look again and again, on a core of training
        event.record(stream)
        ends.append(Copied(device, event))
    return ends


def pin(arena: Arena) -> None:
    """Make an arena's memory known to CUDA until the arena is closed, unless it is.

    Where that is refused, copies go through a buffer of the driver's and hold the trainer up.
    """
    if arena.before_close:
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(arena.view))
    cuda: Any = torch.cuda.cudart()
    error = int(cuda.cudaHostRegister(address, arena.size, _PORTABLE))
    if error:
        _forget_error()
        log.warning("%d bytes cannot be pinned, CUDA error %d: copies from GPUs hold training up", arena.size, error)
        arena.before_close.append(lambda: None)
    else:
        arena.before_close.append(lambda: cuda.cudaHostUnregister(address))


def _forget_error() -> None:
    """Let torch find the error that CUDA keeps of a call that was refused, or the next kernel of the training would."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")

"""Copying tensors into an arena beside the training loop.

Parameters and optimizer states do not change between one ``optimizer.step()`` and the next. So their copy runs beside
forward and backward, and only what is left of it holds the next step up. Everything else, such as running statistics of
a normalisation, may change at any time and is copied before ``save`` returns; it is small.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.dtypes import torch_name
from tlaunch.checkpoint.gpu import beside, on_gpu
from tlaunch.checkpoint.memory import is_plain
from tlaunch.checkpoint.slices import Held

# Through a handle of its own, ctypes lets other threads run meanwhile; ctypes.memmove would not.
_MEMCPY = ctypes.CDLL(None).memcpy
_MEMCPY.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_MEMCPY.restype = ctypes.c_void_p


@dataclass(frozen=True, slots=True)
class Target:
    """A held box, and where in the arena it goes."""

    held: Held
    begin: int
    size: int


class Capture:
    """One copy that is under way. ``done`` resolves when everything is in the arena."""

    def __init__(self, arena: Arena, now: Sequence[Target], later: Sequence[Target], copiers: Executor) -> None:
        """Copy ``now`` at once, and have ``later`` copied by one of the ``copiers``, which are threads."""
        self.done: Future[None] = Future()
        self._arena = arena
        self._copied: Future[None] = Future()
        for target in now:
            if not on_gpu(target.held.local):
                self._copy(target)
        here = [target for target in later if not on_gpu(target.held.local)]
        away = [_cloned(target) for target in now if on_gpu(target.held.local)]
        away += [target for target in later if on_gpu(target.held.local)]
        copies = [(self._tensor(target), _resolved(target.held.local)) for target in away if target.size]
        self._events = beside(arena, copies)
        copiers.submit(self._run, here)

    def wait(self) -> None:
        """Wait until the tensors may change: those on a GPU by what is put on its current stream from now on."""
        wait([self._copied])
        for event in self._events:
            event.hold_up()

    def _run(self, targets: Sequence[Target]) -> None:
        try:
            for target in targets:
                self._copy(target)
            self._copied.set_result(None)
            for event in self._events:
                event.wait()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the capture
            if not self._copied.done():
                self._copied.set_result(None)
            self.done.set_exception(error)
        else:
            self.done.set_result(None)

    def _copy(self, target: Target) -> None:
        if target.size == 0:
            return
        source = target.held.local
        if is_plain(source):
            # Not Tensor.copy_: in another thread it would start a pool of threads of its own beside the trainer's.
            base = ctypes.addressof(ctypes.c_char.from_buffer(self._arena.view, target.begin))
            _MEMCPY(base, source.data_ptr(), target.size)
        else:
            self._tensor(target).copy_(source)

    def _tensor(self, target: Target) -> torch.Tensor:
        """Return the place in the arena as a tensor."""
        dtype = getattr(torch, torch_name(target.held.dtype))
        count = target.held.region.volume
        if count == 0:
            return torch.empty(target.held.region.shape, dtype=dtype)
        flat = torch.frombuffer(self._arena.view, dtype=dtype, count=count, offset=target.begin)
        return flat.view(target.held.region.shape)


def _cloned(target: Target) -> Target:
    """Keep what may change at any time, on the GPU: a copy to the host would wait for everything before it."""
    return replace(target, held=replace(target.held, local=target.held.local.clone()))


def _resolved(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose bytes are its numbers: torch leaves conjugating and negating for later."""
    return tensor.resolve_conj().resolve_neg()


class StepGuard:
    """Holds ``optimizer.step()`` up until the capture that is under way no longer needs the old state."""

    def __init__(self) -> None:
        self._captures: list[Capture] = []
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def watch(self, capture: Capture) -> None:
        """Hold the next step up for this capture too."""
        self._captures.append(capture)

    def wait(self) -> None:
        """Wait until tensors may change."""
        while self._captures:
            self._captures.pop().wait()

    def close(self) -> None:
        """Let optimizers go their way."""
        self.wait()
        self._handle.remove()

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        del optimizer, args, kwargs
        self.wait()

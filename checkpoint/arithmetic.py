"""What bytes of tensors mean as numbers. Loads torch, which those who only move bytes around need not."""

from __future__ import annotations

import torch

from tlaunch.checkpoint.dtypes import torch_name
from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.memory import memory_of

_SIGNED = {"U16": torch.int16, "U32": torch.int32, "U64": torch.int64}
"""Types that torch can hardly compute with, and others of the same size."""


def cast(data: memoryview, old: str, new: str, name: str) -> bytes | memoryview:
    """Return numbers of one floating-point type as those of another; ``name`` is that of the tensor, for errors.

    Raises:
        Unusable: a finite number would become an infinite one.
    """
    if not data:
        return data
    before = numbers(data, old)
    after = before.to(getattr(torch, torch_name(new)))
    if bool((after.isinf() & before.isfinite()).any()):
        raise Unusable(f"{name}: holds numbers that are too large for {new}")
    return bytes(memory_of(after))


def difference(here: bytearray, there: bytearray, dtype: str) -> tuple[int, float]:
    """Count the numbers that differ, and return the largest difference. Two that are not a number are the same."""
    a, b = numbers(here, dtype), numbers(there, dtype)
    if dtype.startswith("F8"):
        a, b = a.float(), b.float()
    if dtype in _SIGNED:
        different = a.view(_SIGNED[dtype]) != b.view(_SIGNED[dtype])
        a, b = a.double(), b.double()
    else:
        different = (a != b) & ~(a.isnan() & b.isnan())
    wide = torch.complex128 if a.is_complex() else torch.float64
    apart = (a[different].to(wide) - b[different].to(wide)).abs()
    return apart.numel(), float(apart.max()) if apart.numel() else 0.0


def numbers(data: memoryview | bytearray, dtype: str) -> torch.Tensor:
    """Return a tensor over bytes, of which there are some; they are not copied."""
    return torch.frombuffer(data, dtype=getattr(torch, torch_name(dtype)))

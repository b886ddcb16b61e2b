"""The bytes of tensors, without numpy and without a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a tensor as :func:`plain` returns it, which has to outlive the view."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B") if size else memoryview(b"")


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the CPU whose bytes are its elements in order: the same one where it is that already."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes of a tensor are its elements in order, in memory that the CPU can write to."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def overlapping(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that may share memory with another, in the order of the mapping."""
    found: set[str] = set()
    last: tuple[str, torch.device, int] | None = None
    for name, tensor in sorted(tensors.items(), key=lambda item: (str(item[1].device), item[1].data_ptr())):
        if not tensor.numel():
            continue
        begin = tensor.data_ptr()
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = begin + span * tensor.element_size()
        if last is not None and last[1] == tensor.device and begin < last[2]:
            found |= {last[0], name}
            last = last if last[2] > end else (name, tensor.device, end)
        else:
            last = (name, tensor.device, end)
    return [name for name in tensors if name in found]

"""Tensors on their way from a source to a file: read, and cast if need be, while the file is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tlaunch.checkpoint.manifest import Tensor
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Box, Layout
from tlaunch.checkpoint.source import Source, stream

FLOATS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""What can be cast to, by the names that users know."""

_CAST = ("F64", "F32", "F16", "BF16")
"""What is cast. Whole numbers stay as they are, and 8-bit numbers, which mean nothing without their scales."""

Told: TypeAlias = Callable[[str, memoryview], object]
"""Called with the old name of a tensor and bytes of it that were read."""


@dataclass(frozen=True, slots=True)
class Flow(Box):
    """A whole tensor whose bytes are fetched while they are written: ``chunks`` yields them in order."""

    chunks: Callable[[], Iterator[memoryview]]


def contents(layout: Layout[Flow]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file."""
    yield layout.header
    for flow, _ in layout.boxes:
        yield from flow.chunks()


def flows(source: Source, names: Mapping[str, str], dtype: str | None, told: Told) -> list[Flow]:
    """Return the tensors of ``names``, under their new ones, in the order of the source.

    ``dtype``: a key of ``FLOATS``, or ``None`` to leave types as they are.
    """
    reader = source.streaming_reader()
    to = FLOATS[dtype] if dtype else None

    def flow(name: str, tensor: Tensor) -> Flow:
        kind = to if to and tensor.dtype in _CAST else tensor.dtype

        def chunks() -> Iterator[memoryview]:
            for chunk in stream(tensor, reader):
                told(name, chunk)
                yield chunk if kind == tensor.dtype else memoryview(_cast(chunk, tensor.dtype, kind, name))

        return Flow(names[name], kind, tensor.shape, Region.whole(tensor.shape), chunks)

    return [flow(name, tensor) for name, tensor in source.tensors.items() if name in names]


def _cast(chunk: memoryview, old: str, new: str, name: str) -> bytes | memoryview:
    from tlaunch.checkpoint.arithmetic import cast  # loads torch

    return cast(chunk, old, new, name)

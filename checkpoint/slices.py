"""Which boxes of its tensors a rank holds, and which of them it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.distributed.tensor import DTensor

from tlaunch.checkpoint import dtypes
from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.flat import Flat
from tlaunch.checkpoint.region import Region

Box: TypeAlias = tuple[str, Region]
"""A box of the tensor of this name."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a rank holds of a tensor: ``local`` is the box ``region`` of it."""

    dtype: str
    shape: tuple[int, ...]
    region: Region
    local: torch.Tensor

    @property
    def size(self) -> int:
        """Bytes of the box."""
        return self.region.volume * dtypes.BYTES[self.dtype]


Known: TypeAlias = "dict[object, Region]"
"""Boxes of tensors that were looked at before: a model has few meshes and shapes, and torch takes its time for each."""


def held(name: str, tensor: torch.Tensor, known: Known | None = None) -> Held:
    """Return what this rank holds of a tensor.

    Raises:
        Unusable: the tensor cannot be saved as it is.
    """
    dtype = dtypes.name_of(str(tensor.dtype), name)
    if tensor.is_meta or tensor.is_sparse or tensor.is_quantized or tensor.layout is not torch.strided:
        raise Unusable(f"{name}: expected a dense tensor with data, got {tensor.layout} on {tensor.device}")
    if not isinstance(tensor, DTensor):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise Unusable(f"{name}: expected a tensor or a DTensor, got a {type(tensor).__name__}")
        return Held(dtype, tuple(tensor.shape), Region.whole(tensor.shape), tensor.detach())
    if any(placement.is_partial() for placement in tensor.placements):
        raise Unusable(f"{name}: a DTensor with partial sums; expected it to be reduced before it is saved")
    form = (tensor.device_mesh, tensor.shape, tensor.placements)
    region = known.get(form) if known is not None else None
    if region is None:
        (chunk,) = tensor.__create_chunk_list__()
        region = Region(tuple(chunk.offsets), tuple(chunk.sizes))
        if known is not None:
            known[form] = region
    return Held(dtype, tuple(tensor.shape), region, tensor.to_local().detach())


@dataclass(frozen=True, slots=True)
class Inventory:
    """What one rank could write: boxes with their sizes in bytes, and names of values."""

    boxes: tuple[tuple[str, Region, int], ...]
    values: tuple[str, ...]


def inventory(flat: Flat) -> Inventory:
    """Return what this rank holds."""
    known: Known = {}
    parts = {name: held(name, tensor, known) for name, tensor in flat.tensors.items()}
    boxes = ((name, at.region, at.size) for name, at in parts.items())
    return Inventory(tuple(boxes), tuple(flat.values))


Sample: TypeAlias = Mapping[str, "tuple[float, ...]"]
"""A few numbers of each tensor that ranks should hold alike, by name."""

_SAMPLED = 16


def sample(flat: Flat) -> Sample:
    """Return some numbers of this rank's parameters and optimizer states which are not sharded."""
    found = {}
    for name in flat.steady:
        tensor = flat.tensors[name]
        if not isinstance(tensor, DTensor) and tensor.numel() > 1 and tensor.is_floating_point():
            found[name] = tuple(tensor.detach().flatten()[:_SAMPLED].tolist())
    return found


def refuse_strangers(samples: Sequence[Sample]) -> None:
    """Refuse ranks that call different tensors by the same names, as stages of a pipeline may do.

    Replicas differ a little at most. A box is written by one of those who seem to hold it: the others' would be lost.

    Raises:
        Unusable: most of what two ranks have in common is not the same at all.
    """
    for rank, found in enumerate(samples[1:], 1):
        common = sorted(found.keys() & samples[0].keys())
        apart = [name for name in common if _far(found[name], samples[0][name])]
        if len(apart) > len(common) / 2:
            raise Unusable(
                f"{apart[0]}: ranks 0 and {rank} hold different numbers under this name; expected replicas, a DTensor, "
                "or a name of its own for what each rank has, such as that of the pipeline's stage"
            )


def _far(one: Sequence[float], other: Sequence[float]) -> bool:
    largest = max(map(abs, (*one, *other)))
    return any(abs(a - b) > largest / 10 for a, b in zip(one, other, strict=False))


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank writes, of what it holds."""

    boxes: frozenset[Box]
    values: frozenset[str]


def share_out(inventories: Sequence[Inventory]) -> list[Share]:
    """Divide what the ranks hold so that each box is written once, and every rank writes about as many bytes.

    A value that several ranks hold is written by the first of them.
    """
    holders: dict[Box, list[int]] = {}
    sizes: dict[Box, int] = {}
    values: dict[str, int] = {}
    for rank, found in enumerate(inventories):
        for name, region, size in found.boxes:
            holders.setdefault((name, region), []).append(rank)
            sizes[name, region] = size
        for name in found.values:
            values.setdefault(name, rank)
    load = [0] * len(inventories)
    boxes: list[set[Box]] = [set() for _ in inventories]
    # Those that only one rank holds are settled; then the large ones first, so that small ones even things out.
    for box in sorted(holders, key=lambda box: (len(holders[box]) > 1, -sizes[box], box[0], box[1].offset)):
        rank = min(holders[box], key=load.__getitem__)
        boxes[rank].add(box)
        load[rank] += sizes[box]
    own: Mapping[int, set[str]] = {
        rank: {name for name, owner in values.items() if owner == rank} for rank in range(len(inventories))
    }
    return [Share(frozenset(boxes[rank]), frozenset(own[rank])) for rank in range(len(inventories))]

"""Which boxes of its tensors a rank holds, and which other ranks are known to hold the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.distributed.tensor import DTensor

from tlaunch.checkpoint import dtypes
from tlaunch.checkpoint.errors import Unusable
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
    if tensor.is_nested:
        raise Unusable(f"{name}: expected a dense tensor, got a nested one")
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


def holders(tensor: DTensor, world: int) -> tuple[int, ...] | None:
    """Return the ranks that hold the same box of a tensor as this one; ``None`` where its mesh does not tell.

    A mesh of all ranks tells: those whose coordinates differ only where the tensor is not sharded. One of some ranks
    does not, as there may be others like it: those of the other ranks of a tensor-parallel group, say.
    """
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if mesh.size() != world or coordinate is None:
        return None
    if not tensor.numel():
        return (int(mesh.mesh.min()),)  # the boxes of all ranks are empty, and one of them is to be written
    if not tensor.to_local().numel():
        return ()
    index = tuple(
        slice(None) if placement.is_replicate() else at
        for at, placement in zip(coordinate, tensor.placements, strict=True)
    )
    return tuple(sorted(mesh.mesh[index].flatten().tolist()))

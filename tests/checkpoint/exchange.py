"""What a tensor of a name holds, and reading whole tensors of any checkpoint."""

from __future__ import annotations

import torch

from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.resharding import Wanted, gather
from tlaunch.checkpoint.source import Source


def expected(name: str, shape: torch.Size) -> torch.Tensor:
    """Return numbers that follow from a name and positions."""
    return (torch.arange(shape.numel(), dtype=torch.float32) + sum(name.encode())).view(shape)


def everything(source: Source) -> dict[str, torch.Tensor]:
    """Return all tensors."""
    wanted = [Wanted(name, Region.whole(tensor.shape)) for name, tensor in source.tensors.items()]
    return dict(zip(source.tensors, gather(source.tensors, source.reader, wanted), strict=True))

"""Reading whole tensors of any checkpoint."""

from __future__ import annotations

import torch

from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.resharding import Wanted, gather
from tlaunch.checkpoint.source import Source


def everything(source: Source) -> dict[str, torch.Tensor]:
    """Return all tensors."""
    wanted = [Wanted(name, Region.whole(tensor.shape)) for name, tensor in source.tensors.items()]
    return dict(zip(source.tensors, gather(source.tensors, source.reader, wanted), strict=True))

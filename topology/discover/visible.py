"""Which GPUs a process may use: ``CUDA_VISIBLE_DEVICES``, read as CUDA reads it."""

from __future__ import annotations

from collections.abc import Sequence

from tlaunch.topology.discover.report import Gpu
from tlaunch.topology.model import TopologyError
from tlaunch.topology.yamltree import shown

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible(listed: str | None, gpus: Sequence[Gpu]) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` lists, in its order, and what people should know about the list.

    Indices and UUIDs (whole, or beginnings that fit one GPU only) may be mixed. As in CUDA, the first that does not
    exist ends the list, and one that stands twice empties it. ``None``: the variable is not set, all are visible. An
    index is NVML's: that of CUDA where the GPUs are alike, or with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Raises:
        TopologyError: a part of a GPU (MIG) is listed.
    """
    if listed is None:
        return tuple(gpus), ()
    chosen: list[Gpu] = []
    for word in (part.strip() for part in listed.split(",")):
        if word.startswith("MIG-"):
            raise TopologyError(f"{VARIABLE}: {shown(word)} is a part of a GPU (MIG); expected whole GPUs")
        gpu = _named(word, gpus)
        if gpu is None:
            ends = word in {"", "-1", "NoDevFiles"}  # how people and Slurm say that there are none
            note = f"{VARIABLE}: there is no GPU {shown(word)}: CUDA uses only those before it"
            return tuple(chosen), () if ends else (note,)
        if gpu in chosen:
            return (), (f"{VARIABLE}: GPU {shown(word)} stands twice: CUDA then uses none",)
        chosen.append(gpu)
    return tuple(chosen), ()


def _named(word: str, gpus: Sequence[Gpu]) -> Gpu | None:
    if word.isascii() and word.isdigit():
        found = [gpu for gpu in gpus if gpu.index == int(word[:9])]
    else:
        found = [gpu for gpu in gpus if word.startswith("GPU-") and gpu.uuid is not None and gpu.uuid.startswith(word)]
    return found[0] if len(found) == 1 else None

"""What a training state wants of a checkpoint, and whether it is there in the same form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor

from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.flat import Flat, State, expand, flatten, without_state, without_steps
from tlaunch.checkpoint.layout import is_reserved
from tlaunch.checkpoint.resharding import Filling, Wanted
from tlaunch.checkpoint.slices import Held, Known, held
from tlaunch.checkpoint.source import Source
from tlaunch.checkpoint.values import from_json

_LISTED = 8


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a state wants of a checkpoint that has all of it.

    ``tensors`` are the rank's own, by name, and ``wanted`` the boxes of the checkpoint's that go into them, which
    ``filling`` reads. ``unwanted``: what else is in the checkpoint.
    """

    source: Source
    tree: dict[str, Any]
    values: dict[str, object]
    tensors: dict[str, torch.Tensor]
    wanted: list[Wanted]
    filling: Filling
    unwanted: set[str]


def fit(source: Source, state: State, *, strict: bool) -> Fitting:
    """Look whether a checkpoint has what a state wants, in the same form. Reads no tensor.

    Raises:
        Unusable: names, shapes or types differ; they are listed.
    """
    fresh = without_state(state)
    tree = expand(state)
    flat = flatten(tree)
    without_steps(flat, fresh)
    wanted = flat.tensors.keys() | flat.values.keys()
    there = _names(source) - source.lost.keys()
    if strict:
        complaints = [
            *listed("missing in the checkpoint", wanted - there - source.lost.keys() - _tied(flat, there)),
            *listed("there, but cannot be read", wanted & source.lost.keys()),
        ]
        if complaints:  # what is too much is no complaint of one rank alone: another may want it
            complaints += listed("not in the state", there - wanted)
            raise Unusable(f"{source.where}: {'; '.join(complaints)} (strict=False leaves them alone)")
    known: Known = {}
    boxes = {name: held(name, tensor, known) for name, tensor in flat.tensors.items() if name in there}
    expanded = next((name for name, box in boxes.items() if _is_expanded(box.local)), None)
    if expanded is not None:
        raise Unusable(f"{expanded}: elements share memory, as in expand(); expected memory for each: clone()")
    values = {name for name in flat.values if name in there}
    differing = listed("a tensor here, a value there", boxes.keys() & source.values.keys())
    differing += listed("a value here, a tensor there", values & source.tensors.keys())
    both = {name: box for name, box in boxes.items() if name in source.tensors}
    differing += _shortened([text for name, box in both.items() if (text := _misfit(name, box, source))])
    if differing:
        raise Unusable(f"{source.where}: {'; '.join(differing)}")
    read = {name: from_json(source.values[name], name) for name in values}
    own = _own_lists(state, flat, read)
    boxes_wanted = [Wanted(name, box.region) for name, box in boxes.items()]
    tensors = {name: box.local for name, box in boxes.items()}
    return Fitting(
        source,
        tree,
        {name: value for name, value in read.items() if name not in own},
        tensors,
        boxes_wanted,
        Filling(source.tensors, boxes_wanted, list(tensors.values())),
        _names(source) - wanted if strict else set(),
    )


def _own_lists(state: State, flat: Flat, read: Mapping[str, object]) -> set[str]:
    """Return the names of an optimizer's own lists of parameters where those that were saved are another rank's.

    Every stage of a pipeline has such lists under the same names, of which one is saved. The names of parameters are
    structure, not state.
    """
    own: set[str] = set()
    for name, value in state.items():
        if isinstance(value, torch.optim.Optimizer):
            lists = [f"{name}.param_groups.{index}.params" for index in range(len(value.param_groups))]
            here = {called for key in lists for called in cast("list[str]", flat.values.get(key, []))}
            there = {called for key in lists for called in cast("list[str]", read.get(key, []))}
            if not here <= there:
                own.update(lists)
    return own


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Whether some elements of a tensor are at one place, so that it cannot be filled."""
    return any(not stride and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _names(source: Source) -> set[str]:
    found = source.tensors.keys() | source.values.keys() | source.lost.keys()
    return {name for name in found if not is_reserved(name)}


def _tied(flat: Flat, there: set[str]) -> set[str]:
    """Return the names of tensors that are also in the checkpoint under another name, as tied weights may be."""
    if not (absent := flat.tensors.keys() - there):
        return set()
    filled = {_memory(tensor) for name, tensor in flat.tensors.items() if name in there}
    return {name for name in absent if _memory(flat.tensors[name]) in filled}


def _memory(tensor: torch.Tensor) -> object:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.numel():
        return id(tensor)
    return local.data_ptr(), local.dtype, tuple(local.shape), local.stride()


def _misfit(name: str, box: Held, source: Source) -> str | None:
    saved = source.tensors[name]
    if (saved.dtype, saved.shape) == (box.dtype, box.shape):
        return None
    return f"{name} is {box.dtype} {list(box.shape)} here and {saved.dtype} {list(saved.shape)} there"


def listed(what: str, names: Iterable[str]) -> list[str]:
    """Return a text that says what is wrong with some names, of which not too many are listed; none without names."""
    found = sorted(names)
    return [f"{what}: {', '.join(_shortened(found))}"] if found else []


def _shortened(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _LISTED
    return list(texts) if more <= 0 else [*texts[:_LISTED], f"and {more} more"]

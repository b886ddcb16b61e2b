"""The modules and optimizers of a state as they were at the last save, so that little of it is worked out again.

torch makes a state dict anew for each save, which takes some ten microseconds for each tensor in it, and twice as much
again goes into names and boxes. Between saves only numbers change. So what is where is remembered, and looked at again
in full when a tensor is another object, lies elsewhere, or has another form than it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer

from tlaunch.checkpoint.flat import Flat, State

Anything: TypeAlias = Any
Form: TypeAlias = "tuple[int, torch.Size, torch.dtype, tuple[int, ...]]"
"""Address, shape, type and strides of a tensor's local memory."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What is remembered of ``parts``, the modules and optimizers at the top of a state."""

    marks: tuple[Anything, ...]
    tensors: tuple[torch.Tensor, ...]
    """All of theirs; while they are held, no other tensor can be taken for one of them."""
    flat: Flat
    """Their leaves. Those values that may change stand in ``live`` too."""
    live: Mapping[str, tuple[MutableMapping[Anything, Anything], Anything]]
    """Where values are found that may change at any time, such as a learning rate: a mapping and a key in it."""

    def fits(self, parts: Mapping[str, Anything]) -> bool:
        """Whether each tensor is where it was, and there are no others."""
        return self.marks == marks_of(parts)[0]

    def values(self) -> dict[str, object]:
        """Return the values as they are now."""
        return self.flat.values | {name: mapping[key] for name, (mapping, key) in self.live.items()}


def parts_of(state: State) -> dict[str, Anything]:
    """Return the modules and optimizers at the top of a state."""
    return {str(name): value for name, value in state.items() if isinstance(value, nn.Module | Optimizer)}


def outline(parts: Mapping[str, Anything], flat: Flat) -> Outline | None:
    """Remember ``parts``, whose leaves are ``flat``.

    Returns ``None`` when they have to be asked each time: when a leaf is no tensor of theirs as it is, but was made for
    the state dict, as some modules and optimizers do.
    """
    with torch.no_grad():
        marks, tensors = marks_of(parts)
        own = {form_of(tensor) for tensor in tensors}
        if any(form_of(tensor) not in own for tensor in flat.tensors.values()):
            return None
    live: dict[str, tuple[MutableMapping[Anything, Anything], Anything]] = {}
    fixed: set[str] = set()
    for name, part in parts.items():
        if isinstance(part, Optimizer):
            live |= _live(name, part, flat)
            fixed |= {f"{name}.param_groups.{index}.params" for index in range(len(part.param_groups))}
            if not part.state:  # some never have any
                fixed.add(f"{name}.state")
    if flat.values.keys() != live.keys() | fixed or any(
        type(flat.values[name]) is not type(mapping[key]) for name, (mapping, key) in live.items()
    ):
        return None
    return Outline(marks, tensors, flat, live)


def _live(
    name: str, optimizer: Optimizer, flat: Flat
) -> dict[str, tuple[MutableMapping[Anything, Anything], Anything]]:
    found: dict[str, tuple[MutableMapping[Anything, Anything], Anything]] = {}
    for index, group in enumerate(optimizer.param_groups):
        prefix = f"{name}.param_groups.{index}"
        found |= {f"{prefix}.{key}": (group, key) for key in group if f"{prefix}.{key}" in flat.values}
        found.pop(f"{prefix}.params", None)
        names = flat.values.get(f"{prefix}.params")
        if not isinstance(names, list) or len(names) != len(group["params"]):
            return {}
        for parameter, called in zip(group["params"], names, strict=True):
            kept = optimizer.state.get(parameter, {})
            paths = {key: f"{name}.state.{called}.{key}" for key in kept}
            found |= {path: (kept, key) for key, path in paths.items() if path in flat.values}
    return found


def marks_of(parts: Mapping[str, Anything]) -> tuple[tuple[Anything, ...], tuple[torch.Tensor, ...]]:
    """Return what tells whether parts are as they were, and their tensors."""
    marks: list[Anything] = []
    tensors: list[torch.Tensor] = []
    with torch.no_grad():  # to_local is slow otherwise
        for name, part in parts.items():
            marks += (name, id(part))
            for mark, tensor in _module(part) if isinstance(part, nn.Module) else _optimizer(part):
                marks.append(mark)
                if tensor is not None:
                    marks += (id(tensor), form_of(tensor))
                    tensors.append(tensor)
    return tuple(marks), tuple(tensors)


def _module(module: nn.Module) -> Iterator[tuple[Anything, torch.Tensor | None]]:
    # With their names, and as often as they have one: two modules may share a tensor, and may stop to do so.
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _optimizer(optimizer: Optimizer) -> Iterator[tuple[Anything, torch.Tensor | None]]:
    for group in optimizer.param_groups:
        yield (id(group), *group), None  # loading a state puts others in their places, and keeps the tensors
        for key, item in group.items():
            if isinstance(item, torch.Tensor):
                yield key, item
        for parameter in group["params"]:
            kept = optimizer.state.get(parameter)
            yield (id(parameter), id(kept)), None
            for key, item in (kept or {}).items():
                yield key, item if isinstance(item, torch.Tensor) else None


def form_of(tensor: torch.Tensor) -> Form:
    """Return where the local part of a tensor lies, and how."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if local.layout is not torch.strided:
        return 0, local.shape, local.dtype, ()
    return local.data_ptr(), local.shape, local.dtype, local.stride()

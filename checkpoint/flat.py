"""A training state as one flat table of tensors and one of values, by dotted names.

Modules, optimizers and whatever has ``state_dict()`` stand at the top of the tree; see ``docs/checkpoint-format.md``
for the names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.values import DEPTH, too_deep

State: TypeAlias = Mapping[str, Any]
"""What users save: modules, optimizers, stateful objects, and trees of mappings and lists with tensors and values."""


Value: TypeAlias = Any
"""Anything that may stand in a state."""


@runtime_checkable
class Stateful(Protocol):
    """Has a state, such as a learning-rate scheduler or a sampler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take the state on."""
        ...


@dataclass(frozen=True, slots=True)
class Flat:
    """Leaves of a state by name. ``steady`` names the tensors that only ``optimizer.step()`` changes."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    steady: set[str] = field(default_factory=set)


def expand(state: State) -> dict[str, Any]:
    """Return the state with a state dict in place of each module, optimizer and stateful object at its top.

    Raises:
        Unusable: the state is no mapping, or an optimizer stands there without the module whose parameters it changes.
    """
    refuse_other_than_mapping(state)
    modules = [value for value in state.values() if isinstance(value, nn.Module)]
    return {str(name): _expanded(value, str(name), modules) for name, value in state.items()}


def without_state(state: object) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers that have made no step yet.

    To expand them torch makes them make one, with gradients of zero. That is not to be part of the training.
    """
    if not isinstance(state, Mapping):
        return {}  # to be refused when it is looked at
    optimizers = ((str(name), value) for name, value in state.items() if isinstance(value, torch.optim.Optimizer))
    return {name: optimizer for name, optimizer in optimizers if not optimizer.state}


def without_steps(flat: Flat, optimizers: Iterable[str]) -> None:
    """Take the step back that torch has made these optimizers make."""
    for name in optimizers:
        for path, tensor in flat.tensors.items():
            if path.startswith(f"{name}.state.") and path.endswith(".step"):
                tensor.zero_()


def _expanded(value: Value, name: str, modules: list[nn.Module]) -> Value:
    if isinstance(value, nn.Module):
        return get_model_state_dict(value)
    if isinstance(value, torch.optim.Optimizer):
        return get_optimizer_state_dict(_module_of(value, name, modules), value)
    if not isinstance(value, Mapping) and isinstance(value, Stateful):
        return value.state_dict()
    return value


def refuse_other_than_mapping(state: object) -> None:
    """Refuse a state that has no names.

    Raises:
        Unusable: it is such a one.
    """
    if not isinstance(state, Mapping):
        raise Unusable(
            f"the state: expected a mapping from names, such as {{'model': model}}, got a {type(state).__name__}"
        )


def _module_of(optimizer: torch.optim.Optimizer, name: str, modules: list[nn.Module]) -> nn.Module:
    wanted = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for module in modules:
        if wanted <= {id(parameter) for parameter in module.parameters()}:
            return module
    raise Unusable(
        f"{name}: an optimizer is saved by the names of its module's parameters; expected beside it one module that "
        "has them all"
    )


def flatten(tree: Mapping[str, Any], steady: set[int] | None = None) -> Flat:
    """Return the leaves of an expanded state. ``steady``: storages of tensors that only ``optimizer.step()`` changes.

    Raises:
        Unusable: two leaves have the same name.
    """
    flat = Flat()
    for name, leaf in _leaves(tree, "") if tree else ():
        if name in flat.tensors or name in flat.values:
            raise Unusable(f"{name}: two things in the state have this name")
        if isinstance(leaf, torch.Tensor):
            flat.tensors[name] = leaf
            if steady and _storage(leaf) in steady:
                flat.steady.add(name)
        else:
            flat.values[name] = leaf
    return flat


def joined(one: Flat, other: Flat) -> Flat:
    """Return the leaves of both.

    Raises:
        Unusable: two leaves have the same name.
    """
    for name in (*other.tensors, *other.values):
        if name in one.tensors or name in one.values:
            raise Unusable(f"{name}: two things in the state have this name")
    return Flat(one.tensors | other.tensors, one.values | other.values, one.steady | other.steady)


def steady_storages(state: State) -> set[int]:
    """Return the storages of parameters and optimizer states: from one step of the optimizer to the next they rest."""
    found: set[int] = set()
    for value in state.values():
        if isinstance(value, nn.Module):
            found.update(_storage(parameter) for parameter in value.parameters())
        elif isinstance(value, torch.optim.Optimizer):
            for parameters in value.state.values():
                found.update(_storage(item) for item in parameters.values() if isinstance(item, torch.Tensor))
    return found


def _storage(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage().data_ptr() if local.numel() else 0


def _leaves(tree: Value, path: str, depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    if depth == 0:
        raise too_deep(path)
    if isinstance(tree, Mapping) and tree:
        items = [(str(key), item) for key, item in tree.items()]
    elif _opened(tree):
        items = [(str(index), item) for index, item in enumerate(tree)]
    else:
        yield path, tree
        return
    for name, item in items:
        yield from _leaves(item, f"{path}.{name}" if path else name, depth - 1)


def _opened(tree: Value, inside: tuple[int, ...] = ()) -> bool:
    """Whether a list is taken apart: by the rule of torch.distributed.checkpoint, so that names are the same there.

    Tuples are taken apart only where a tensor would be lost otherwise. ``inside``: those around it, by identity.
    """
    kinds = (Mapping, torch.Tensor) if isinstance(tree, list) else (torch.Tensor,)
    if not isinstance(tree, list | tuple) or id(tree) in inside or len(inside) >= DEPTH:
        return False
    around = (*inside, id(tree))
    return any(isinstance(item, kinds) or _opened(item, around) for item in tree)


# --- back again ----------------------------------------------------------------------------------------------------


def rebuild(tree: Value, flat: Flat, path: str = "") -> Value:
    """Return a tree of the same form with the leaves of ``flat``; what it lacks stays as it is in ``tree``."""
    if isinstance(tree, Mapping) and tree:
        rebuilt = {key: rebuild(item, flat, f"{path}.{key}" if path else str(key)) for key, item in tree.items()}
        return rebuilt if type(tree) is dict or not isinstance(tree, dict) else _like(tree, rebuilt)
    if _opened(tree):
        items = [rebuild(item, flat, f"{path}.{index}" if path else str(index)) for index, item in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    return flat.tensors.get(path, tree) if isinstance(tree, torch.Tensor) else flat.values.get(path, tree)


def _like(tree: dict[Any, Any], rebuilt: dict[Any, Any]) -> dict[Any, Any]:
    """Return a mapping of the same kind: some schedulers count with a ``Counter``."""
    like = copy.copy(tree)
    for key, item in rebuilt.items():
        like[key] = item
    return like


def stateful(state: State) -> set[str]:
    """Return the names of objects that take their state on by code of their own."""
    known = (nn.Module, torch.optim.Optimizer, Mapping)
    return {name for name, value in state.items() if not isinstance(value, known) and isinstance(value, Stateful)}


def take_on(state: State, tree: dict[str, Any], names: AbstractSet[str]) -> None:
    """Put a rebuilt tree into those objects of a state. Plain tensors have been filled in place before."""
    modules = [value for value in state.values() if isinstance(value, nn.Module)]
    for name, value in state.items():
        if name not in names:
            continue
        if isinstance(value, nn.Module):
            set_model_state_dict(value, tree[name])
        elif isinstance(value, torch.optim.Optimizer):
            set_optimizer_state_dict(_module_of(value, name, modules), value, tree[name])
        elif not isinstance(value, Mapping) and isinstance(value, Stateful):
            value.load_state_dict(tree[name])
        elif isinstance(value, dict):
            _update(value, tree[name])
        elif not isinstance(value, torch.Tensor) and isinstance(state, dict):
            cast("dict[str, Any]", state)[name] = tree[name]


def _update(old: dict[Any, Any], new: dict[Any, Any]) -> None:
    """Replace the values in a nested mapping, and leave its tensors, which were filled in place."""
    for key, value in new.items():
        if isinstance(old.get(key), dict) and isinstance(value, dict):
            _update(old[key], value)
        elif not isinstance(old.get(key), torch.Tensor):
            old[key] = value

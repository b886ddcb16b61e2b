"""Loading a checkpoint into a training state: all of it, or nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor

from tlaunch.checkpoint import catalog, random_state
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.flat import Flat, State, expand, flatten, rebuild, stateful, take_on
from tlaunch.checkpoint.layout import Address, is_reserved
from tlaunch.checkpoint.memory import overlapping
from tlaunch.checkpoint.opening import locate, open_own, open_spot
from tlaunch.checkpoint.ranks import Ranks
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.resharding import Wanted, check, fill, gather
from tlaunch.checkpoint.slices import Held, held
from tlaunch.checkpoint.source import Source
from tlaunch.checkpoint.values import from_json

_LISTED = 8


def restore(files: Files, ranks: Ranks, state: State, *, step: int | None, strict: bool) -> int | None:
    """See ``Checkpointer.restore``."""
    address: Address | None = ranks.from_first(lambda: catalog.find(files, step))
    if address is None:
        return None
    _restore(lambda: open_own(files, address), ranks, state, strict=strict)
    return address.step


def load(path: str | os.PathLike[str], state: State, *, step: int | None = None, strict: bool = True) -> int | None:
    """Load what lies at ``path`` into the objects of ``state``, and return its step, where the format knows of steps.

    Reads a path that a job saves to (the newest, or that of ``step``), a directory that
    ``torch.distributed.checkpoint`` has written, and safetensors files of Hugging Face, whose tensors are called
    ``model.<name>``. All else is as in ``Checkpointer.restore``, but that this path is only read.

    Collective: all ranks of the default process group call it together, each with its own part of the state.

    Raises:
        Unusable: there is nothing that can be read, or names, shapes or types differ. Nothing was changed.
        Damaged: a file is missing or has changed; it is named. Nothing was changed, unless it says that the state is
            partly loaded: then a file has changed while it was read.
    """
    ranks = Ranks()
    try:
        spot = ranks.from_first(lambda: locate(path, step))
        return _restore(lambda: open_spot(spot), ranks, state, strict=strict).step
    finally:
        ranks.close()


def _restore(opened: Callable[[], Source], ranks: Ranks, state: State, *, strict: bool) -> Source:
    """Load a checkpoint on all ranks, or on none. See ``docs/adr/0018`` for why it is read twice."""
    source: Source | None = None
    tree: dict[str, Any] = {}
    flat, loaded, own = Flat(), _Loaded({}, frozenset(), lambda _: None), None
    unwanted: set[str] = set()
    error: Exception | None = None
    try:
        source = opened()
        tree = expand(state)
        flat = flatten(tree)
        loaded = _load(source, flat, strict=strict)
        _keep_own_groups(state, flat, loaded)
        own = _random_state(source, ranks)
        unwanted = _names(source) - flat.tensors.keys() - flat.values.keys() if strict else set()
    except Exception as failed:  # noqa: BLE001 - the others wait for us
        error = failed
    # Before anything is changed anywhere: when one rank cannot go on, none does.
    told = ranks.everybody((f"{error}" or repr(error) if error else "", unwanted))
    said = next((text for text, _ in told if text), None)
    if error is not None:
        raise error
    assert source is not None
    # Stages of a pipeline want different things; what nobody wants is too much.
    if nobodys := set.intersection(*(names for _, names in told)) if said is None else set():
        raise Unusable(f"{source.where}: {_listed('not in the state', nobodys)[0]} (strict=False leaves them alone)")
    if said is not None:
        raise CheckpointError(f"another rank could not load the checkpoint: {said}")
    try:
        _change(state, tree, loaded)
        if own is not None:
            random_state.restore(own)
    except Exception as failed:  # noqa: BLE001 - the others wait for us
        error = failed
    told_last = ranks.everybody(f"{error}" or repr(error) if error else "")
    if error is not None:
        raise error
    if said := next(filter(None, told_last), None):
        raise CheckpointError(f"another rank could not load all of the checkpoint, this one has: {said}")
    return source


def _change(state: State, tree: dict[str, Any], loaded: _Loaded) -> None:
    """Put what was found in order into the state."""
    taken = rebuild(tree, Flat({}, loaded.values))
    # First the user's own code, which may refuse what it is given: then neither model nor optimizer has changed.
    refusing = stateful(state)
    theirs = set(flatten({name: tree[name] for name in refusing}).tensors)
    loaded.fill(loaded.tensors & theirs)
    take_on(state, taken, refusing)
    loaded.fill(loaded.tensors - theirs)
    take_on(state, taken, state.keys() - refusing)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the state wants of the checkpoint, in order to the last bit: values, and tensors that ``fill`` fills."""

    values: dict[str, object]
    tensors: AbstractSet[str]
    fill: Callable[[AbstractSet[str]], None]


def _load(source: Source, flat: Flat, *, strict: bool) -> _Loaded:
    """Look whether what the state wants of the checkpoint fits, and is as it was written. Changes no tensor."""
    wanted = flat.tensors.keys() | flat.values.keys()
    there = _names(source) - source.lost.keys()
    if strict:
        complaints = [
            *_listed("missing in the checkpoint", wanted - there - source.lost.keys() - _tied(flat, there)),
            *_listed("there, but cannot be read", wanted & source.lost.keys()),
        ]
        if complaints:  # what is too much is no complaint of one rank alone: another may want it
            complaints += _listed("not in the state", there - wanted)
            raise Unusable(f"{source.where}: {'; '.join(complaints)} (strict=False leaves them alone)")
    boxes = {name: held(name, tensor) for name, tensor in flat.tensors.items() if name in there}
    values = {name for name in flat.values if name in there}
    differing = _listed("a tensor here, a value there", boxes.keys() & source.values.keys())
    differing += _listed("a value here, a tensor there", values & source.tensors.keys())
    both = {name: box for name, box in boxes.items() if name in source.tensors}
    differing += _shortened([text for name, box in both.items() if (text := _misfit(name, box, source))])
    if differing:
        raise Unusable(f"{source.where}: {'; '.join(differing)}")
    read = {name: from_json(source.values[name], name) for name in values}
    targets = {name: box.local for name, box in boxes.items()}
    pieces = {name: Wanted(name, box.region) for name, box in boxes.items()}
    if source.twice is not None:
        check(source.tensors, source.twice, list(pieces.values()), list(targets.values()))
        return _Loaded(read, targets.keys(), functools.partial(_read_again, source, pieces, targets))
    tensors = dict(zip(pieces, gather(source.tensors, source.reader, list(pieces.values())), strict=True))
    return _Loaded(read, targets.keys(), functools.partial(_copy, tensors, targets))


def _copy(tensors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], names: AbstractSet[str]) -> None:
    for name in tensors.keys() & names:
        targets[name].copy_(tensors[name])


def _read_again(
    source: Source, wanted: Mapping[str, Wanted], targets: Mapping[str, torch.Tensor], names: AbstractSet[str]
) -> None:
    """Read tensors that were checked to where they belong."""
    assert source.twice is not None
    here = {name: target for name, target in targets.items() if name in names}
    # Of tensors that share memory the last one counts; the others are read side by side.
    alone = dict.fromkeys(overlapping(here))
    for together in ([name for name in here if name not in alone], *([name] for name in alone)):
        try:
            fill(
                source.tensors,
                source.twice.second,
                [wanted[name] for name in together],
                [here[name] for name in together],
            )
        except CheckpointError as error:
            raise type(error)(f"{error}; the state is partly loaded now") from error


def _keep_own_groups(state: State, flat: Flat, loaded: _Loaded) -> None:
    """Leave to an optimizer its own lists of parameters where those that were saved are another rank's.

    Every stage of a pipeline has such lists under the same names, of which one is saved. The names of parameters are
    structure, not state.
    """
    for name, value in state.items():
        if isinstance(value, torch.optim.Optimizer):
            lists = [f"{name}.param_groups.{index}.params" for index in range(len(value.param_groups))]
            here = {called for key in lists for called in cast("list[str]", flat.values.get(key, []))}
            there = {called for key in lists for called in cast("list[str]", loaded.values.get(key, []))}
            if not here <= there:
                for key in lists:
                    loaded.values.pop(key, None)


def _names(source: Source) -> set[str]:
    found = source.tensors.keys() | source.values.keys() | source.lost.keys()
    return {name for name in found if not is_reserved(name)}


def _tied(flat: Flat, there: set[str]) -> set[str]:
    """Return the names of tensors that are also in the checkpoint under another name, as tied weights may be."""
    filled = {_memory(tensor) for name, tensor in flat.tensors.items() if name in there}
    return {name for name, tensor in flat.tensors.items() if name not in there and _memory(tensor) in filled}


def _memory(tensor: torch.Tensor) -> object:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.numel():
        return id(tensor)
    return local.data_ptr(), local.dtype, tuple(local.shape), local.stride()


def _random_state(source: Source, ranks: Ranks) -> random_state.State | None:
    """Return what this rank has saved of its random number generators, when there were as many ranks as now."""
    prefix = f"ranks.{ranks.rank}.random."
    if source.world != ranks.world or f"{prefix}python" not in source.values:
        return None
    names = [name for name in source.tensors if name.startswith(prefix)]
    wanted = [Wanted(name, Region.whole(source.tensors[name].shape)) for name in names]
    tensors = gather(source.tensors, source.reader, wanted)
    tree: random_state.State = {}
    leaves: dict[str, object] = dict(zip(names, tensors, strict=True))
    leaves |= {name: from_json(value, name) for name, value in source.values.items() if name.startswith(prefix)}
    for name, leaf in leaves.items():
        *path, last = name.removeprefix(prefix).split(".")
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = leaf
    return tree


def _misfit(name: str, box: Held, source: Source) -> str | None:
    saved = source.tensors[name]
    if (saved.dtype, saved.shape) == (box.dtype, box.shape):
        return None
    return f"{name} is {box.dtype} {list(box.shape)} here and {saved.dtype} {list(saved.shape)} there"


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    return [f"{what}: {', '.join(_shortened(found))}"] if found else []


def _shortened(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _LISTED
    return list(texts) if more <= 0 else [*texts[:_LISTED], f"and {more} more"]

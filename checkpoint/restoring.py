"""Loading a checkpoint into a training state: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, cast

import torch

from tlaunch.checkpoint import catalog, random_state
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.flat import Flat, State, expand, flatten, rebuild, stateful, take_on
from tlaunch.checkpoint.layout import Address, is_reserved
from tlaunch.checkpoint.manifest import Manifest
from tlaunch.checkpoint.ranks import Ranks
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.resharding import Wanted, load
from tlaunch.checkpoint.slices import Held, held
from tlaunch.checkpoint.values import from_json

_LISTED = 8


def restore(files: Files, ranks: Ranks, state: State, *, step: int | None, strict: bool) -> int | None:
    """See ``Checkpointer.restore``."""
    address: Address | None = ranks.from_first(lambda: catalog.find(files, step))
    if address is None:
        return None
    where = f"{files.root}/{address.folder}"
    tree: dict[str, Any] = {}
    flat, loaded, own = Flat(), Flat(), None
    unwanted: set[str] = set()
    error: Exception | None = None
    try:
        manifest = catalog.manifest_of(files, address)
        tree = expand(state)
        flat = flatten(tree)
        loaded = _load(files, address, manifest, flat, where, strict=strict)
        _keep_own_groups(state, flat, loaded)
        own = _random_state(files, address, manifest, ranks)
        unwanted = _names(manifest) - flat.tensors.keys() - flat.values.keys() if strict else set()
    except Exception as failed:  # noqa: BLE001 - the others wait for us
        error = failed
    # Before anything is changed anywhere: when one rank cannot go on, none does.
    told = ranks.everybody((f"{error}" or repr(error) if error else "", unwanted))
    said = next((text for text, _ in told if text), None)
    if error is not None:
        raise error
    # Stages of a pipeline want different things; what nobody wants is too much.
    if nobodys := set.intersection(*(names for _, names in told)) if said is None else set():
        raise Unusable(f"{where}: {_listed('not in the state', nobodys)[0]} (strict=False leaves them alone)")
    if said is not None:
        raise CheckpointError(f"another rank could not load the checkpoint: {said}")
    taken = rebuild(tree, Flat({}, loaded.values))
    # First the user's own code, which may refuse what it is given: then neither model nor optimizer has changed.
    refusing = stateful(state)
    theirs = set(flatten({name: tree[name] for name in refusing}).tensors)
    _fill(flat, loaded, theirs)
    take_on(state, taken, refusing)
    _fill(flat, loaded, loaded.tensors.keys() - theirs)
    take_on(state, taken, state.keys() - refusing)
    if own is not None:
        random_state.restore(own)
    return address.step


def _load(files: Files, address: Address, manifest: Manifest, flat: Flat, where: str, *, strict: bool) -> Flat:
    """Return what the state wants of the checkpoint: boxes of tensors that fit, and values."""
    wanted = flat.tensors.keys() | flat.values.keys()
    there = _names(manifest)
    if strict and wanted - there:
        complaints = [
            *_listed("missing in the checkpoint", wanted - there),
            *_listed("not in the state", there - wanted),
        ]
        raise Unusable(f"{where}: {'; '.join(complaints)} (strict=False leaves them alone)")
    boxes = {name: held(name, tensor) for name, tensor in flat.tensors.items() if name in there}
    values = {name for name in flat.values if name in there}
    differing = _listed("a tensor here, a value there", boxes.keys() & manifest.values.keys())
    differing += _listed("a value here, a tensor there", values & manifest.tensors.keys())
    both = {name: box for name, box in boxes.items() if name in manifest.tensors}
    differing += _shortened([text for name, box in both.items() if (text := _misfit(name, box, manifest))])
    if differing:
        raise Unusable(f"{where}: {'; '.join(differing)}")
    names = list(boxes)
    tensors = load(files, address, manifest, [Wanted(name, boxes[name].region) for name in names])
    return Flat(
        dict(zip(names, tensors, strict=True)),
        {name: from_json(manifest.values[name], name) for name in values},
    )


def _fill(flat: Flat, loaded: Flat, names: AbstractSet[str]) -> None:
    with torch.no_grad():
        for name in loaded.tensors.keys() & names:
            held(name, flat.tensors[name]).local.copy_(loaded.tensors[name])


def _keep_own_groups(state: State, flat: Flat, loaded: Flat) -> None:
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


def _names(manifest: Manifest) -> set[str]:
    return {name for name in manifest.tensors.keys() | manifest.values.keys() if not is_reserved(name)}


def _random_state(files: Files, address: Address, manifest: Manifest, ranks: Ranks) -> random_state.State | None:
    """Return what this rank has saved of its random number generators, when there were as many ranks as now."""
    prefix = f"ranks.{ranks.rank}.random."
    if manifest.world != ranks.world or f"{prefix}python" not in manifest.values:
        return None
    names = [name for name in manifest.tensors if name.startswith(prefix)]
    tensors = load(files, address, manifest, [Wanted(name, _whole(manifest, name)) for name in names])
    tree: random_state.State = {}
    leaves: dict[str, object] = dict(zip(names, tensors, strict=True))
    leaves |= {name: from_json(value, name) for name, value in manifest.values.items() if name.startswith(prefix)}
    for name, leaf in leaves.items():
        *path, last = name.removeprefix(prefix).split(".")
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = leaf
    return tree


def _whole(manifest: Manifest, name: str) -> Region:
    return Region.whole(manifest.tensors[name].shape)


def _misfit(name: str, box: Held, manifest: Manifest) -> str | None:
    saved = manifest.tensors[name]
    if (saved.dtype, saved.shape) == (box.dtype, box.shape):
        return None
    return f"{name} is {box.dtype} {list(box.shape)} here and {saved.dtype} {list(saved.shape)} there"


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    return [f"{what}: {', '.join(_shortened(found))}"] if found else []


def _shortened(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _LISTED
    return list(texts) if more <= 0 else [*texts[:_LISTED], f"and {more} more"]

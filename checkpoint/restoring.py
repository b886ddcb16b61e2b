"""Loading a checkpoint into a training state: all of it, or nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from tlaunch.checkpoint import catalog, random_state
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.fitting import Fitting, fit, listed
from tlaunch.checkpoint.flat import Flat, State, flatten, rebuild, stateful, take_on, without_state
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.memory import overlapping
from tlaunch.checkpoint.opening import locate, open_own, open_spot
from tlaunch.checkpoint.ranks import Node, Ranks
from tlaunch.checkpoint.reading import Twice
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.resharding import Wanted, compare, gather
from tlaunch.checkpoint.sharing import Range, blocks, cuts, pack, pack_sums, share, unpack, unpack_sums
from tlaunch.checkpoint.source import Source
from tlaunch.checkpoint.values import from_json

_THREADS = 2
"""At least so many read first: while one waits for the disk, another compares checksums."""
_TOLD = 16 << 20
"""Bytes about what is to be read that all ranks together tell one another at most."""


def restore(files: Files, ranks: Ranks, state: State, *, step: int | None, strict: bool) -> int | None:
    """See ``Checkpointer.restore``."""
    address: Address | None = ranks.from_first(lambda: catalog.find(files, step))
    if address is None:
        return None
    _restore(lambda: open_own(files, address), ranks, state, step, strict=strict)
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
        return _restore(lambda: open_spot(spot), ranks, state, step, strict=strict).step
    finally:
        ranks.close()


def _restore(opened: Callable[[], Source], ranks: Ranks, state: State, step: int | None, *, strict: bool) -> Source:
    """Load a checkpoint on all ranks, or on none. See ``docs/adr/0018`` for why it is read twice."""
    restoring = _Restoring(state, ranks, step)
    # Before anything is changed anywhere: when one rank cannot go on, none does.
    failed = "another rank could not load the checkpoint"
    try:
        told = ranks.together(lambda: restoring.fit(opened(), strict=strict), failed)
        sums = ranks.together(lambda: restoring.check(told), failed)
    except BaseException:
        restoring.undo()
        raise
    ranks.together(lambda: restoring.change(sums), "another rank could not load all of the checkpoint, this one has")
    return restoring.found.source


@dataclass(frozen=True, slots=True)
class _Told:
    """What the other ranks have to know of a rank. ``ranges``: what it reads, where that is not too much to tell."""

    step: int | None
    unwanted: set[str]
    node: Node
    ranges: bytes | None


class _Restoring:
    """Loading on one rank, in steps that all ranks make together. Only the last changes anything."""

    def __init__(self, state: State, ranks: Ranks, step: int | None) -> None:
        self.found: Fitting
        self._state, self._ranks, self._step = state, ranks, step
        self._fresh = without_state(state)
        self._sums: dict[Range, int] = {}
        self._node: list[int] = []
        self._gathered: dict[str, torch.Tensor] = {}
        self._random: random_state.State | None = None

    def fit(self, source: Source, *, strict: bool) -> _Told:
        """Look whether the checkpoint has what the state wants."""
        self.found = fit(source, self._state, strict=strict)
        ranges = pack(self.found.filling.ranges) if source.twice is not None else b""
        few = len(ranges) * self._ranks.world <= _TOLD
        return _Told(self._step, self.found.unwanted, Node.here(), ranges if few else None)

    def check(self, told: Sequence[_Told]) -> bytes:
        """Look whether it is as it was written. Returns the checksums of what the ranks of this node have told."""
        source = self.found.source
        other = next((rank for rank, one in enumerate(told) if one.step != told[0].step), None)
        if other is not None:
            asked = f"rank 0 asks for {told[0].step}, rank {other} for {told[other].step}"
            raise Unusable(f"step: {asked}; expected the same on all ranks")
        # Stages of a pipeline want different things; what nobody wants is too much.
        if nobodys := set.intersection(*(one.unwanted for one in told)):
            (text,) = listed("not in the state", nobodys)
            raise Unusable(f"{source.where}: {text} (strict=False leaves them alone)")
        self._random = _random_state(source, self._ranks)
        if source.twice is not None:
            return self._compare(source.twice, told)
        tensors = gather(source.tensors, source.reader, self.found.wanted)
        self._gathered = dict(zip(self.found.tensors, tensors, strict=True))
        return b""

    def _compare(self, twice: Twice, told: Sequence[_Told]) -> bytes:
        """Read this rank's share of what its node wants, or where that is not known all that it wants itself."""
        rank = self._ranks.rank
        node = [other for other, one in enumerate(told) if one.node == told[rank].node]
        packed = [ranges for other in node if (ranges := told[other].ranges) is not None]
        shared = len(packed) == len(node) > 1
        wanted = list(chain.from_iterable(map(unpack, packed))) if shared else self.found.filling.ranges
        part, parts = (node.index(rank), len(node)) if shared else (0, 1)
        threads = max(_THREADS, (os.cpu_count() or 1) // len(node))
        sums = compare(share(blocks(wanted), part, parts), cuts(wanted), twice.comparer, threads=threads)
        if not shared:
            self._sums = sums
            return b""
        self._node = node
        return pack_sums(sums)

    def undo(self) -> None:
        """Take from the optimizers that were new the states that torch has made to say what they want."""
        for optimizer in self._fresh.values():
            optimizer.state.clear()

    def change(self, told: Sequence[bytes]) -> None:
        """Put what was found in order into the state."""
        for other in self._node:
            self._sums |= unpack_sums(told[other])
        state, tree, values = self._state, self.found.tree, self.found.values
        taken = rebuild(tree, Flat({}, values))
        # First the user's own code, which may refuse what it is given: then neither model nor optimizer has changed.
        refusing = stateful(state)
        theirs = set(flatten({name: tree[name] for name in refusing}).tensors)
        names = self.found.tensors.keys()
        try:
            self._fill(names & theirs)
            take_on(state, taken, refusing)
        except BaseException:
            self.undo()
            raise
        self._fill(names - theirs)
        take_on(state, taken, state.keys() - refusing)
        for name, optimizer in self._fresh.items():
            if not any(tensor.startswith(f"{name}.state.") for tensor in names):
                optimizer.state.clear()  # none of its state was there to be loaded
        if self._random is not None:
            random_state.restore(self._random)

    def _fill(self, names: set[str]) -> None:
        twice, tensors = self.found.source.twice, self.found.tensors
        if twice is None:
            for name, found in self._gathered.items():
                if name in names:
                    tensors[name].copy_(found)
            return
        # Of tensors that share memory the last one counts; the others are read side by side.
        alone = overlapping({name: tensor for name, tensor in tensors.items() if name in names})
        for together in (names - set(alone), *({name} for name in alone)):
            try:
                self.found.filling.read(functools.partial(twice.reader, self._sums), together)
            except CheckpointError as error:
                raise type(error)(f"{error}; the state is partly loaded now") from error


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

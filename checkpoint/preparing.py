"""From a state to what a save copies and writes: which tensors, to which byte of the shard, and which values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from tlaunch.checkpoint import random_state
from tlaunch.checkpoint.agreement import Inventory, Share, agree, below, inventory, sample
from tlaunch.checkpoint.capture import Target
from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.flat import (
    Flat,
    State,
    expand,
    flatten,
    joined,
    refuse_other_than_mapping,
    steady_storages,
    without_state,
    without_steps,
)
from tlaunch.checkpoint.layout import RANKS, RESERVED
from tlaunch.checkpoint.outline import Outline, outline, parts_of
from tlaunch.checkpoint.plan import boxes_to_bytes
from tlaunch.checkpoint.ranks import Ranks
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Box, Layout, arrange
from tlaunch.checkpoint.slices import Held, Known, held
from tlaunch.checkpoint.values import Json, to_json


@dataclass(frozen=True, slots=True)
class Shape:
    """What stays the same from save to save, as long as ``outline`` fits the modules and optimizers of the state."""

    outline: Outline | None
    loose: Mapping[str, tuple[str, tuple[int, ...], Region]]
    """Type, shape and box of each tensor that stands in no module or optimizer."""
    loose_values: AbstractSet[str]
    values: frozenset[str]
    """The values that this rank writes."""
    layout: Layout[Box]
    boxes: bytes
    """What the plan says of the layout."""
    begins: Mapping[str, int]
    """Where the tensors that this rank writes begin in the shard."""
    now: tuple[Target, ...]
    """Tensors of modules and optimizers that may change at any time."""
    later: tuple[Target, ...]
    """Those that only ``optimizer.step()`` changes."""

    def fits(self, parts: Mapping[str, Any], loose: Mapping[str, Held], values: Mapping[str, object]) -> bool:
        """Whether a state still has this shape."""
        return (
            self.outline is not None
            and self.loose_values == values.keys()
            and self.loose == {name: _box_of(at) for name, at in loose.items()}
            and self.outline.fits(parts)
        )


@dataclass(frozen=True, slots=True)
class Order:
    """What one save is to do: copy ``now`` at once and ``shape.later`` beside the training."""

    shape: Shape
    now: Sequence[Target]
    values: dict[str, Json]
    """Those that this rank writes."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A state, looked at on this rank alone. What follows ``shape`` counts only without one."""

    parts: Mapping[str, Any]
    boxes: Mapping[str, Held]
    """Those of tensors that stand in no module or optimizer."""
    values: Mapping[str, Json]
    shape: Shape | None
    """That of an earlier save, if it fits."""
    fixed: Flat = field(default_factory=Flat)
    loose: Flat = field(default_factory=Flat)
    flat: Flat = field(default_factory=Flat)


class Preparing:
    """Prepares the saves of one rank. Ranks agree on who writes what when the shape of their states is new."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._inventory: Inventory | None = None
        self._share = Share(frozenset(), frozenset(), frozenset())
        self._shape: Shape | None = None

    @property
    def agreed(self) -> bool:
        """Whether the ranks have agreed on who writes what, at an earlier save."""
        return self._inventory is not None

    def order(self, state: State) -> Order:
        """Return what saving this state means. Collective at the first save.

        Raises:
            Unusable: something in the state has no representation; its name is in the message. At the first save, that
                may be so on another rank.
        """
        if self.agreed:
            seen = self._look(state)
        else:  # all ranks are about to agree, and would wait for one that cannot
            looked: list[_Seen] = []
            self._ranks.together(lambda: looked.append(self._look(state)), "another rank cannot save what it has")
            (seen,) = looked
        shape = seen.shape or self._drawn(seen)
        now = [Target(box, shape.begins[name], box.size) for name, box in seen.boxes.items() if name in shape.begins]
        values = {name: value for name, value in seen.values.items() if name in shape.values}
        return Order(shape, [*now, *shape.now], values)

    def _look(self, state: State) -> _Seen:
        refuse_other_than_mapping(state)
        parts = parts_of(state)
        loose = self._loose({str(name): value for name, value in state.items() if str(name) not in parts})
        boxes = {name: held(name, tensor) for name, tensor in loose.tensors.items()}
        shape = self._shape
        if shape is not None and shape.outline is not None and shape.fits(parts, boxes, loose.values):
            return _Seen(parts, boxes, _checked(shape.outline.values(), loose.values), shape)
        fixed = leaves_of(parts)
        flat = joined(fixed, loose)
        known: Known = {}
        for name, tensor in flat.tensors.items():
            held(name, tensor, known)  # refuses what cannot be saved
        return _Seen(parts, boxes, _checked(flat.values), None, fixed, loose, flat)

    def forget(self) -> None:
        """Let go of the tensors of the last save."""
        self._shape = None

    def _loose(self, state: State) -> Flat:
        """Return the leaves of what is neither module nor optimizer, and what each rank has for itself."""
        taken = next((name for name in RESERVED if name in state), None)
        if taken is not None:
            raise Unusable(f"{taken}: this name is taken; expected another one in the state")
        own = {RANKS: {str(self._ranks.rank): {"random": random_state.capture()}}}
        return flatten({**expand(state), **own})

    def _drawn(self, seen: _Seen) -> Shape:
        """Work everything out anew. Collective where there is anything else than before that others may have too."""
        fixed, loose, flat = seen.fixed, seen.loose, seen.flat
        if self._inventory is None or self._shared(flat, self._share.own) != self._inventory:
            own = frozenset({f"{RANKS}.{self._ranks.rank}"})
            names = [name for name in (*loose.tensors, *loose.values) if not below(name, own)]
            self._share = agree(self._ranks, self._shared(flat, own), sample(flat), names, own)
            self._inventory = self._shared(flat, self._share.own)
        mine = {name: at for name, tensor in flat.tensors.items() if self._writes(name, at := held(name, tensor))}
        layout = arrange([Box(name, at.dtype, at.shape, at.region) for name, at in mine.items()])
        begins = {box.name: begin for box, begin in layout.boxes}
        targets = {name: Target(mine[name], begins[name], mine[name].size) for name in mine if name in fixed.tensors}
        shape = Shape(
            outline=outline(seen.parts, fixed),
            loose={name: _box_of(at) for name, at in seen.boxes.items()},
            loose_values=loose.values.keys(),
            values=frozenset(name for name in flat.values if name in self._share.values or self._owns(name)),
            layout=layout,
            boxes=boxes_to_bytes(layout.boxes),
            begins=begins,
            now=tuple(target for name, target in targets.items() if name not in fixed.steady),
            later=tuple(target for name, target in targets.items() if name in fixed.steady),
        )
        self._shape = shape if shape.outline is not None else None
        return shape

    def _shared(self, flat: Flat, own: AbstractSet[str]) -> Inventory:
        return inventory(flat, self._ranks.world, own)

    def _writes(self, name: str, at: Held) -> bool:
        return (name, at.region) in self._share.boxes or self._owns(name)

    def _owns(self, name: str) -> bool:
        return below(name, self._share.own)


def leaves_of(parts: Mapping[str, Any]) -> Flat:
    """Ask modules and optimizers for their states. Optimizers that have none yet get their emptiness back."""
    fresh = without_state(parts)
    try:
        flat = flatten(expand(parts), steady_storages(parts))
        without_steps(flat, fresh)
    finally:
        for optimizer in fresh.values():
            optimizer.state.clear()
    return flat


def _box_of(at: Held) -> tuple[str, tuple[int, ...], Region]:
    return at.dtype, at.shape, at.region


def _checked(*tables: Mapping[str, object]) -> dict[str, Json]:
    return {name: to_json(value, name) for table in tables for name, value in table.items()}

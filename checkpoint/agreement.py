"""Who writes what: agreed on at the first save, and again when what ranks have in common has another shape.

A sharded tensor tells by its mesh who else holds the same box. Of everything else rank 0 says what it has, and each
rank in what it differs. So what is said grows with the state and with the number of ranks, but not with their product,
except where ranks have little in common, as stages of a pipeline do.

What only one rank has may change whenever it likes, without a word to the others. See ``docs/adr/0023``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias

from torch.distributed.tensor import DTensor

from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.flat import Flat
from tlaunch.checkpoint.ranks import Ranks
from tlaunch.checkpoint.slices import Box, Known, held, holders

Sample: TypeAlias = Mapping[str, "tuple[float, ...]"]
"""A few numbers of each tensor that ranks should hold alike, by name."""

_SAMPLED = 16


@dataclass(frozen=True, slots=True)
class Inventory:
    """What one rank could write, with sizes in bytes."""

    boxes: Mapping[Box, int]
    """Those of which only an exchange tells who else holds them."""
    placed: Mapping[Box, tuple[int, tuple[int, ...]]]
    """Those of which it is known: size, and ranks."""
    values: tuple[str, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Type and global shape of each tensor."""

    @property
    def expected(self) -> int:
        """Bytes of ``placed`` that fall to this rank when they are shared out evenly."""
        return sum(size // len(ranks) for size, ranks in self.placed.values() if ranks)


def inventory(flat: Flat, world: int, own: AbstractSet[str]) -> Inventory:
    """Return what this rank holds, but for what stands below the names of ``own``."""
    known: Known = {}
    boxes: dict[Box, int] = {}
    placed: dict[Box, tuple[int, tuple[int, ...]]] = {}
    kinds: dict[str, str] = {}
    for name, tensor in flat.tensors.items():
        if below(name, own):
            continue
        at = held(name, tensor, known)
        kinds[name] = f"{at.dtype} {list(at.shape)}"
        ranks = holders(tensor, world) if isinstance(tensor, DTensor) else None
        if ranks is None:
            boxes[name, at.region] = at.size
        else:
            placed[name, at.region] = at.size, ranks
    return Inventory(boxes, placed, tuple(name for name in flat.values if not below(name, own)), kinds)


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank writes, of what it holds: this, and all below the names of ``own``."""

    boxes: AbstractSet[Box]
    values: AbstractSet[str]
    own: AbstractSet[str]


@dataclass(frozen=True, slots=True)
class First:
    """What rank 0 says."""

    boxes: tuple[tuple[Box, int], ...]
    values: tuple[str, ...]
    placed: frozenset[str]
    numbers: Sample
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Those that others may lack, in order."""
        return [*(name for (name, _), _ in self.boxes), *self.values]


@dataclass(frozen=True, slots=True)
class Difference:
    """What another rank says."""

    lacks: tuple[int, ...] = ()
    """Which boxes and values of rank 0 it does not have: their places in its lists, one after the other."""
    more: tuple[tuple[Box, int], ...] = ()
    values: tuple[str, ...] = ()
    """Those that rank 0 does not have."""
    expected: int = 0
    stranger: str = ""
    """A tensor that is not at all what rank 0 has under this name, where most are not."""
    unlike: str = ""
    """Where a type or shape is another than that of rank 0: what it is on both."""


def agree(ranks: Ranks, mine: Inventory, numbers: Sample, loose: Iterable[str], own: AbstractSet[str]) -> Share:
    """Agree with all ranks on who writes what. Collective.

    Args:
        ranks: all of them.
        mine: what this rank holds.
        numbers: some of what it holds, to be compared.
        loose: names that become its own if no other rank has them.
        own: names that are its own in any case, which are not in ``mine``.

    Raises:
        Unusable: ranks call different tensors by the same names, or have them in other types or shapes.
    """
    if ranks.world == 1:
        return Share(mine.boxes.keys() | mine.placed.keys(), frozenset(mine.values), own)
    placed = frozenset(name for name, _ in mine.placed)
    first = ranks.from_first(lambda: First(tuple(mine.boxes.items()), mine.values, placed, numbers, mine.kinds))
    told = ranks.everybody(difference(first, mine, numbers))
    for rank, said in enumerate(told):
        if said.unlike:
            raise Unusable(f"{said.unlike} on rank {rank}; expected the same, or names of their own")
    stranger = next((rank for rank, each in enumerate(told) if each.stranger), None)
    if stranger is not None:
        raise Unusable(
            f"{told[stranger].stranger}: ranks 0 and {stranger} hold different numbers under this name; expected "
            "replicas, a DTensor, or a name of its own for what each rank has, such as that of the pipeline's stage"
        )
    return Share(
        boxes=shared_out(ranks.rank, first, told) | spread(ranks.rank, mine.placed),
        values=values_of(ranks.rank, first, told),
        own=own | own_names(ranks.rank, first, told, loose),
    )


def difference(first: First, mine: Inventory, numbers: Sample) -> Difference:
    """Return in what a rank differs from rank 0."""
    there, values, here = {box for box, _ in first.boxes}, set(first.values), set(mine.values)
    lacks = [index for index, (box, _) in enumerate(first.boxes) if box not in mine.boxes]
    lacks += [index for index, name in enumerate(first.values, len(first.boxes)) if name not in here]
    return Difference(
        lacks=tuple(lacks),
        more=tuple((box, size) for box, size in mine.boxes.items() if box not in there),
        values=tuple(name for name in mine.values if name not in values),
        expected=mine.expected,
        stranger=_stranger(numbers, first.numbers),
        unlike=_unlike(first, mine),
    )


def _unlike(first: First, mine: Inventory) -> str:
    theirs = {**dict.fromkeys(first.values, "no tensor"), **first.kinds}
    ours = {**dict.fromkeys(mine.values, "no tensor"), **mine.kinds}
    differing = (name for name, kind in ours.items() if theirs.get(name, kind) != kind)
    name = next(differing, None)
    return "" if name is None else f"{name}: is {theirs[name]} on rank 0 and {ours[name]}"


def shared_out(rank: int, first: First, told: Sequence[Difference]) -> set[Box]:
    """Return the boxes that ``rank`` writes when each is written once, and every rank writes about as many bytes."""
    everybody = range(len(told))
    lacking: dict[int, set[int]] = {}
    sizes = dict(first.boxes)
    held_by: dict[Box, Sequence[int]] = {box: everybody for box, _ in first.boxes}
    more: dict[Box, list[int]] = {}
    for each, said in enumerate(told):
        for index in said.lacks:
            lacking.setdefault(index, set()).add(each)
        for box, size in said.more:
            more.setdefault(box, []).append(each)
            sizes[box] = size
    for index, who in lacking.items():
        if index < len(first.boxes):
            held_by[first.boxes[index][0]] = [each for each in everybody if each not in who]
    held_by |= more
    load = [said.expected for said in told]
    found = set()
    # Those that only one rank holds are settled; then the large ones first, so that small ones even things out.
    for box in sorted(held_by, key=lambda box: (len(held_by[box]) > 1, -sizes[box], box[0], box[1].offset)):
        writer = min(held_by[box], key=load.__getitem__)
        load[writer] += sizes[box]
        if writer == rank:
            found.add(box)
    return found


def spread(rank: int, placed: Mapping[Box, tuple[int, tuple[int, ...]]]) -> set[Box]:
    """Return which boxes ``rank`` writes, of those that the same ranks hold. Each of these comes to the same result."""
    groups: dict[tuple[int, ...], list[tuple[int, Box]]] = {}
    for box, (size, ranks) in placed.items():
        groups.setdefault(ranks, []).append((size, box))
    found = set()
    groups.pop((), None)
    for ranks, boxes in groups.items():
        load = dict.fromkeys(ranks, 0)
        for size, box in sorted(boxes, key=lambda each: (-each[0], each[1][0])):
            writer = min(ranks, key=load.__getitem__)
            load[writer] += size
            if writer == rank:
                found.add(box)
    return found


def values_of(rank: int, first: First, told: Sequence[Difference]) -> set[str]:
    """Return the values that ``rank`` writes: those that it is the first to hold."""
    if rank == 0:
        return set(first.values)
    return set(told[rank].values).difference(*(said.values for said in told[:rank]))


def own_names(rank: int, first: First, told: Sequence[Difference], loose: Iterable[str]) -> set[str]:
    """Return the shortest names below which no other rank has anything, as far as they cover names of ``loose``."""
    lacking = Counter(index for said in told for index in said.lacks)
    theirs = {name for index, name in enumerate(first.names) if rank or lacking[index] < len(told) - 1}
    others = set(_prefixes({*theirs, *first.placed}))
    for each, said in enumerate(told):
        if each != rank:
            others.update(_prefixes({*said.values, *(name for (name, _), _ in said.more)}))
    return {
        next(prefix for prefix in _prefixes([name]) if prefix not in others) for name in loose if name not in others
    }


def below(name: str, own: AbstractSet[str]) -> bool:
    """Whether a name is one of ``own``, or stands below one."""
    return any(prefix in own for prefix in _prefixes([name]))


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """Yield the names and those above them, of each the shortest first."""
    for name in names:
        at = name.find(".")
        while at >= 0:
            yield name[:at]
            at = name.find(".", at + 1)
        yield name


def sample(flat: Flat) -> Sample:
    """Return some numbers of this rank's parameters and optimizer states which are not sharded."""
    found = {}
    for name in flat.steady:
        tensor = flat.tensors[name]
        if not isinstance(tensor, DTensor) and tensor.numel() > 1 and tensor.is_floating_point():
            found[name] = tuple(tensor.detach().flatten()[:_SAMPLED].tolist())
    return found


def _stranger(mine: Sample, first: Sample) -> str:
    """Return a tensor of those that rank 0 calls by the same name, if most of them are not the same at all.

    Replicas differ a little at most. A box is written by one of those who seem to hold it: the others' would be lost.
    """
    common = sorted(mine.keys() & first.keys())
    apart = [name for name in common if _far(mine[name], first[name])]
    return apart[0] if len(apart) > len(common) / 2 else ""


def _far(one: Sequence[float], other: Sequence[float]) -> bool:
    largest = max(map(abs, (*one, *other)))
    return any(abs(a - b) > largest / 10 for a, b in zip(one, other, strict=False))

"""What differs between two checkpoints, of whatever format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.layout import is_reserved
from tlaunch.checkpoint.manifest import BLOCK, File, Slice, Tensor
from tlaunch.checkpoint.source import Reader, Source, boxes, content
from tlaunch.checkpoint.values import Json


@dataclass(frozen=True, slots=True)
class Difference:
    """What is the matter with a name, and what each of the two has there: empty when it has nothing."""

    name: str
    what: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences, how much is equal, and how many of the equal tensors were not even read."""

    differences: tuple[Difference, ...]
    tensors: int
    values: int
    unread: int


def compare(first: Source, second: Source, told: Callable[[int], object] = lambda _: None) -> Comparison:
    """Compare names, types, shapes, every element and every value.

    What each rank has for itself, such as random number states, is left out: see ``is_reserved``. ``told`` is called
    with numbers of bytes of tensors that both have.

    Raises:
        Damaged: one of the two is.
    """
    found = [*_lonely(first, second)]
    readers = first.streaming_reader(), second.streaming_reader()
    tensors = values = unread = 0
    for name in shared_tensors(first, second):
        one, other = first.tensors[name], second.tensors[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            found.append(Difference(name, "type or shape", _kind(one), _kind(other)))
            told(one.size)
            continue
        tensors += 1
        if _same_checksums(first, second, name):
            unread += 1
            told(one.size)
        elif (text := _elements(one, other, readers, told)) is not None:
            tensors -= 1
            found.append(Difference(name, text, _kind(one), _kind(other)))
    for name in sorted(first.values.keys() & second.values.keys()):
        if is_reserved(name):
            continue
        texts = _text(first.values[name]), _text(second.values[name])
        if texts[0] == texts[1]:
            values += 1
        else:
            found.append(Difference(name, "value", *texts))
    return Comparison(tuple(sorted(found, key=lambda each: each.name)), tensors, values, unread)


def shared_tensors(first: Source, second: Source) -> list[str]:
    """Return the names of tensors that both have, as they are compared."""
    return [name for name in first.tensors if name in second.tensors and not is_reserved(name)]


def _lonely(first: Source, second: Source) -> Iterator[Difference]:
    """Yield what only one of the two has, or has as something else, or cannot be read."""
    one, other = _all(first), _all(second)
    for name in sorted(one.keys() | other.keys()):
        texts = one.get(name, ""), other.get(name, "")
        tensors = (name in first.tensors) + (name in second.tensors)
        if not all(texts):
            yield Difference(name, "only in the first" if texts[0] else "only in the second", *texts)
        elif name in first.lost or name in second.lost:
            yield Difference(name, "cannot be read", *texts)
        elif tensors == 1:
            yield Difference(name, "tensor or value", *texts)


def _all(source: Source) -> dict[str, str]:
    found = {name: _kind(tensor) for name, tensor in source.tensors.items()}
    found |= {name: _text(value) for name, value in source.values.items()}
    found |= dict(source.lost)
    return {name: text for name, text in found.items() if not is_reserved(name)}


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape)) or 'scalar'}"


def _text(value: Json) -> str:
    return json.dumps(value, sort_keys=True)


# --- elements ------------------------------------------------------------------------------------------------------


def _same_checksums(first: Source, second: Source, name: str) -> bool:
    """Whether the checksums alone say that a tensor is the same: its slices lie alike, in blocks that are alike."""
    one, other = first.tensors[name].slices, second.tensors[name].slices
    if len(one) != len(other) or not first.files or not second.files:
        return False
    width = BYTES[first.tensors[name].dtype]
    pairs = zip(_in_order(one), _in_order(other), strict=True)
    return all(
        (a.region, a.begin) == (b.region, b.begin) and _same_blocks(first.files[a.file], second.files[b.file], a, width)
        for a, b in pairs
    )


def _in_order(slices: tuple[Slice, ...]) -> list[Slice]:
    return sorted(slices, key=lambda at: (at.region.offset, at.region.shape))


def _same_blocks(one: File, other: File, at: Slice, width: int) -> bool:
    begin, end = at.begin // BLOCK, -(-(at.begin + at.region.volume * width) // BLOCK)
    if one.blocks[begin:end] != other.blocks[begin:end]:
        return False
    return one.size == other.size or end * BLOCK <= min(one.size, other.size)  # the last blocks are equally long


def _elements(one: Tensor, other: Tensor, readers: tuple[Reader, Reader], told: Callable[[int], object]) -> str | None:
    """Say how many elements differ, and by how much; ``None`` when none does."""
    count, total, largest = 0, 0, 0.0
    for box in boxes(one.shape, BYTES[one.dtype]):
        here, there = content(one, box, readers[0]), content(other, box, readers[1])
        total += box.volume
        told(len(here))
        if here != there:
            more, by = _difference(here, there, one.dtype)
            count += more
            largest = by if by != by or by > largest else largest  # noqa: PLR0124 - nan is unequal to itself
    return f"{count} of {total} elements, by up to {largest:.3g}" if count else None


def _difference(here: bytearray, there: bytearray, dtype: str) -> tuple[int, float]:
    from tlaunch.checkpoint.arithmetic import difference  # loads torch

    return difference(here, there, dtype)

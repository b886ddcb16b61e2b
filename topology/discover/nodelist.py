"""Slurm's lists of nodes: ``gb[01-18,20],x7`` and ``a[1-2]b[3-4]``."""

from __future__ import annotations

import itertools
import re
from math import prod

from tlaunch.topology.description import MAX_NODES
from tlaunch.topology.discover.report import fail
from tlaunch.topology.yamltree import is_name, shown

MAX_TEXT = 1 << 20
_EXAMPLE = "expected a list such as gb[01-18,20],x7"
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def expand(text: str, origin: str = "node list") -> tuple[str, ...]:
    """Return the names that a node list stands for, in its order; of several brackets the last varies fastest.

    The width of the first number of a range is kept: ``[08-10]`` is 08, 09, 10. Names that stand twice come twice.
    ``origin`` names the list in errors.

    Raises:
        TopologyError: it is no node list, or one of more than ``MAX_NODES`` names.
    """
    if len(text) > MAX_TEXT:
        fail(origin, None, "node list", f"longer than {MAX_TEXT >> 20} MiB; {_EXAMPLE}")
    names: list[str] = []
    for item in _items(text, origin):
        names += _names(item, origin, MAX_NODES - len(names))
    return tuple(names)


def _items(text: str, origin: str) -> list[str]:
    """Split at the commas outside of brackets."""
    items, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if depth not in {0, 1}:
            fail(origin, None, shown(text), f"a bracket too many; {_EXAMPLE}")
        if letter == "," and not depth:
            items.append(text[start:place])
            start = place + 1
    if depth:
        fail(origin, None, shown(text), f"a bracket is not closed; {_EXAMPLE}")
    return [item.strip() for item in (*items, text[start:])]


def _names(item: str, origin: str, room: int) -> list[str]:
    """Expand one item without commas outside of brackets."""
    parts = re.split(r"\[([^\]]*)\]", item)  # literal, ranges, literal, ranges, ..., literal
    choices = [_numbers(part, item, origin, room) if index % 2 else [part] for index, part in enumerate(parts)]
    if prod(map(len, choices)) > room:
        fail(origin, None, shown(item), f"more than {MAX_NODES} nodes; expected fewer")
    names = ["".join(words) for words in itertools.product(*choices)]
    for name in names:
        if not is_name(name):
            fail(origin, None, shown(item), f"{shown(name)} does not name a node; {_EXAMPLE}")
    return names


def _numbers(ranges: str, item: str, origin: str, room: int) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        span = _SPAN.fullmatch(part.strip())
        if span is None:
            fail(origin, None, shown(item), f"{shown(part)} is no number or range; {_EXAMPLE}")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            fail(origin, None, shown(item), f"{part} counts down; {_EXAMPLE}")
        if len(numbers) + last - first >= room:
            fail(origin, None, shown(item), f"more than {MAX_NODES} nodes; expected fewer")
        numbers += [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    return numbers

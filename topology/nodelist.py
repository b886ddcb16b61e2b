"""Lists of nodes as Slurm and topology files write them: ``gb[01-18,20],x7`` and ``a[1-2]b[3-4]``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from math import prod
from typing import NoReturn

from tlaunch.topology.description import MAX_NODES
from tlaunch.topology.model import TopologyError
from tlaunch.topology.yamltree import is_name, shown

MAX_TEXT = 1 << 20
_EXAMPLE = "expected a list such as gb[01-18,20],x7"
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")

Refuse = Callable[[str], NoReturn]
"""Raises the error that says where the list stands; it is given what is wrong with it."""


def expand(text: str, origin: str) -> tuple[str, ...]:
    """Return the names that a list stands for, in its order; of several brackets the last varies fastest.

    The width of the first number of a range is kept: ``[08-10]`` is 08, 09, 10. Names that stand twice come twice.
    ``origin`` names the list in errors.

    Raises:
        TopologyError: it is no list of nodes, or one of more than ``MAX_NODES`` names.
    """

    def refuse(problem: str) -> NoReturn:
        raise TopologyError(f"{origin}: {problem}")

    return expand_or(text, refuse)


def expand_or(text: str, refuse: Refuse) -> tuple[str, ...]:
    """Do the same; ``refuse`` is called with what is wrong."""
    if len(text) > MAX_TEXT:
        refuse(f"longer than {MAX_TEXT >> 20} MiB; {_EXAMPLE}")
    names: list[str] = []
    for item in _items(text, refuse):
        names += _names(item, refuse, MAX_NODES - len(names))
    return tuple(names)


def _items(text: str, refuse: Refuse) -> list[str]:
    """Split at the commas outside of brackets."""
    items, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if depth not in {0, 1}:
            refuse(f"{shown(text)} has a bracket too many; {_EXAMPLE}")
        if letter == "," and not depth:
            items.append(text[start:place])
            start = place + 1
    if depth:
        refuse(f"{shown(text)} has a bracket that is not closed; {_EXAMPLE}")
    return [item.strip() for item in (*items, text[start:])]


def _names(item: str, refuse: Refuse, room: int) -> list[str]:
    """Expand one item without commas outside of brackets."""
    parts = re.split(r"\[([^\]]*)\]", item)  # literal, ranges, literal, ranges, ..., literal
    choices = [_numbers(part, item, refuse, room) if index % 2 else [part] for index, part in enumerate(parts)]
    if prod(map(len, choices)) > room:
        refuse(f"{shown(item)} names more than {MAX_NODES} nodes; expected fewer")
    names = ["".join(words) for words in itertools.product(*choices)]
    for name in names:
        if not is_name(name):
            what = shown(item) if name == item else f"{shown(item)}: {shown(name)}"
            refuse(f"{what} does not name a node; {_EXAMPLE}")
    return names


def _numbers(ranges: str, item: str, refuse: Refuse, room: int) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        span = _SPAN.fullmatch(part.strip())
        if span is None:
            refuse(f"{shown(item)}: {shown(part)} is no number or range; {_EXAMPLE}")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            refuse(f"{shown(item)}: {part} counts down; {_EXAMPLE}")
        if len(numbers) + last - first >= room:
            refuse(f"{shown(item)} names more than {MAX_NODES} nodes; expected fewer")
        numbers += [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    return numbers

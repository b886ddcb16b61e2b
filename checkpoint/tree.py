"""A strict reader of JSON: what does not fit is one line that names the file, the place in it and what was expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.values import Json

_LARGEST = 1 << 62
_SHOWN = 60


class Node:
    """A value in a document: ``file``, and the ``path`` to it. A manifest has many, so they are made to be cheap."""

    __slots__ = ("_above", "_key", "file", "value")

    def __init__(self, file: str, value: Json, above: Node | None = None, key: str | int = "") -> None:
        """Note where a value stands: under ``key`` of the one ``above``."""
        self.file, self.value = file, value
        self._above, self._key = above, key

    @property
    def path(self) -> str:
        """The way from the top to here."""
        if self._above is None:
            return ""
        return self._above.path + (f".{self._key}" if isinstance(self._key, str) else f"[{self._key}]")

    def at(self, key: str) -> Node:
        """Return the value of a key of an object."""
        if not isinstance(self.value, dict):
            raise self.misfit("an object")
        if key not in self.value:
            raise self.misfit(f"an object with the key {key!r}")
        return Node(self.file, self.value[key], self, key)

    def entries(self) -> Iterator[tuple[str, Node]]:
        """Yield keys and values of an object."""
        if not isinstance(self.value, dict):
            raise self.misfit("an object")
        for key, value in self.value.items():
            yield key, Node(self.file, value, self, key)

    def items(self) -> Iterator[Node]:
        """Yield the items of a list."""
        if not isinstance(self.value, list):
            raise self.misfit("a list")
        for index, value in enumerate(self.value):
            yield Node(self.file, value, self, index)

    def four(self) -> tuple[Node, Node, Node, Node]:
        """Return the items of a list of four."""
        items = tuple(self.items())
        if len(items) != 4:
            raise self.misfit("a list of four")
        return items

    def numbers(self) -> tuple[int, ...]:
        """Return the items of a list of whole numbers that are not negative."""
        if isinstance(self.value, list) and all(type(item) is int and 0 <= item < _LARGEST for item in self.value):
            return tuple(cast("list[int]", self.value))  # without a node for each: most of a manifest is such lists
        return tuple(item.number() for item in self.items())

    def number(self) -> int:
        """Return a whole number that is not negative."""
        if type(self.value) is not int or not 0 <= self.value < _LARGEST:
            raise self.misfit("a whole number that is not negative")
        return self.value

    def text(self) -> str:
        """Return a text."""
        if not isinstance(self.value, str):
            raise self.misfit("text")
        return self.value

    def misfit(self, expected: str) -> Damaged:
        """Return the error that says that this is not what was expected."""
        found = repr(self.value)
        found = found if len(found) <= _SHOWN else found[: _SHOWN - 3] + "..."
        return Damaged(f"{self.file}: {self.path.removeprefix('.') or 'the top'}: expected {expected}, found {found}")


def parse(data: bytes, where: str) -> Node:
    """Read one JSON document.

    Raises:
        Damaged: it is none, or a key stands twice in an object.
    """
    try:
        return Node(where, json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}: expected a JSON document: {error}") from None


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")

"""What a trainer has put into an arena, told to the saver: its part of the manifest, and where each piece lies."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.manifest import Manifest, from_bytes, to_bytes
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece
from tlaunch.checkpoint.tree import Node, parse


@dataclass(frozen=True, slots=True)
class Place:
    """A box of a tensor, row-major in the arena from byte ``begin`` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    region: Region
    begin: int


@dataclass(frozen=True, slots=True)
class Plan:
    """``part`` comes without files and tensors: those are known when the pieces have been written."""

    part: Manifest
    places: tuple[Place, ...]

    def pieces(self, arena: memoryview) -> list[Piece]:
        """Return what is to be written, as views of the arena."""
        return [
            Piece(at.name, at.dtype, at.shape, at.region, arena[at.begin : at.begin + size])
            for at in self.places
            for size in (math.prod(at.region.shape) * BYTES[at.dtype],)
        ]

    def to_bytes(self) -> bytes:
        """Write it."""
        places = [
            [at.name, at.dtype, list(at.shape), list(at.region.offset), list(at.region.shape), at.begin]
            for at in self.places
        ]
        return json.dumps({"part": to_bytes(self.part).decode(), "places": places}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Read it.

        Raises:
            Damaged: it is none.
        """
        root = parse(data, "plan")
        part = from_bytes(root.at("part").text().encode(), "plan")
        return cls(part, tuple(_place(node) for node in root.at("places").items()))


def _place(node: Node) -> Place:
    name, dtype, shape, offset, size, begin = node.items()
    region = Region(_sizes(offset), _sizes(size))
    return Place(name.text(), dtype.text(), _sizes(shape), region, begin.number())


def _sizes(node: Node) -> tuple[int, ...]:
    return tuple(item.number() for item in node.items())

"""What a trainer has put into an arena, told to the saver: its part of the manifest, and where each box lies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tlaunch.checkpoint.manifest import Manifest, from_bytes, to_bytes
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Box
from tlaunch.checkpoint.tree import Node, parse


@dataclass(frozen=True, slots=True)
class Plan:
    """``part`` comes without files and tensors: those are known when the shard has been written."""

    part: Manifest
    boxes: tuple[tuple[Box, int], ...]
    """Boxes, and at which byte of the shard each begins."""

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Read what :func:`plan_to_bytes` has written.

        Raises:
            Damaged: it is none.
        """
        root = parse(data, "plan")
        part = from_bytes(root.at("part").text().encode(), "plan")
        return cls(part, tuple(_box(node) for node in root.at("boxes").items()))


def boxes_to_bytes(boxes: Sequence[tuple[Box, int]]) -> bytes:
    """Write boxes and their beginnings, which are the same in every plan of a run."""
    rows = [
        [box.name, box.dtype, list(box.shape), list(box.region.offset), list(box.region.shape), begin]
        for box, begin in boxes
    ]
    return json.dumps(rows).encode()


def plan_to_bytes(part: Manifest, boxes: bytes) -> bytes:
    """Write a plan. ``boxes`` are written already."""
    return b'{"part":%s,"boxes":%s}' % (json.dumps(to_bytes(part).decode()).encode(), boxes)


def _box(node: Node) -> tuple[Box, int]:
    name, dtype, shape, offset, size, begin = node.items()
    region = Region(offset.numbers(), size.numbers())
    return Box(name.text(), dtype.text(), shape.numbers(), region), begin.number()

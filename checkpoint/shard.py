"""Writing one rank's tensors as a safetensors file, straight from the memory that holds them.

The header is written by hand, because ``safetensors.serialize_file`` wants each tensor as ``bytes``, which would be a
second copy of everything, and does not sync. Tests read the files with ``safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tlaunch.checkpoint.checksum import crc32
from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.files import Buffer, Files
from tlaunch.checkpoint.manifest import BLOCK, File, Slice, Tensor
from tlaunch.checkpoint.region import Region

_ALIGN = 64
"""Tensors begin at multiples of this many bytes when the file is mapped into memory."""
_AT_ONCE = 4 * BLOCK
"""Bytes that are written at once: fewer, and threads wake each other more often than they write."""


@dataclass(frozen=True, slots=True)
class Box:
    """A slice of a global tensor: ``region`` of ``shape``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    region: Region

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return self.region.volume * BYTES[self.dtype]

    @property
    def key(self) -> str:
        """The name of the slice in the safetensors file: that of the tensor when it is whole."""
        if self.region.shape == self.shape:
            return self.name
        return f"{self.name}@{','.join(map(str, self.region.offset))}"


AnyBox = TypeVar("AnyBox", bound=Box)


@dataclass(frozen=True, slots=True)
class Piece(Box):
    """A slice to be written: ``data`` holds it row-major."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class Layout(Generic[AnyBox]):
    """A file before its tensors are there: its first bytes, and each box with the byte at which it begins."""

    header: bytes
    boxes: tuple[tuple[AnyBox, int], ...]
    size: int


def arrange(boxes: Sequence[AnyBox]) -> Layout[AnyBox]:
    """Lay boxes out in a file, one right after the other."""
    # The largest types first, so that every tensor is aligned to its own type without gaps, as readers expect.
    ordered = sorted(boxes, key=lambda box: -BYTES[box.dtype])
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for box in ordered:
        table[box.key] = {
            "dtype": box.dtype,
            "shape": list(box.region.shape),
            "data_offsets": [at, at + box.size],
        }
        at += box.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    header = len(text).to_bytes(8, "little") + text
    placed = []
    at = len(header)
    for box in ordered:
        placed.append((box, at))
        at += box.size
    return Layout(header, tuple(placed), at)


def described(boxes: Sequence[tuple[Box, int]]) -> dict[str, Tensor]:
    """Return what a manifest says of boxes and their beginnings in its first file."""
    tensors: dict[str, Tensor] = {}
    for box, begin in boxes:
        at = Slice(0, begin, box.region)
        known = tensors.get(box.name)
        tensors[box.name] = Tensor(box.dtype, box.shape, (at,) if known is None else (*known.slices, at))
    return tensors


def write_file(files: Files, folder: str, name: str, *buffers: bytes | memoryview) -> File:
    """Write a file whose bytes are those of the buffers, and take their checksums.

    Raises:
        OSError: the file system failed; nothing stands under the name.
    """
    return write_chunks(files, folder, name, buffers)


def write_chunks(files: Files, folder: str, name: str, chunks: Iterable[Buffer]) -> File:
    """Do the same with bytes that come to be while they are written."""
    sums = Sums()
    files.write(f"{folder}/{name}", sums.through(chunks))
    return File(name, sums.size, sums.blocks)


class Sums:
    """The checksums of a file's blocks, taken while its bytes go by."""

    def __init__(self) -> None:
        self._blocks: list[int] = []
        self._crc = 0
        self._size = 0

    @property
    def blocks(self) -> tuple[int, ...]:
        """CRC-32 of each ``BLOCK`` bytes that have gone by, the last of which may be fewer."""
        return (*self._blocks, self._crc) if self._size % BLOCK else tuple(self._blocks)

    @property
    def size(self) -> int:
        """How many bytes have gone by."""
        return self._size

    def through(self, buffers: Iterable[Buffer]) -> Iterator[memoryview]:
        """Yield the buffers in pieces that end where multiples of ``_AT_ONCE`` do."""
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while rest:
                piece = rest[: _AT_ONCE - self._size % _AT_ONCE]
                self._take(piece)
                yield piece
                rest = rest[len(piece) :]

    def _take(self, piece: memoryview) -> None:
        while piece:
            part = piece[: BLOCK - self._size % BLOCK]
            self._crc = crc32(part, self._crc)
            self._size += len(part)
            if self._size % BLOCK == 0:
                self._blocks.append(self._crc)
                self._crc = 0
            piece = piece[len(part) :]

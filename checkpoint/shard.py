"""Writing one rank's tensors as a safetensors file, straight from the memory that holds them.

The header is written by hand, because ``safetensors.serialize_file`` wants each tensor as ``bytes``, which would be a
second copy of everything, and does not sync. Tests read the files with ``safetensors``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.manifest import BLOCK, File, Slice, Tensor
from tlaunch.checkpoint.region import Region

_ALIGN = 64
"""Tensors begin at multiples of this many bytes when the file is mapped into memory."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice of a global tensor to be written: ``data`` holds ``region`` of it row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    region: Region
    data: memoryview

    @property
    def key(self) -> str:
        """The name of the slice in the safetensors file: that of the tensor when it is whole."""
        if self.region.shape == self.shape:
            return self.name
        return f"{self.name}@{','.join(map(str, self.region.offset))}"


def write_shard(files: Files, folder: str, name: str, pieces: Sequence[Piece]) -> tuple[File, dict[str, Tensor]]:
    """Write slices into one file. Returns what a manifest says of it, where it is the first file.

    Raises:
        OSError: the file system failed; nothing stands under the name.
    """
    # The largest types first, so that every tensor is aligned to its own type without gaps, as readers expect.
    ordered = sorted(pieces, key=lambda piece: -BYTES[piece.dtype])
    header = _header(ordered)
    tensors: dict[str, Tensor] = {}
    begin = len(header)
    for piece in ordered:
        at = Slice(0, begin, piece.region)
        known = tensors.get(piece.name)
        slices = (at,) if known is None else (*known.slices, at)
        tensors[piece.name] = Tensor(piece.dtype, piece.shape, slices)
        begin += len(piece.data)
    sums = Sums()
    files.write(f"{folder}/{name}", sums.through(header, *(piece.data for piece in ordered)))
    return File(name, begin, sums.blocks), tensors


def _header(pieces: Sequence[Piece]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for piece in pieces:
        end = begin + len(piece.data)
        table[piece.key] = {"dtype": piece.dtype, "shape": list(piece.region.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


class Sums:
    """The checksums of a file's blocks, taken while its bytes go by."""

    def __init__(self) -> None:
        self._blocks: list[int] = []
        self._crc = 0
        self._filled = 0

    @property
    def blocks(self) -> tuple[int, ...]:
        """CRC-32 of each ``BLOCK`` bytes that have gone by, the last of which may be fewer."""
        return (*self._blocks, self._crc) if self._filled else tuple(self._blocks)

    def through(self, *buffers: bytes | memoryview) -> Iterator[memoryview]:
        """Yield the buffers in pieces that end where blocks end."""
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while rest:
                piece, rest = rest[: BLOCK - self._filled], rest[BLOCK - self._filled :]
                self._crc = zlib.crc32(piece, self._crc)
                self._filled += len(piece)
                if self._filled == BLOCK:
                    self._blocks.append(self._crc)
                    self._crc = self._filled = 0
                yield piece

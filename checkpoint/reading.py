"""Reading bytes of shards, none of which reaches the caller before its checksum was compared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from tlaunch.checkpoint.checksum import crc32
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.files import Files, why
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import BLOCK, File, Manifest

_KEPT = 4
"""Blocks that are remembered: neighbouring slices begin and end in the same ones."""


class ShardReader:
    """Reads ranges of the files of one checkpoint. Not for use by several threads at once; make one for each."""

    def __init__(self, files: Files, address: Address, manifest: Manifest) -> None:
        self._files = files
        self._address = address
        self._manifest = manifest
        self._blocks: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self.bytes_read = 0
        """Bytes that were asked of the file system so far."""

    def fill(self, file: int, begin: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes of a file from ``begin`` on.

        Blocks that lie in the range as a whole are read to where they belong; of the others a part is copied.

        Raises:
            Damaged: bytes have changed or are missing.
        """
        end = begin + len(out)
        at = begin
        while at < end:
            block = at // BLOCK
            first = block * BLOCK
            last = min(first + BLOCK, self._manifest.files[file].size)
            if at == first and last <= end:
                self._read(file, block, out[at - begin : last - begin])
                at = last
            else:
                stop = min(last, end)
                out[at - begin : stop - begin] = self._kept(file, block, last - first)[at - first : stop - first]
                at = stop

    def _kept(self, file: int, block: int, size: int) -> memoryview:
        found = self._blocks.get((file, block))
        if found is None:
            # Memory that was touched before is used again: new pages take longer than reading does.
            old = self._blocks.popitem(last=False)[1] if len(self._blocks) == _KEPT else memoryview(bytearray(BLOCK))
            found = old[:size]
            self._read(file, block, found)
            self._blocks[file, block] = old
        else:
            self._blocks.move_to_end((file, block))
        return found[:size]

    def _read(self, file: int, block: int, out: memoryview) -> None:
        described: File = self._manifest.files[file]
        name = f"{self._address.folder}/{described.name}"
        where = f"{self._files.root}/{name}"
        begin = block * BLOCK
        try:
            count = self._files.read_into(name, begin, out)
        except FileNotFoundError:
            raise Damaged(f"{where}: this shard is missing") from None
        except OSError as error:
            raise why(error, f"reading bytes {begin} to {begin + len(out)}", where) from error
        self.bytes_read += count
        if count < len(out):
            raise Damaged(f"{where}: this shard ends after {begin + count} bytes, expected {described.size}")
        if crc32(out) != described.blocks[block]:
            raise Damaged(f"{where}: bytes {begin} to {begin + len(out)} have changed: their checksum does not fit")


def verify(files: Files, address: Address, manifest: Manifest, told: Callable[[int], object] | None = None) -> int:
    """Read all of a checkpoint and compare every checksum. Returns how many bytes were read.

    ``told`` is called with the number of bytes after each block.

    Raises:
        Damaged: with the first thing that is wrong.
    """
    reader = ShardReader(files, address, manifest)
    buffer = memoryview(bytearray(BLOCK))
    for index, file in enumerate(manifest.files):
        where = f"{files.root}/{address.folder}/{file.name}"
        try:
            size = files.size(f"{address.folder}/{file.name}")
        except FileNotFoundError:
            raise Damaged(f"{where}: this shard is missing") from None
        except OSError as error:
            raise why(error, "looking at a shard", where) from error
        if size != file.size:
            raise Damaged(f"{where}: this shard has {size} bytes, expected {file.size}")
        for begin in range(0, file.size, BLOCK):
            count = min(BLOCK, file.size - begin)
            reader.fill(index, begin, buffer[:count])
            if told is not None:
                told(count)
    return reader.bytes_read

"""Reading bytes of shards, and comparing their checksums."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tlaunch.checkpoint.checksum import crc32
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.files import Files, LocalFiles, OpenFile, why
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import BLOCK, Manifest
from tlaunch.checkpoint.sharing import Cuts, Range, Sums

_KEPT = 4
"""Blocks that are remembered where files are read in turn: neighbouring slices begin and end in the same ones."""

_AT_ONCE = 16 * BLOCK
"""Bytes that are asked for at once, at most: an object store takes its time for each request."""

_AT_ONCE_HERE = 4 * BLOCK
"""The same of a mounted file system, so that they are still in the processor's cache when they are compared."""

_LITTLE = BLOCK // 2
"""A block that less than this is wanted of is remembered: the next tensor is in it, too."""


class ShardReader:
    """Reads ranges of the files of one checkpoint. Not for use by several threads at once; make one for each."""

    def __init__(
        self, files: Files, address: Address, manifest: Manifest, sums: Sums | None = None, *, kept: int = _KEPT
    ) -> None:
        """``sums`` tells what was found in order of blocks of which only parts are wanted; ``kept``: see ``_KEPT``."""
        self._sums = sums or {}
        self._most = kept
        self._files = files
        self._address = address
        self._manifest = manifest
        self._blocks: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._at_once = _AT_ONCE_HERE if isinstance(files, LocalFiles) else _AT_ONCE
        self._scrap = memoryview(bytearray(BLOCK)), memoryview(bytearray(BLOCK))
        self.bytes_read = 0
        """Bytes that were asked of the file system so far."""

    def fill(self, file: int, begin: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes of a file from ``begin`` on.

        Blocks are read to where their bytes belong; of those that hold little of them, a part is copied.

        Raises:
            Damaged: bytes have changed or are missing.
        """
        size, end = self._manifest.files[file].size, begin + len(out)
        at = begin
        while at < end:
            first = at // BLOCK * BLOCK
            last = min(first + BLOCK, size)
            stop = min(last, end)
            if stop - at < min(_LITTLE, last - first) and Range(file, at, stop) not in self._sums:
                out[at - begin : stop - begin] = self._kept(file, first, last)[at - first : stop - first]
            else:
                stop = min(end, first + self._at_once)
                rest = stop % BLOCK
                if stop < size and 0 < rest < _LITTLE and Range(file, max(at, stop - rest), stop) not in self._sums:
                    stop -= rest
                self._read(file, at, out[at - begin : stop - begin])
            at = stop

    def _kept(self, file: int, first: int, last: int) -> memoryview:
        """Return a block, which may be remembered."""
        found = self._blocks.get((file, first))
        if found is None:
            # Memory that was touched before is used again: new pages take longer than reading does.
            full = len(self._blocks) == self._most
            found = self._blocks.popitem(last=False)[1] if full else memoryview(bytearray(BLOCK))
            self._read(file, first, found[: last - first])
            self._blocks[file, first] = found
        else:
            self._blocks.move_to_end((file, first))
        return found[: last - first]

    def _read(self, file: int, begin: int, out: memoryview, opened: OpenFile | None = None) -> None:
        """Fill ``out``, and compare the checksums of all blocks that it has bytes of, or of those parts of them."""
        described, end = self._manifest.files[file], begin + len(out)
        first, last = begin // BLOCK * BLOCK, min(-(-end // BLOCK) * BLOCK, described.size)
        head = Range(file, begin, min(end, first + BLOCK))
        tail = Range(file, max(begin, (end - 1) // BLOCK * BLOCK), end)
        # The rest of a block is read as well where nothing is known of the part.
        before = self._scrap[0][: 0 if head in self._sums else begin - first]
        after = self._scrap[1][: 0 if tail in self._sums else last - end]
        where = self._fetch(file, begin - len(before), before, out, after, opened=opened)
        for block in range(first, last, BLOCK):
            at, stop = max(block, begin), min(block + BLOCK, end)
            expected = self._sums.get(Range(file, at, stop))
            crc = crc32(before) if at == begin else 0
            crc = crc32(out[at - begin : stop - begin], crc)
            crc = crc32(after, crc) if stop == end else crc
            if crc != (described.blocks[block // BLOCK] if expected is None else expected):
                at, stop = max(block, begin - len(before)), min(block + BLOCK, end + len(after))
                raise Damaged(f"{where}: bytes {at} to {stop} have changed: their checksum does not fit")

    def _fetch(self, file: int, begin: int, *buffers: memoryview, opened: OpenFile | None = None) -> str:
        """Read bytes as they are; returns the path of the file, for messages."""
        wanted = sum(map(len, buffers))
        full = [buffer for buffer in buffers if buffer]
        with self._explained(file, begin, begin + wanted) as where:
            if opened is not None:
                count = opened.read_into(begin, *full)
            else:
                count = self._files.read_into(self._name(file), begin, *full)
        self.bytes_read += count
        if count < wanted:
            size = self._manifest.files[file].size
            raise Damaged(f"{where}: this shard ends after {begin + count} bytes, expected {size}")
        return where

    def _name(self, file: int) -> str:
        return f"{self._address.folder}/{self._manifest.files[file].name}"

    @contextlib.contextmanager
    def _explained(self, file: int, begin: int, end: int) -> Iterator[str]:
        """Say of what the operating system refuses where it was. Yields the path of the file, for messages."""
        where = f"{self._files.root}/{self._name(file)}"
        try:
            yield where
        except FileNotFoundError:
            raise Damaged(f"{where}: this shard is missing") from None
        except OSError as error:
            raise why(error, f"reading bytes {begin} to {end}", where) from error


class Comparer(ShardReader):
    """Reads blocks only to compare their checksums, through one small buffer, which stays in the processor's cache."""

    def __init__(self, files: LocalFiles, address: Address, manifest: Manifest) -> None:
        super().__init__(files, address, manifest)
        self._local = files
        self._buffer = memoryview(bytearray(BLOCK))

    def compare(self, blocks: Range, cuts: Cuts) -> dict[Range, int]:
        """Read some blocks of a file in order. Returns the checksums of those parts of them that are in ``cuts``.

        Raises:
            Damaged: bytes have changed or are missing.
        """
        file, size = blocks.file, self._manifest.files[blocks.file].size
        sums: dict[Range, int] = {}
        with self._explained(file, blocks.begin, blocks.end), self._local.opened(self._name(file)) as opened:
            for begin in range(blocks.begin, min(blocks.end, size), BLOCK):
                block = self._buffer[: min(BLOCK, size - begin)]
                self._read(file, begin, block, opened)
                for part in cuts.get((file, begin), ()):
                    sums[part] = crc32(block[part.begin - begin : part.end - begin])
        return sums


@dataclass(frozen=True, slots=True)
class Twice:
    """Reads a checkpoint that lies where reading it once more costs little: first to compare, then to load."""

    files: LocalFiles
    address: Address
    manifest: Manifest

    def comparer(self) -> Comparer:
        """Return what compares checksums."""
        return Comparer(self.files, self.address, self.manifest)

    def reader(self, sums: Sums) -> ShardReader:
        """Return what reads to where the bytes belong."""
        return ShardReader(self.files, self.address, self.manifest, sums)


def verify(files: Files, address: Address, manifest: Manifest, told: Callable[[int], object] | None = None) -> int:
    """Read all of a checkpoint and compare every checksum. Returns how many bytes were read.

    ``told`` is called with the number of bytes after each part.

    Raises:
        Damaged: with the first thing that is wrong.
    """
    reader = ShardReader(files, address, manifest)
    buffer = memoryview(bytearray(_AT_ONCE))
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
        for begin in range(0, file.size, _AT_ONCE):
            count = min(_AT_ONCE, file.size - begin)
            reader.fill(index, begin, buffer[:count])
            if told is not None:
                told(count)
    return reader.bytes_read

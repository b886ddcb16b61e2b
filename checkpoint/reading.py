"""Reading bytes of shards, and comparing their checksums: before the caller gets them, or in a reading before that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tlaunch.checkpoint.checksum import crc32
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.files import Files, why
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import BLOCK, File, Manifest

_KEPT = 4
"""Blocks that are remembered: neighbouring slices begin and end in the same ones."""

_AT_ONCE = 16 * BLOCK
"""Bytes that are asked for at once, at most: an object store takes its time for each request."""

Part: TypeAlias = tuple[int, int, int]
"""Bytes of a block, or all of it: the file, and where they begin and end in it."""


def parts(file: int, begin: int, end: int) -> Iterator[Part]:
    """Cut bytes of a file where its blocks end."""
    while begin < end:
        stop = min(end, (begin // BLOCK + 1) * BLOCK)
        yield file, begin, stop
        begin = stop


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
            size = self._manifest.files[file].size
            whole = min(end if end == size else end // BLOCK * BLOCK, first + _AT_ONCE)
            if at == first < whole:
                self._read(file, block, out[at - begin : whole - begin])
                at = whole
            else:
                last = min(first + BLOCK, size)
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
        """Read whole blocks, from this one on, and compare their checksums."""
        begin = block * BLOCK
        where = self._fetch(file, begin, out)
        for at in range(begin, begin + len(out), BLOCK):
            one = out[at - begin : at - begin + BLOCK]
            if crc32(one) != self._manifest.files[file].blocks[at // BLOCK]:
                raise Damaged(f"{where}: bytes {at} to {at + len(one)} have changed: their checksum does not fit")

    def _fetch(self, file: int, begin: int, out: memoryview) -> str:
        """Read bytes as they are; returns the name of the file, for messages."""
        described: File = self._manifest.files[file]
        name = f"{self._address.folder}/{described.name}"
        where = f"{self._files.root}/{name}"
        try:
            count = self._files.read_into(name, begin, out)
        except FileNotFoundError:
            raise Damaged(f"{where}: this shard is missing") from None
        except OSError as error:
            raise why(error, f"reading bytes {begin} to {begin + len(out)}", where) from error
        self.bytes_read += count
        if count < len(out):
            raise Damaged(f"{where}: this shard ends after {begin + count} bytes, expected {described.size}")
        return where


class FirstReading(ShardReader):
    """Reads blocks only to compare their checksums, through one small buffer."""

    def __init__(self, files: Files, address: Address, manifest: Manifest) -> None:
        super().__init__(files, address, manifest)
        self._buffer = memoryview(bytearray(BLOCK))

    def sums(self, wanted: Iterable[Part]) -> Iterator[tuple[Part, int]]:
        """Compare the checksum of the block that all these parts lie in, and yield one for each part.

        Raises:
            Damaged: bytes have changed or are missing.
        """
        first, whole = 0, None
        for file, begin, end in wanted:
            if whole is None:
                first = begin // BLOCK * BLOCK
                whole = self._buffer[: min(BLOCK, self._manifest.files[file].size - first)]
                self._read(file, first // BLOCK, whole)
            yield (file, begin, end), crc32(whole[begin - first : end - first])


class SecondReading(ShardReader):
    """Reads what was read before, straight to where it belongs, and compares it with the first time's checksums."""

    def __init__(self, files: Files, address: Address, manifest: Manifest, sums: Mapping[Part, int]) -> None:
        super().__init__(files, address, manifest)
        self._sums = sums

    def fill(self, file: int, begin: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a file whose parts were all among those of the first reading.

        Raises:
            Damaged: they have changed since, or are missing. Some of them are in ``out`` now.
        """
        for part in parts(file, begin, begin + len(out)):
            _, at, stop = part
            target = out[at - begin : stop - begin]
            where = self._fetch(file, at, target)
            if crc32(target) != self._sums[part]:
                raise Damaged(f"{where}: bytes {at} to {stop} have changed while they were loaded")


@dataclass(frozen=True, slots=True)
class Twice:
    """Reads a checkpoint that lies where reading it once more costs little. Each thread makes readers of its own."""

    files: Files
    address: Address
    manifest: Manifest
    sums: dict[Part, int] = field(default_factory=dict)
    """Of what the first reading has found in order."""

    def first(self) -> FirstReading:
        """Return what compares checksums."""
        return FirstReading(self.files, self.address, self.manifest)

    def second(self) -> SecondReading:
        """Return what reads to where the bytes belong."""
        return SecondReading(self.files, self.address, self.manifest, self.sums)


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

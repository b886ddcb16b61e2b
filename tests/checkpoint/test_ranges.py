"""Reading any range of a shard that has many blocks, each of them compared with its checksum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoint.writing import part_of
from tlaunch.checkpoint import catalog
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import BLOCK
from tlaunch.checkpoint.opening import open_own
from tlaunch.checkpoint.reading import ShardReader, verify
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece
from tlaunch.checkpoint.source import stream

WITHIN = 60.0
BLOCKS = 19
"""More than are asked for at once."""


def test_every_range_is_read_as_it_was_written_and_a_flipped_bit_in_it_is_found(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        numbers = torch.randint(256, (BLOCKS * BLOCK + 1000,), dtype=torch.uint8)
        assert checkpointer.save(1, {"x": numbers}).result(WITHIN)
    files = LocalFiles(tmp_path)
    address = catalog.find(files, None)
    assert address is not None
    manifest = catalog.manifest_of(files, address)
    (shard,) = tmp_path.glob("step-*/*.safetensors")
    data = shard.read_bytes()
    assert verify(files, address, manifest) == len(data)
    ranges = [
        (0, len(data)),
        (BLOCK, 2 * BLOCK),
        (BLOCK - 1, 18 * BLOCK + 1),
        (5, 6),
        (3 * BLOCK, len(data)),
        (17 * BLOCK + 7, len(data) - 1),
    ]

    def read(begin: int, end: int) -> bytes:
        out = bytearray(end - begin)
        ShardReader(files, address, manifest).fill(0, begin, memoryview(out))
        return bytes(out)

    for begin, end in ranges:
        assert read(begin, end) == data[begin:end]
    for at in (0, 16 * BLOCK - 1, 16 * BLOCK, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        shard.write_bytes(changed)
        first = at // BLOCK * BLOCK
        for begin, end in ranges:
            if begin < first + BLOCK and first < end:
                with pytest.raises(Damaged, match=rf"bytes {first} to {min(first + BLOCK, len(data))} have changed"):
                    read(begin, end)
            else:
                assert read(begin, end) == data[begin:end]


def test_streaming_small_tensors_that_many_ranks_have_saved_reads_each_byte_once(tmp_path: Path) -> None:
    files, address, world = LocalFiles(tmp_path), Address(1, 1), 7
    names = [f"w{at}" for at in range(30)]
    for rank in range(world):
        data = memoryview(bytes([rank]) * 5)
        pieces = [Piece(name, "U8", (world, 5), Region((rank, 0), (1, 5)), data) for name in names]
        write_part(files, part_of(address, rank, world), pieces)
    assert try_commit(files, address, world)
    source = open_own(files, address)
    reader = source.streaming_reader()
    for name in names:
        assert b"".join(stream(source.tensors[name], reader)) == bytes(rank for rank in range(world) for _ in range(5))
    assert isinstance(reader, ShardReader)
    assert reader.bytes_read == sum(file.size for file in source.files)

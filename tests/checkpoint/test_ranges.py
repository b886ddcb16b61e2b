"""Reading any range of a shard that has many blocks, each of them compared with its checksum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tlaunch.checkpoint import catalog
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.manifest import BLOCK
from tlaunch.checkpoint.reading import ShardReader, verify

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

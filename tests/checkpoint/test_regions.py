"""A flipped bit in each region of each file: tensors of every type, header, padding, and files beside the shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.whole import check_all
from tests.checkpoint.writing import numbers, part_of, pieces_of, save
from tlaunch.checkpoint.catalog import committed, find, manifest_of
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.errors import CheckpointError, Damaged, Superseded, Unusable
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import BLOCK
from tlaunch.checkpoint.reading import ShardReader, verify
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece

HERE = Address(1, 10)


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    """A place with one checkpoint of two ranks."""
    files = LocalFiles(tmp_path / "ck")
    assert take_generation(files, {}) == 1
    assert save(files, HERE)
    return files


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Change one bit."""
    with path.open("r+b") as file:
        file.seek(byte)
        (old,) = file.read(1)
        file.seek(byte)
        file.write(bytes([old ^ 1 << bit]))


def test_in_tensors_of_every_type_in_the_header_and_in_its_padding(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    pieces = [
        Piece(name, name, (16,), Region.whole((16,)), memoryview(bytes(range(16 * width))[: 16 * width]))
        for name, width in BYTES.items()
    ]
    write_part(files, part_of(HERE, 0, 1), pieces)
    assert try_commit(files, HERE, 1)
    manifest = manifest_of(files, HERE)
    shard = tmp_path / HERE.shard(0)
    data = shard.read_bytes()
    size = int.from_bytes(data[:8], "little")
    padding = 8 + len(data[8 : 8 + size].rstrip(b" "))
    assert padding < 8 + size, "this header needs padding"
    regions = {"length": 0, "header": 9, "padding": padding}
    regions |= {name: tensor.slices[0].begin + 1 for name, tensor in manifest.tensors.items()}
    assert regions.keys() > BYTES.keys()
    for region, byte in regions.items():
        flip(shard, byte, bit=7)
        with pytest.raises(Damaged, match=r"rank-00000\.safetensors: bytes 0 to \d+ have changed"):
            verify(files, HERE, manifest)
        if region in BYTES:  # also for who reads nothing else
            at = manifest.tensors[region].slices[0]
            with pytest.raises(Damaged, match=r"rank-00000\.safetensors"):
                ShardReader(files, HERE, manifest).fill(at.file, at.begin, memoryview(bytearray(16)))
        flip(shard, byte, bit=7)
    verify(files, HERE, manifest)


def test_in_any_block_of_a_large_file(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    data = bytes(range(256)) * (9 << 12)  # 9 MiB: three blocks, the last of which is shorter
    piece = Piece("w", "U8", (len(data),), Region.whole((len(data),)), memoryview(data))
    write_part(files, part_of(HERE, 0, 1), [piece])
    assert try_commit(files, HERE, 1)
    manifest = manifest_of(files, HERE)
    shard = tmp_path / HERE.shard(0)
    for byte in (BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, shard.stat().st_size - 1):
        flip(shard, byte)
        begin = byte // BLOCK * BLOCK
        with pytest.raises(Damaged, match=rf"bytes {begin} to {min(begin + BLOCK, shard.stat().st_size)} have changed"):
            verify(files, HERE, manifest)
        flip(shard, byte)
    verify(files, HERE, manifest)


def test_in_a_part_before_it_is_committed(files: LocalFiles) -> None:
    later = Address(1, 20)
    for rank in (0, 1):
        write_part(files, part_of(later, rank), pieces_of(later, rank))
    part = Path(files.root, later.part(1))
    whole = part.read_bytes()
    for byte in range(len(whole)):
        flip(part, byte)
        with pytest.raises((Damaged, Unusable), match=r"rank-00001\.json"):
            try_commit(files, later, 2)
        flip(part, byte)
    for length in (0, 1, 20, len(whole) - 1):
        part.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=r"rank-00001\.json"):
            try_commit(files, later, 2)
    assert committed(files) == [HERE]
    part.write_bytes(whole)
    assert try_commit(files, later, 2)


def test_in_a_generation_file_which_counts_by_its_name_alone(files: LocalFiles) -> None:
    assert take_generation(files, {"host": "b"}) == 2
    marker = Path(files.root, "generation-00000002.json")
    whole = marker.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1] + b"\xff", json.dumps([1]).encode(), b"[" * 5000):
        marker.write_bytes(damaged)
        with pytest.raises(Superseded, match=r"generation 2 \(unknown\) has taken over"):
            save(files, Address(1, 20))
    assert take_generation(files, {}) == 3
    clean(files, 3)
    assert not marker.exists()
    check_all(files)


def test_a_manifest_of_another_generation_of_the_same_step(files: LocalFiles) -> None:
    assert take_generation(files, {}) == 2
    newer = Address(2, 10)
    assert save(files, newer)
    shutil.copy(Path(files.root, HERE.manifest), Path(files.root, newer.manifest))
    with pytest.raises(Damaged, match=r"step-000000010\.g00002/manifest\.json: is that of step 10 of generation 1"):
        manifest_of(files, newer)


def test_shards_and_parts_too_many_do_no_harm(files: LocalFiles) -> None:
    folder = Path(files.root, HERE.folder)
    shutil.copy(folder / "rank-00001.safetensors", folder / "rank-00007.safetensors")
    (folder / "rank-00007.json").write_bytes(numbers(1, 2))
    check_all(files)
    later = Address(1, 20)
    for rank in range(4):
        write_part(files, part_of(later, rank, 3), pieces_of(later, rank, 3) if rank < 3 else [])
    with pytest.raises(CheckpointError, match="step 20 of generation 1: expected one part of each of 3 ranks, found"):
        try_commit(files, later, 3)
    assert committed(files) == [HERE]


def test_a_single_checkpoint_is_no_place_for_all(files: LocalFiles) -> None:
    single = LocalFiles(Path(files.root, HERE.folder))
    for use in (find, lambda place: take_generation(place, {})):
        with pytest.raises(Unusable, match=r"step-000000010\.g00001: this is one checkpoint; expected the folder in"):
            use(single)

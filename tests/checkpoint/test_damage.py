"""Whatever happens to the files of a committed checkpoint is found, and the error names the file."""

from __future__ import annotations

import gc
import random
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.checkpoint.breaking import flip
from tests.checkpoint.writing import everything, part_of, save
from tlaunch.checkpoint.catalog import committed, find, manifest_of
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.errors import CheckpointError, Damaged, Unusable
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.generations import take_generation
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import BLOCK, Manifest, from_bytes, to_bytes
from tlaunch.checkpoint.reading import ShardReader, verify
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece

HERE = Address(1, 10)


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    """A place with one checkpoint."""
    files = LocalFiles(tmp_path / "ck")
    assert save(files, HERE)
    return files


def sealed(rest: bytes) -> bytes:
    """Put before all that follows a manifest's first line the line that fits it."""
    return b'{"crc32":"%08x",\n' % zlib.crc32(rest) + rest


def check(files: LocalFiles, address: Address = HERE) -> None:
    """Read all of it."""
    verify(files, address, manifest_of(files, address))


def test_a_flipped_bit_in_any_byte_is_found_and_the_file_named(files: LocalFiles) -> None:
    folder = Path(files.root, HERE.folder)
    bits = random.Random(1)
    check(files)
    assert sorted(everything(folder)) == ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
    for name, data in everything(folder).items():
        for byte in range(len(data)):
            changed = bytearray(data)
            changed[byte] ^= 1 << bits.randrange(8)
            (folder / name).write_bytes(changed)
            with pytest.raises(CheckpointError) as error:
                check(files)
            assert name in str(error.value)
            assert "\n" not in str(error.value)
        (folder / name).write_bytes(data)
    check(files)


def test_a_flipped_bit_in_a_tensor_of_any_type_is_found_by_who_reads_that_alone(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    pieces = [
        Piece(name, name, (16,), Region.whole((16,)), memoryview(bytes(range(16 * width))))
        for name, width in BYTES.items()
    ]
    write_part(files, part_of(HERE, 0, 1), pieces)
    assert try_commit(files, HERE, 1)
    manifest = manifest_of(files, HERE)
    for tensor in manifest.tensors.values():
        (at,) = tensor.slices
        flip(tmp_path / HERE.shard(0), at.begin + 1, bit=7)
        with pytest.raises(Damaged, match=r"rank-00000\.safetensors: bytes 0 to \d+ have changed"):
            ShardReader(files, HERE, manifest).fill(at.file, at.begin, memoryview(bytearray(16)))
        flip(tmp_path / HERE.shard(0), at.begin + 1, bit=7)
    check(files)


def test_a_flipped_bit_in_any_block_of_a_large_file(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    data = bytes(range(256)) * (9 << 12)  # with the header a little more than nine blocks
    piece = Piece("w", "U8", (len(data),), Region.whole((len(data),)), memoryview(data))
    write_part(files, part_of(HERE, 0, 1), [piece])
    assert try_commit(files, HERE, 1)
    manifest = manifest_of(files, HERE)
    shard = tmp_path / HERE.shard(0)
    for byte in (BLOCK - 1, BLOCK, 8 * BLOCK - 1, 8 * BLOCK, 9 * BLOCK, shard.stat().st_size - 1):
        flip(shard, byte)
        begin = byte // BLOCK * BLOCK
        with pytest.raises(Damaged, match=rf"bytes {begin} to {min(begin + BLOCK, shard.stat().st_size)} have changed"):
            verify(files, HERE, manifest)
        flip(shard, byte)
    verify(files, HERE, manifest)


def test_every_truncation_and_every_byte_too_many_is_found(files: LocalFiles) -> None:
    folder = Path(files.root, HERE.folder)
    for name, data in everything(folder).items():
        for changed in (*(data[:length] for length in range(len(data))), data + b"\0"):
            (folder / name).write_bytes(changed)
            with pytest.raises(Damaged, match=name):
                check(files)
        (folder / name).write_bytes(data)


def test_a_missing_shard_is_named(files: LocalFiles) -> None:
    Path(files.root, HERE.shard(1)).unlink()
    with pytest.raises(Damaged, match=r"rank-00001\.safetensors: this shard is missing"):
        check(files)


def test_a_shard_of_another_step(files: LocalFiles) -> None:
    other = Address(1, 20)
    assert save(files, other)
    shutil.copy(Path(files.root, other.shard(1)), Path(files.root, HERE.shard(1)))
    with pytest.raises(Damaged, match=r"rank-00001\.safetensors: bytes 0 to \d+ have changed"):
        check(files)


@pytest.mark.parametrize("other", [Address(1, 20), Address(2, 10)])
def test_a_manifest_of_another_step_or_generation(files: LocalFiles, other: Address) -> None:
    assert save(files, other)
    shutil.copy(Path(files.root, HERE.manifest), Path(files.root, other.manifest))
    with pytest.raises(Damaged, match=rf"{other.folder}/manifest\.json: is that of step 10 of generation 1"):
        check(files, other)


def test_files_that_do_not_belong_here_do_no_harm(files: LocalFiles) -> None:
    root = Path(files.root)
    (root / HERE.folder / "notes.txt").write_text("mine")
    shutil.copy(root / HERE.shard(1), root / HERE.shard(7))
    (root / HERE.part(7)).write_bytes(b"a part too many")
    (root / "step-1.g1").mkdir()
    (root / "step-000000999.g00001").write_text("a file where a folder is expected")
    (root / "generation-00000000000000007.json").touch()
    assert committed(files) == [HERE]
    check(files)


def test_a_path_without_a_checkpoint(tmp_path: Path, files: LocalFiles) -> None:
    assert find(LocalFiles(tmp_path / "nowhere")) is None
    with pytest.raises(Unusable, match="no checkpoint of step 11; there are 10"):
        find(files, 11)
    single = LocalFiles(Path(files.root, HERE.folder))
    for use in (find, lambda place: take_generation(place, {})):
        with pytest.raises(Unusable, match=r"step-000000010\.g00001: this is one checkpoint; expected the folder in"):
            use(single)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b'"version":1', b'"version":2', "format version 2; this tlaunch reads up to 1"),
        (b'"world":2', b'"world":1000000000000000', r"holds the ranks \(0, 1\), expected all of 1000000000000000"),
    ],
)
def test_a_manifest_that_cannot_be_used(files: LocalFiles, old: bytes, new: bytes, complaint: str) -> None:
    path = Path(files.root, HERE.manifest)
    path.write_bytes(sealed(path.read_bytes().partition(b"\n")[2].replace(old, new)))
    with pytest.raises(CheckpointError, match=complaint):
        check(files)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b'"step":10', b'"step":-1', "body.step: expected a whole number that is not negative, found -1"),
        (b'"step":10', b'"steps":10', "expected an object with the key 'step'"),
        (b'"step":10', b'"step":1,"step":2', "a key stands twice"),
        (b'"step":10', b'"step":NaN', "NaN is not a JSON number"),
        (b"rank-00001.safetensors", b"../rank-1.safetensors", "expected the plain name of a file"),
        (b"rank-00001.safetensors", b"rank\\u0000.safetensors", "expected the plain name of a file"),
        (b'"dtype":"F32"', b'"dtype":"F33"', "expected one of BOOL"),
        (b'"slices":[[0,224,', b'"slices":[[2,224,', "slices[0][0]: expected a file below 2"),
        (b'"slices":[[0,224,', b'"slices":[[0,999,', "expected bytes inside of rank-00000.safetensors"),
        (b'"slices":[[0,224,', b'"slices":[[224,', "expected a list of four"),
        (b'"crc32":"', b'"crc32":"0', "expected 8 hexadecimal digits"),
        (b'"shape":[2,8]', b'"shape":[3,8]', "8 of 24 elements are missing"),
        (b'"shape":[2,8]', b'"shape":[1,8]', "expected a box in a tensor of [1, 8]"),
        (b'"format":"tlaunch-checkpoint"', b'"format":"another"', "its format is 'another'"),
    ],
)
def test_a_manifest_that_makes_no_sense(files: LocalFiles, old: bytes, new: bytes, complaint: str) -> None:
    rest = Path(files.root, HERE.manifest).read_bytes().partition(b"\n")[2]
    assert old in rest
    with pytest.raises(CheckpointError) as error:
        from_bytes(sealed(rest.replace(old, new, 1)), "here/manifest.json")
    assert str(error.value).startswith("here/manifest.json: ")
    assert complaint in str(error.value)


def test_a_manifest_comes_back_as_it_was(files: LocalFiles) -> None:
    manifest: Manifest = manifest_of(files, HERE)
    assert from_bytes(to_bytes(manifest), "x") == manifest
    assert manifest.values == {"epoch": 1}
    assert manifest.size == sum(len(data) for name, data in everything(Path(files.root)).items() if "rank-" in name)


def test_nothing_goes_over_a_manifest_in_search_of_garbage(files: LocalFiles) -> None:
    part = manifest_of(files, HERE)
    many = replace(part, tensors={f"w{at}": part.tensors["w"] for at in range(2000)})
    seen: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        seen.append(f"{phase} {info}")

    data = to_bytes(many)
    gc.collect()
    gc.callbacks.append(note)
    try:
        found = from_bytes(data, "x")
    finally:
        gc.callbacks.remove(note)
    assert found == many
    assert len(seen) <= 2, "at the very end one search may begin and end"
    assert gc.isenabled()
    with pytest.raises(CheckpointError):
        from_bytes(data[:-1], "x")
    assert gc.isenabled()

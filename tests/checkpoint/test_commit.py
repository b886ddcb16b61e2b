from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.checkpoint.breaking import flip
from tests.checkpoint.writing import numbers, part_of, pieces_of, save
from tlaunch.checkpoint.catalog import Keep, committed, find, prune
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.errors import CheckpointError, Damaged, Superseded, Unusable
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.generations import clean, newest_generation, take_generation
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import File, Slice, Tensor, merge
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece
from tlaunch.checkpoint.takeover import take_over


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    """An empty place."""
    return LocalFiles(tmp_path / "ck")


def test_the_last_rank_commits(files: LocalFiles) -> None:
    address = Address(1, 10)
    write_part(files, part_of(address, 1), pieces_of(address, 1))
    assert not try_commit(files, address, 2)
    assert committed(files) == []
    write_part(files, part_of(address, 0), pieces_of(address, 0))
    assert try_commit(files, address, 2)
    assert try_commit(files, address, 2)
    assert committed(files) == [address]


def test_shards_are_plain_safetensors(files: LocalFiles) -> None:
    from safetensors import safe_open

    address = Address(1, 10)
    save(files, address)
    with safe_open(Path(files.root, address.shard(0)), "np") as shard:
        assert sorted(shard.keys()) == ["scale", "w@0,0"]
        assert shard.get_tensor("w@0,0").tobytes() == numbers(10, 0)
        assert shard.get_tensor("scale").shape == ()


def test_an_older_writer_loses_and_is_told_to_whom(files: LocalFiles) -> None:
    assert take_generation(files, {"host": "a"}) == 1
    address = Address(1, 10)
    for rank in (0, 1):
        write_part(files, part_of(address, rank), pieces_of(address, rank))
    assert take_generation(files, {"host": "b", "pid": 7}) == 2
    with pytest.raises(Superseded, match=r"step 10 is not committed: generation 2 \(host b, pid 7\) has taken over"):
        try_commit(files, address, 2)
    assert clean(files, 2) == [generation := "generation-00000001.json", address.folder] or generation
    assert committed(files) == []
    assert newest_generation(files) == 2


def test_what_is_complete_is_committed_before_the_path_is_taken_over(files: LocalFiles) -> None:
    assert take_over(files, {}) == 1
    complete, torn = Address(1, 10), Address(1, 20)
    for rank in (0, 1):
        write_part(files, part_of(complete, rank), pieces_of(complete, rank))
    write_part(files, part_of(torn, 1), pieces_of(torn, 1))
    assert take_over(files, {}) == 2
    assert committed(files) == [complete]
    assert files.names() == ["generation-00000002.json", complete.folder]
    with pytest.raises(Superseded):
        write_part(files, part_of(torn, 0), pieces_of(torn, 0))


def test_what_is_complete_but_damaged_holds_nobody_up(files: LocalFiles, caplog: pytest.LogCaptureFixture) -> None:
    take_over(files, {})
    address = Address(1, 10)
    for rank in (0, 1):
        write_part(files, part_of(address, rank), pieces_of(address, rank))
    Path(files.root, address.part(1)).write_bytes(b"{}")
    assert take_over(files, {}) == 2
    assert committed(files) == []
    assert "what an earlier writer has left is not committed" in caplog.text


def test_what_a_newer_writer_has_saved_is_newer_whatever_its_step(files: LocalFiles) -> None:
    for address in (Address(1, 100), Address(2, 50), Address(1, 200)):
        save(files, address)
    assert find(files) == Address(2, 50)
    assert find(files, 200) == Address(1, 200)


def test_cleaning_leaves_what_is_committed_and_what_is_new(files: LocalFiles) -> None:
    save(files, Address(1, 10))
    unfinished, new = Address(1, 20), Address(2, 20)
    write_part(files, part_of(unfinished, 0), pieces_of(unfinished, 0))
    write_part(files, part_of(new, 0), pieces_of(new, 0))
    assert clean(files, 2) == [unfinished.folder]
    assert try_commit(files, new, 2) is False
    write_part(files, part_of(new, 1), pieces_of(new, 1))
    assert try_commit(files, new, 2)
    assert committed(files) == [Address(1, 10), new]


def test_a_cleaned_folder_does_not_come_back(files: LocalFiles) -> None:
    """A writer that was stopped just before it commits must not leave a manifest without shards."""
    address = Address(1, 10)
    for rank in (0, 1):
        write_part(files, part_of(address, rank), pieces_of(address, rank))
    clean(files, 2)
    with pytest.raises(FileNotFoundError):
        files.write(address.manifest, [b"late"])
    assert committed(files) == []


def test_ranks_that_disagree(files: LocalFiles) -> None:
    address = Address(1, 10)
    write_part(files, part_of(address, 0), pieces_of(address, 0))
    odd = Piece("w", "F32", (2, 9), Region((1, 0), (1, 9)), memoryview(numbers(10, 1, 9)))
    write_part(files, part_of(address, 1), [odd])
    with pytest.raises(CheckpointError, match=r"tensor w: one rank has F32 \[2, 8\], another F32 \[2, 9\]"):
        try_commit(files, address, 2)
    assert committed(files) == []


def test_a_part_that_was_damaged_before_it_is_committed(files: LocalFiles) -> None:
    address = Address(1, 10)
    for rank in (0, 1):
        write_part(files, part_of(address, rank), pieces_of(address, rank))
    part = Path(files.root, address.part(1))
    whole = part.read_bytes()
    for byte in range(len(whole)):
        flip(part, byte)
        with pytest.raises((Damaged, Unusable), match=r"rank-00001\.json"):
            try_commit(files, address, 2)
        flip(part, byte)
    for length in (0, 1, 20, len(whole) - 1):
        part.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=r"rank-00001\.json"):
            try_commit(files, address, 2)
    assert committed(files) == []
    part.write_bytes(whole)
    assert try_commit(files, address, 2)


def test_a_generation_file_counts_by_its_name_alone(files: LocalFiles) -> None:
    assert take_generation(files, {}) == 1
    assert take_generation(files, {"host": "b"}) == 2
    marker = Path(files.root, "generation-00000002.json")
    whole = marker.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1] + b"\xff", b"[1]", b"[" * 5000):
        marker.write_bytes(damaged)
        with pytest.raises(Superseded, match=r"generation 2 \(unknown\) has taken over"):
            save(files, Address(1, 20))
    assert take_generation(files, {}) == 3
    clean(files, 3)
    assert not marker.exists()


def test_a_part_too_many(files: LocalFiles) -> None:
    address = Address(1, 20)
    for rank in range(4):
        write_part(files, part_of(address, rank, 3), pieces_of(address, rank, 3) if rank < 3 else [])
    with pytest.raises(CheckpointError, match="step 20 of generation 1: expected one part of each of 3 ranks, found"):
        try_commit(files, address, 3)
    assert committed(files) == []


def test_merging_takes_as_long_as_there_is_to_merge() -> None:
    def seconds(world: int) -> float:
        rows = [Region((rank, 0), (1, 8)) for rank in range(world)]
        parts = [
            replace(
                part_of(Address(1, 10), rank, world),
                files=(File(f"{rank}", 32, ()),),
                tensors={"w": Tensor("F32", (world, 8), (Slice(0, 0, row),))},
            )
            for rank, row in enumerate(rows)
        ]
        since = time.process_time()
        assert len(merge(parts).tensors["w"].slices) == world
        return time.process_time() - since

    # 16 times, where it does; hundreds of times, where each part copies what the ones before have brought.
    assert seconds(32_000) < 64 * min(seconds(2_000) for _ in range(3))


def test_elements_that_nobody_wrote(files: LocalFiles) -> None:
    address = Address(1, 10)
    write_part(files, part_of(address, 0), pieces_of(address, 0))
    write_part(files, part_of(address, 1), [])
    with pytest.raises(CheckpointError, match="step 10 of generation 1: tensor w: 8 of 16 elements are missing"):
        try_commit(files, address, 2)


def test_a_value_that_two_ranks_wrote(files: LocalFiles) -> None:
    address = Address(1, 10)
    for rank in (0, 1):
        write_part(files, replace(part_of(address, rank), values={"epoch": 1}), pieces_of(address, rank))
    with pytest.raises(CheckpointError, match="epoch was written by two ranks"):
        try_commit(files, address, 2)


def test_what_is_kept(files: LocalFiles) -> None:
    for step in range(10, 70, 10):
        save(files, Address(1, step))
    removed = prune(files, Keep(last=2, every=30))
    assert [address.step for address in removed] == [10, 20, 40]
    assert [address.step for address in committed(files)] == [30, 50, 60]
    assert prune(files, Keep(last=1)) == [Address(1, 30), Address(1, 50)]
    assert prune(files, Keep(last=1)) == []


@pytest.mark.parametrize(("last", "every"), [(0, 0), (1, -1)])
def test_keeping_nothing_is_refused(last: int, every: int) -> None:
    with pytest.raises(Unusable, match="expected last >= 1 and every >= 0"):
        Keep(last, every)


def test_generations_are_taken_once(files: LocalFiles) -> None:
    other = LocalFiles(files.root)
    assert [take_generation(files, {}), take_generation(other, {}), take_generation(files, {})] == [1, 2, 3]
    files.create("generation-00000004.json", b"{}")
    with pytest.raises(FileExistsError):
        other.create("generation-00000004.json", b"{}")

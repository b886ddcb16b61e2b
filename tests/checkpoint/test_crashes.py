"""A machine that stops between any two operations loses nothing that was committed, and shows nothing that was not."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.checkpoint.writing import Crash, Machine, numbers, save
from tlaunch.checkpoint.catalog import committed, manifest_of
from tlaunch.checkpoint.files import Files, LocalFiles
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.reading import ShardReader, verify

FIRST, SECOND = Address(1, 10), Address(1, 20)


def whole(files: Files, address: Address) -> bool:
    """Check every byte of a checkpoint against what was saved."""
    manifest = manifest_of(files, address)
    verify(files, address, manifest)
    out = memoryview(bytearray(32))
    for at in manifest.tensors["w"].slices:
        ShardReader(files, address, manifest).fill(at.file, at.begin, out)
        assert out == numbers(address.step, at.region.offset[0])
    return True


@pytest.mark.parametrize("seed", range(5))
def test_stopped_at_every_operation_of_a_save(tmp_path: Path, seed: int) -> None:
    committed_second = stop_at = 0
    for stop_at in itertools.count(1):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        before = Machine(folder)
        take_generation(before, {})
        assert save(before, FIRST)
        machine = Machine(folder, stop_at, seed)
        machine._synced, machine._names = before._synced, before._names
        try:
            save(machine, SECOND)
        except Crash:
            files = machine.restart()
            found = committed(files)
            assert found[:1] == [FIRST]
            assert all(whole(files, address) for address in found)
            committed_second += SECOND in found
            # Whoever comes next cleans up and can save the same step.
            generation = take_generation(files, {})
            clean(files, generation)
            assert save(files, Address(generation, 20))
            assert all(whole(files, address) for address in committed(files))
        else:
            assert committed(machine) == [FIRST, SECOND]
            break
    assert stop_at > 15
    assert committed_second > 0


def test_stopped_while_a_checkpoint_is_removed(tmp_path: Path) -> None:
    stop_at = 0
    for stop_at in itertools.count(1):
        folder = tmp_path / str(stop_at)
        files = LocalFiles(folder)
        files.make("")
        assert save(files, FIRST)
        assert save(files, SECOND)
        machine = Machine(folder, stop_at)
        try:
            machine.remove(FIRST.folder)
        except Crash:
            assert SECOND in committed(files)
            assert all(whole(files, address) for address in committed(files))
            clean(files, 2)
            assert not list(folder.glob(".trash*"))
        else:
            break
    assert stop_at > 1

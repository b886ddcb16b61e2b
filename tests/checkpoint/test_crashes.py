"""Whenever the power fails: what was told to be committed is there, and nothing torn is ever taken for whole."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.checkpoint.power import Recorder, Step, after
from tests.checkpoint.whole import check_all, leftovers
from tests.checkpoint.writing import part_of, pieces_of, save
from tlaunch.checkpoint.catalog import Keep, committed, prune
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.files import Buffer
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address

FIRST, SECOND, THIRD = Address(1, 10), Address(1, 20), Address(2, 30)


class Runs:
    """Runs that follow one another on one disk, and what they have promised: after how many steps which was there."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.steps: list[Step] = []
        self.files = Recorder(root, self.steps)
        self.promised: list[tuple[int, Address]] = []
        self.removed: list[tuple[int, Address]] = []

    def save(self, address: Address) -> None:
        """Save a checkpoint, and promise that it is committed."""
        assert save(self.files, address)
        self.promised.append((len(self.steps), address))

    def prune(self, keep: Keep) -> None:
        """Remove what is not kept. From the first step of that on nothing is promised."""
        begin = len(self.steps)
        self.removed += [(begin, address) for address in prune(self.files, keep)]

    def standing(self, count: int) -> set[Address]:
        """Return what must be there after so many steps."""
        gone = {address for begin, address in self.removed if begin < count}
        return {address for end, address in self.promised if end <= count} - gone


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two runs: the first saves twice, and half of a third step; the second cleans up, saves, and prunes."""
    runs = Runs(tmp_path_factory.mktemp("power") / "ck")
    assert take_generation(runs.files, {}) == 1
    runs.save(FIRST)
    runs.save(SECOND)
    unfinished = Address(1, 30)
    write_part(runs.files, part_of(unfinished, 0), pieces_of(unfinished, 0))
    assert take_generation(runs.files, {}) == 2
    clean(runs.files, 2)
    runs.save(THIRD)
    runs.prune(Keep(last=2))
    return runs


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_the_power_fails_after_any_step(runs: Runs, tmp_path: Path, seed: int | None) -> None:
    assert len(runs.steps) > 60
    chance = None if seed is None else random.Random(seed)
    early = 0
    for count in range(len(runs.steps) + 1):
        files = after(runs.steps[:count], Path(runs.files.root), tmp_path / str(count), chance)
        found = set(committed(files))
        assert runs.standing(count) <= found, f"after step {count}: {runs.steps[max(0, count - 3) : count]}"
        early += len(found - runs.standing(count))
        if found:
            check_all(files)
        # Whoever comes next cleans up, and can save the same steps.
        generation = take_generation(files, {})
        clean(files, generation)
        assert set(committed(files)) == found
        assert save(files, Address(generation, 30))
        check_all(files)
        assert leftovers(files) == []
    assert seed is None or early, "something was there before it was promised: else nothing unsynced has survived"


def test_a_commit_that_another_has_begun_is_told_only_when_it_is_durable(tmp_path: Path) -> None:
    told: list[bool] = []

    class First(Recorder):
        """Stops after the name of the manifest has changed, before that is durable, while another looks."""

        def _rename(self, old: Path, new: Path) -> None:
            super()._rename(old, new)
            if new.name == "manifest.json":
                told.append(try_commit(Recorder(Path(self.root), self.steps), FIRST, 2))
                raise KeyboardInterrupt

    root = tmp_path / "ck"
    root.mkdir()
    files = First(root, [])
    take_generation(files, {})
    with pytest.raises(KeyboardInterrupt):
        save(files, FIRST)
    assert told == [True]
    assert committed(after(files.steps, root, tmp_path / "later", None)) == [FIRST]


def test_a_folder_that_another_has_made_is_durable_before_it_is_used(tmp_path: Path) -> None:
    class Killed(Recorder):
        """Is killed when it has made a folder, before that is durable."""

        def _mkdir(self, path: Path) -> None:
            super()._mkdir(path)
            raise KeyboardInterrupt

    root = tmp_path / "ck"
    root.mkdir()
    files = Recorder(root, [])
    take_generation(files, {})
    with pytest.raises(KeyboardInterrupt):
        Killed(root, files.steps).make(FIRST.folder)
    assert save(files, FIRST)
    assert committed(after(files.steps, root, tmp_path / "later", None)) == [FIRST]


def test_two_that_write_one_file_at_once_do_not_mix(tmp_path: Path) -> None:
    """As two savers of two nodes do that commit the same checkpoint, perhaps with equal process numbers."""
    files = Recorder(tmp_path, [])

    def slowly() -> Iterable[Buffer]:
        yield b"one "
        files.write("x", [b"two"])
        yield b"and the rest"

    files.write("x", slowly())
    assert files.read("x", 100) == b"one and the rest"

"""Two jobs on one path: at any moment of the older one's save the newer one may come."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.checkpoint.whole import check_all, leftovers
from tests.checkpoint.writing import part_of, pieces_of, save
from tlaunch.checkpoint import commits
from tlaunch.checkpoint.absence import give_up
from tlaunch.checkpoint.catalog import Keep, committed, prune
from tlaunch.checkpoint.commit import settled_and_gone, try_commit, withdraw, write_part
from tlaunch.checkpoint.errors import CheckpointError, GivenUp, Superseded
from tlaunch.checkpoint.files import Buffer, LocalFiles
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address

FIRST, OLD, NEW = Address(1, 10), Address(1, 20), Address(2, 15)


class Interrupted(LocalFiles):
    """Lets somebody else in before its ``when``-th operation."""

    def __init__(self, root: Path, when: int, other: Callable[[], None]) -> None:
        super().__init__(root)
        self._left = when
        self._other = other

    @property
    def reached(self) -> bool:
        """Whether there were so many operations."""
        return self._left <= 0

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._other()

    def names(self, folder: str = "") -> list[str]:
        self._count()
        return super().names(folder)

    def _mkdir(self, path: Path) -> None:
        self._count()
        super()._mkdir(path)

    def _fill(self, path: Path, chunks: Iterable[Buffer]) -> None:
        self._count()
        super()._fill(path, chunks)

    def _rename(self, old: Path, new: Path) -> None:
        self._count()
        super()._rename(old, new)

    def _sync(self, folder: Path) -> None:
        self._count()
        super()._sync(folder)

    def _unlink(self, path: Path) -> None:
        self._count()
        super()._unlink(path)


def begun(root: Path) -> LocalFiles:
    """Return a place where generation 1 has saved a step."""
    files = LocalFiles(root)
    assert take_generation(files, {"host": "a"}) == 1
    assert save(files, FIRST)
    return files


class Slow(LocalFiles):
    """Sees what it is to remove, and comes to removing it only later."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.later: list[str] = []

    def remove(self, name: str) -> None:
        self.later.append(name)


@pytest.mark.parametrize("slow", [False, True])
def test_the_newer_job_comes_at_any_moment(tmp_path: Path, slow: bool) -> None:
    committed_before = refused = 0
    said = ""
    for when in range(1, 1000):
        root = tmp_path / str(when)
        files = begun(root)

        newer = Slow(root)

        def come(files: LocalFiles = newer if slow else files) -> None:
            assert take_generation(files, {"host": "b"}) == 2
            clean(files, 2)

        older = Interrupted(root, when, come)
        try:
            told = save(older, OLD)
        except Superseded as error:
            told, refused, said = False, refused + 1, str(error)
        for name in newer.later:
            files.remove(name)
        if not older.reached:
            break
        assert told or "step 20 is not committed: generation 2 (host b) has taken over from generation 1" in said
        assert not told or OLD in committed(files), "what was told to be committed was removed"
        committed_before += told
        check_all(files)
        assert save(files, NEW)
        assert committed(files)[-1] == NEW
        with pytest.raises(Superseded):
            save(files, Address(1, 30))
        check_all(files)
        assert take_generation(files, {}) == 3
        clean(files, 3)
        assert leftovers(files) == []
    assert committed_before >= 2  # while the parts are removed
    assert refused > 20


def test_an_older_job_leaves_nothing_behind(tmp_path: Path) -> None:
    files = begun(tmp_path)
    assert take_generation(files, {}) == 2
    for step in (20, 30):
        with pytest.raises(Superseded):
            write_part(files, part_of(Address(1, step), 0), pieces_of(Address(1, step), 0))
    assert files.names() == ["generation-00000001.json", "generation-00000002.json", FIRST.folder]


def test_what_stands_is_not_written_again(tmp_path: Path) -> None:
    """Another rank may have read the part, and may commit at any moment."""
    files = begun(tmp_path)
    assert try_commit(files, FIRST, 2)
    other = [pieces_of(Address(1, 99), rank) for rank in (0, 1)]
    write_part(files, part_of(FIRST, 0), other[0])
    check_all(files)
    write_part(files, part_of(OLD, 0), pieces_of(OLD, 0))
    write_part(files, part_of(OLD, 0), other[0])
    write_part(files, part_of(OLD, 1), pieces_of(OLD, 1))
    assert try_commit(files, OLD, 2)
    check_all(files)


def test_what_is_committed_is_never_withdrawn(tmp_path: Path) -> None:
    files = begun(tmp_path)
    withdraw(files, FIRST, 0)
    check_all(files)
    write_part(files, part_of(OLD, 0), pieces_of(OLD, 0))
    withdraw(files, OLD, 0)
    assert files.names(OLD.folder) == []


def test_a_rank_that_stays_out_is_not_waited_for(tmp_path: Path) -> None:
    files = begun(tmp_path)
    write_part(files, part_of(OLD, 0), pieces_of(OLD, 0))
    assert give_up(files, OLD, 1, "no space is left")
    with pytest.raises(GivenUp, match="step 20 is not committed: rank 1 could not write its part: no space is left"):
        try_commit(files, OLD, 2)
    with pytest.raises(GivenUp):
        write_part(files, part_of(OLD, 1), pieces_of(OLD, 1))
    assert not give_up(files, OLD, 0, ""), "its part is there"
    skipped = Address(1, 30)
    assert give_up(files, skipped, 0, "")
    with pytest.raises(GivenUp, match="step 30 is not committed: rank 0 has skipped it") as error:
        try_commit(files, skipped, 2)
    assert error.value.skipped
    assert save(files, Address(1, 40))
    assert prune(files, Keep(last=1)) == [FIRST]
    assert [address.step for address in committed(files)] == [40]
    assert files.names() == ["generation-00000001.json", Address(1, 40).folder]


def test_a_note_of_a_rank_that_stays_out_which_cannot_be_read_counts_too(tmp_path: Path) -> None:
    files = begun(tmp_path)
    assert give_up(files, OLD, 1, "")
    (tmp_path / OLD.absence).write_bytes(b"\x00")
    with pytest.raises(GivenUp, match="a rank could not write its part: its reason cannot be read") as error:
        try_commit(files, OLD, 2)
    assert not error.value.skipped


def test_a_rank_that_says_nothing_is_named_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "DEADLINE", 0.1)
    files = begun(tmp_path)
    write_part(files, part_of(OLD, 0), pieces_of(OLD, 0))
    said: Future[CheckpointError | None] = Future()
    waiting = commits.Commits()
    waiting.add(files, OLD, 2, 0, said.set_result)
    error = str(said.result(30))
    waiting.finish()
    assert "step 20 is not committed" in error
    assert "1 of 2 ranks have not written their part, first of them rank 1" in error


class Stale(LocalFiles):
    """NFS, where another node commits while this one reads: what it removes is ``ESTALE`` to whoever knew it."""

    def __init__(self, root: Path, *, committed: bool) -> None:
        super().__init__(root)
        self.committed = committed

    def read(self, name: str, limit: int) -> bytes:
        if name == OLD.part(1):
            if self.committed:
                assert try_commit(LocalFiles(self.root), OLD, 2)
            raise OSError(errno.ESTALE, "Stale file handle")
        return super().read(name, limit)


@pytest.mark.parametrize("committed", [True, False])
def test_a_stale_handle_of_a_part_is_no_failure(tmp_path: Path, committed: bool) -> None:
    files = begun(tmp_path)
    for rank in (0, 1):
        write_part(files, part_of(OLD, rank), pieces_of(OLD, rank))
    assert try_commit(Stale(tmp_path, committed=committed), OLD, 2) is committed
    assert try_commit(files, OLD, 2)


class Grudging(LocalFiles):
    """Refuses to remove, as libraries of stores do: with errors of their own."""

    def remove(self, name: str) -> None:
        raise RuntimeError(f"503 for {name}")


def test_errors_that_no_operating_system_has_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun(tmp_path)
    files = Grudging(tmp_path)
    waiting = commits.Commits()
    for address in (OLD, Address(1, 30)):
        said: Future[CheckpointError | None] = Future()

        def ended(error: CheckpointError | None, said: Future[CheckpointError | None] = said) -> None:
            said.set_result(error)
            raise RuntimeError("whatever is done afterwards")

        write_part(files, part_of(address, 0, 1), pieces_of(address, 0, 1))
        waiting.add(files, address, 1, 0, ended)
        assert said.result(30) is None
        assert files.names(address.folder) == ["manifest.json", "rank-00000.json", "rank-00000.safetensors"]
    waiting.finish()
    assert "503 for" in caplog.text


def test_a_manifest_that_nobody_could_read_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = begun(tmp_path)
    for rank in (0, 1):
        write_part(files, part_of(OLD, rank), pieces_of(OLD, rank))
    largest = max(files.size(OLD.part(rank)) for rank in (0, 1))
    for module in ("manifest", "commit"):
        monkeypatch.setattr(f"tlaunch.checkpoint.{module}.MAX_BYTES", largest)
    with pytest.raises(CheckpointError, match=r"step 20: its manifest would be .* it holds 3 slices of tensors, and 1"):
        try_commit(files, OLD, 2)
    assert [address.step for address in committed(files)] == [10]


def test_a_checkpoint_that_was_pruned_before_we_looked_was_committed(tmp_path: Path) -> None:
    files = begun(tmp_path)
    assert not settled_and_gone(files, FIRST)
    assert save(files, OLD)
    assert prune(files, Keep(last=1)) == [FIRST]
    assert settled_and_gone(files, FIRST)
    files.remove(OLD.folder)
    with pytest.raises(CheckpointError, match="somebody has removed this folder while"):
        settled_and_gone(files, OLD)
    assert take_generation(files, {}) == 2
    with pytest.raises(Superseded):
        settled_and_gone(files, OLD)


def test_too_little_space_is_known_before_anything_is_written(tmp_path: Path) -> None:
    class Full(LocalFiles):
        def space(self) -> int:
            return 1000

    begun(tmp_path)
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: \d+ bytes are needed, and only 1000 are free"):
        save(Full(tmp_path), OLD)
    assert LocalFiles(tmp_path).names(OLD.folder) == []

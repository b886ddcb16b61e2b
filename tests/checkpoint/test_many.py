"""Where there are many ranks one saver commits, and the others neither list nor read what all of them have written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.checkpoint.writing import part_of, pieces_of
from tlaunch.checkpoint import commits
from tlaunch.checkpoint.absence import give_up
from tlaunch.checkpoint.catalog import Keep, committed, prune
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.errors import CheckpointError, GivenUp, Superseded
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address

WITHIN = 30.0
WORLD = 4
ADDRESS = Address(1, 20)


class Watched(LocalFiles):
    """Notes which folders are listed and which files are read; ``looked`` is set when the manifest was looked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.listed: list[str] = []
        self.read_names: list[str] = []
        self.looked = threading.Event()

    def names(self, folder: str = "") -> list[str]:
        self.listed.append(folder)
        return super().names(folder)

    def read(self, name: str, limit: int) -> bytes:
        self.read_names.append(name)
        try:
            return super().read(name, limit)
        finally:
            if name == ADDRESS.part(2):  # the last that it looks for
                self.looked.set()


Ends = list["Future[CheckpointError | None]"]


class Node:
    """The saver of some ranks."""

    def __init__(self, root: Path) -> None:
        self.files = Watched(root)
        self.commits = commits.Commits()

    def save(self, *ranks: int) -> Ends:
        """Write their parts, and commit the checkpoint when all are there."""
        ends: Ends = []
        for rank in ranks:
            write_part(self.files, part_of(ADDRESS, rank, WORLD), pieces_of(ADDRESS, rank, WORLD))
            ends.append(Future())
            self.commits.add(self.files, ADDRESS, WORLD, rank, ends[-1].set_result)
        return ends


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Node, Node]]:
    """Give two nodes of a job that has many ranks for once."""
    monkeypatch.setattr(commits, "FEW", 2)
    assert take_generation(LocalFiles(tmp_path), {}) == 1
    both = Node(tmp_path), Node(tmp_path)
    yield both
    for node in both:
        node.commits.finish()


def test_the_saver_of_rank_0_commits_and_the_others_see_it(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    waiting = second.save(2, 3)
    assert second.files.looked.wait(WITHIN)
    ends = first.save(0, 1)
    assert [each.result(WITHIN) for each in (*ends, *waiting)] == [None] * 4
    assert committed(first.files) == [ADDRESS]
    assert ADDRESS.folder in first.files.listed
    assert ADDRESS.folder not in second.files.listed
    assert {ADDRESS.part(0), ADDRESS.part(1)}.isdisjoint(second.files.read_names)
    assert prune(second.files, Keep()) == []
    assert ADDRESS.folder not in second.files.listed


def test_another_commits_when_the_saver_of_rank_0_does_not(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", -1.9)
    for rank in (0, 1):
        write_part(nodes[0].files, part_of(ADDRESS, rank, WORLD), pieces_of(ADDRESS, rank, WORLD))
    assert [each.result(WITHIN) for each in nodes[1].save(2, 3)] == [None] * 2
    assert committed(nodes[1].files) == [ADDRESS]


def test_a_rank_that_stays_out_is_seen_without_listing(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    waiting = second.save(2, 3)
    assert second.files.looked.wait(WITHIN)
    assert give_up(first.files, ADDRESS, 1, "no space is left")
    assert give_up(first.files, ADDRESS, 0, "and what follows from it"), "the first reason stands"
    for each in waiting:
        error = each.result(WITHIN)
        assert isinstance(error, GivenUp)
        assert "rank 1 could not write its part: no space is left" in str(error)
    assert ADDRESS.folder not in second.files.listed
    second.commits.finish()
    assert first.files.names(ADDRESS.folder) == ["absent.json"]


def test_a_newer_job_is_seen_too(nodes: tuple[Node, Node]) -> None:
    waiting = nodes[1].save(2)
    assert take_generation(nodes[0].files, {"host": "b"}) == 2
    clean(nodes[0].files, 2)
    assert isinstance(waiting[0].result(WITHIN), Superseded)


def test_what_was_committed_and_pruned_between_two_looks_was_committed(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    waiting = second.save(2, 3)
    assert second.files.looked.wait(WITHIN)
    with second.commits._changed:  # it does not look meanwhile
        for rank in (0, 1):
            write_part(first.files, part_of(ADDRESS, rank, WORLD), pieces_of(ADDRESS, rank, WORLD))
        assert try_commit(first.files, ADDRESS, WORLD)
        newer = Address(1, 30)
        write_part(first.files, part_of(newer, 0, 1), pieces_of(newer, 0, 1))
        assert try_commit(first.files, newer, 1)
        assert prune(first.files, Keep(last=1)) == [ADDRESS]
    assert [each.result(WITHIN) for each in waiting] == [None] * 2

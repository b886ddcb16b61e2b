"""Object stores: no rename, no conditional writes to rely on, many writers at once."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.checkpoint.test_checkpointer import WITHIN
from tests.checkpoint.whole import check_all
from tests.checkpoint.writing import part_of, pieces_of, save
from tlaunch.checkpoint.catalog import committed, manifest_of
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.commit import commit, write_part
from tlaunch.checkpoint.errors import Superseded
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.objects import ObjectFiles

FIRST, OLD = Address(1, 10), Address(1, 20)


@pytest.fixture
def url() -> str:
    """An empty place in memory, which has neither rename nor exclusive creation that tests could lean on."""
    return f"memory://{uuid.uuid4().hex}/ck"


def test_generations_are_taken_once_by_many_at_a_time(url: str) -> None:
    begin = threading.Barrier(8)

    def take(_: int) -> list[int]:
        files = ObjectFiles(url)
        begin.wait(WITHIN)
        return [take_generation(files, {}) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        taken = [generation for each in pool.map(take, range(8)) for generation in each]
    assert len(set(taken)) == 40
    files = ObjectFiles(url)
    newest = take_generation(files, {})
    assert newest > max(taken)
    clean(files, newest)
    assert files.names() == [f"generation-{newest:08d}.json"]


def test_whoever_sees_the_claim_of_another_gives_way(url: str) -> None:
    files = ObjectFiles(url)
    files.make("")
    files.write(".draft-0123456789abcdef-generation-00000001.json", [b"-"])  # of one who died then
    assert take_generation(files, {}) == 2
    clean(files, 2)
    assert files.names() == ["generation-00000002.json"]


def test_a_manifest_that_comes_too_late_does_not_stay(url: str) -> None:
    """There is no folder whose absence would keep it out."""

    class Late(ObjectFiles):
        """Somebody else takes over and cleans up between the last check and the write."""

        def write(self, name: str, chunks: object) -> None:
            if name == OLD.manifest:
                newer = ObjectFiles(url)
                assert take_generation(newer, {}) == 2
                clean(newer, 2)
            super().write(name, chunks)  # type: ignore[arg-type]

    files = Late(url)
    assert take_generation(files, {}) == 1
    assert save(files, FIRST)
    with pytest.raises(Superseded):
        save(files, OLD)
    assert committed(files) == [FIRST]
    check_all(files)


def test_a_manifest_that_comes_late_but_whole_stays(url: str) -> None:
    files = ObjectFiles(url)
    assert take_generation(files, {}) == 1
    assert save(files, FIRST)
    manifest = manifest_of(files, FIRST)
    assert take_generation(files, {}) == 2
    with pytest.raises(Superseded):
        commit(files, manifest)
    check_all(files)


def test_a_run_is_saved_and_restored(tmp_path: Path) -> None:
    """Through fsspec, by the real saver process."""
    place = f"local://{tmp_path}/ck"
    with Checkpointer(place) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        assert checkpointer.save(2, {"x": 2}).result(WITHIN)
    files = ObjectFiles(place)
    write_part(files, part_of(Address(1, 30), 0), pieces_of(Address(1, 30), 0))
    with Checkpointer(place) as checkpointer:
        state = {"x": 0}
        assert checkpointer.restore(state) == 2
        assert state == {"x": 2}
    assert [address.step for address in committed(files)] == [1, 2]
    assert files.names() == ["generation-00000002.json", "step-000000001.g00001", "step-000000002.g00001"]

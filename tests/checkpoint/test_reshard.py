"""What one world has saved, another restores, however both are sharded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.ranks import run_ranks
from tlaunch.checkpoint.catalog import find, manifest_of
from tlaunch.checkpoint.files import LocalFiles


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "restored"),
    [((3, "ddp"), (2, "tp")), ((4, "hsdp"), (3, "fsdp")), ((4, "tp"), (1, "ddp"))],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def test_another_world_and_another_sharding(tmp_path: Path, saved: tuple[int, str], restored: tuple[int, str]) -> None:
    folder = tmp_path / "ck"
    runs = [(saved[0], ("save", str(folder), saved[1])), (restored[0], ("check", str(folder), restored[1]))]
    run_ranks("reshard.py", *runs, folder=tmp_path)
    files = LocalFiles(folder)
    address = find(files)
    assert address is not None
    sizes = [file.size for file in manifest_of(files, address).files]
    assert len(sizes) == saved[0]
    assert max(sizes) < 2 * min(sizes), "no rank writes everything"

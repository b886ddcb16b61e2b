"""Our format under the API of torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.ranks import run_ranks
from tlaunch.checkpoint.catalog import committed
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.layout import Address


@pytest.mark.slow
def test_saved_by_three_ranks_and_loaded_by_two(tmp_path: Path) -> None:
    folder = str(tmp_path / "ck")
    runs = [
        (1, ("nothing", str(tmp_path / "empty"))),
        *((world, (what, folder)) for world, what in [(3, "save"), (2, "load"), (2, "own"), (3, "load")]),
    ]
    run_ranks("with_dcp.py", *runs, folder=tmp_path)
    assert committed(LocalFiles(folder)) == [Address(1, 3), Address(2, 4), Address(3, 9)]
    assert not list(tmp_path.rglob("*.metadata"))

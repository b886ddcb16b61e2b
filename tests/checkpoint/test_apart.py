"""Ranks that differ: in what they have, and in what they can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.ranks import run_ranks


@pytest.mark.slow
def test_stages_of_a_pipeline_and_a_rank_that_stays_out(tmp_path: Path) -> None:
    runs = [(2, ("stages", str(tmp_path / "stages"))), (2, ("apart", str(tmp_path / "apart")))]
    run_ranks("apart.py", *runs, folder=tmp_path)

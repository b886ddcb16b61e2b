"""Ranks that differ: in what they have, and in what they can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.ranks import run_ranks


@pytest.mark.slow
def test_stages_of_a_pipeline_and_ranks_that_differ(tmp_path: Path) -> None:
    runs = [(2, (what, str(tmp_path / what))) for what in ("stages", "apart", "unlike")]
    run_ranks("apart.py", *runs, folder=tmp_path)

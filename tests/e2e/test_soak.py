"""The soak test of ``make soak``, with few kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.soak import soak
from tests.support.leaks import Run


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_kills_in_a_row_are_all_recovered_from(tmp_path: Path, test_run: Run) -> None:
    report = soak(tmp_path, test_run, kills=5, seed=0)
    assert report.off == []
    assert len(report.kills) == 5

"""The settings that must fit each other."""

from __future__ import annotations

import pytest

from tlaunch.errors import InputError
from tlaunch.launcher.control.timing import Timing


def test_contact_counts_as_broken_before_a_stall_of_the_store_can_end_a_lease() -> None:
    timing = Timing()
    assert timing.gap < timing.lease - timing.lease / 3, "a lease is renewed every third of its time"
    with pytest.raises(InputError, match="shorter than two thirds of the lease, got 3"):
        Timing(lease=4, gap=3)

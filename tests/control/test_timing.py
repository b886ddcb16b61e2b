"""The settings that must fit each other."""

from __future__ import annotations

import dataclasses

import pytest

from tlaunch.errors import InputError
from tlaunch.launcher.control.timing import Timing, deadlines
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.mesh import Mesh


def test_contact_counts_as_broken_before_a_stall_of_the_store_can_end_a_lease() -> None:
    timing = Timing()
    assert timing.gap < timing.lease - timing.lease / 3, "a lease is renewed every third of its time"
    with pytest.raises(InputError, match="shorter than two thirds of the lease, got 3"):
        Timing(lease=4, gap=3)


def test_the_defaults_fit_each_other() -> None:
    Timing().check(JobSpec("job", nodes=1, spares=0, mesh=Mesh.flat(1)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"ack_timeout": 15}, r"exit code \+ reap \(15.5 s\) to be shorter than ack_timeout \(15 s\)"),
        ({"start_timeout": 100}, r"warm \(120 s\) to be shorter than start_timeout \(100 s\)"),
    ],
)
def test_a_job_whose_deadlines_do_not_fit_is_refused(spec: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Timing().check(JobSpec("job", nodes=1, spares=0, mesh=Mesh.flat(1), **spec))  # type: ignore[arg-type]


def test_every_setting_says_what_it_is_for() -> None:
    told = list(deadlines())
    assert {setting.name for setting in dataclasses.fields(Timing)} <= {one.name for one in told}
    assert all(one.wait and one.then and one.seconds > 0 for one in told)

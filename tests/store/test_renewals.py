"""When a lease is renewed: never later than after a third of its time, and not by all nodes at once."""

from __future__ import annotations

import itertools

from tlaunch.launcher.store.lease import shares

CHANCES = [n / 10 for n in range(11)]


def first(chance: float, count: int) -> list[float]:
    return list(itertools.islice(shares(chance), count))


def test_nodes_that_start_together_have_time_for_that_and_then_do_not_renew_together() -> None:
    assert {first(chance, 1)[0] for chance in CHANCES} == {1.0}, "no keepalive falls into the start before it must"
    assert len({first(chance, 2)[1] for chance in CHANCES}) == len(CHANCES)


def test_no_chance_makes_a_renewal_late_or_keeps_a_lease_hurried() -> None:
    for chance in CHANCES:
        assert all(0.5 <= share <= 1.0 for share in first(chance, 2))
        assert set(first(chance, 9)[2:]) == {1.0}

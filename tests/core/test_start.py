"""How a job starts that says where its spares are to be, or that it is strict."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tests.core.world import World, racks
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.plan import Result
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.model import Slot
from tlaunch.topology.spares import SpareRequest


def asking(world: World, spares: str | None = None, *, strict: bool = False) -> World:
    spread = SpareRequest.parse(spares) if spares else None
    spec = replace(world.cluster.spec, spread=spread, strict=strict)
    world.cluster = replace(world.cluster, spec=decode(JobSpec, encode(spec), "spec"))
    return world


def spares(world: World) -> dict[str, int]:
    return dict(Counter(slot.node for slot in world.cluster.spares))


def test_spares_are_kept_where_the_job_says() -> None:
    world = asking(World.of(racks(2, 3, 2), "dp=2,tp=2", spares=4), "2n")
    world.look()
    assert {"r0-n2": 2, "r1-n2": 2}.items() <= spares(world).items()
    world = asking(World.of(racks(2, 3, 2), "dp=8", spares=4), "2/rack")
    world.look()
    assert Counter(name[:2] for name, count in spares(world).items() for _ in range(count)) == {"r0": 2, "r1": 2}


def mostly_broken_rack(*, strict: bool) -> World:
    world = asking(World.of(racks(2, 2, 2), "dp=1", spares=4), "2/rack", strict=strict)
    for slot in (Slot("r0-n0", 0), Slot("r0-n0", 1), Slot("r0-n1", 0)):
        world.fail(slot)
    world.look()
    return world


def test_a_rack_that_cannot_keep_its_spares_is_named() -> None:
    world = mostly_broken_rack(strict=False)
    assert world.plan.world_size == 1
    assert "spares 2/rack: 1 of 2 racks cannot keep 2 spares: r0 1" in world.plan.reasons


def test_a_strict_job_does_not_start_without_what_it_asks_for() -> None:
    world = mostly_broken_rack(strict=True)
    assert world.result == Result(2, "--strict: spares 2/rack: 1 of 2 racks cannot keep 2 spares: r0 1")
    world = asking(World.of(racks(1, 2, 2), "dp=3", spares=1), strict=True)
    world.fail(Slot("r0-n0", 0))
    world.look()
    assert world.result == Result(2, "--strict: 0 of 1 spare: the other slots are bad")


def test_a_strict_job_starts_with_what_it_asks_for() -> None:
    world = asking(World.of(racks(2, 2, 2), "dp=4,tp=1", spares=4), "2/rack", strict=True)
    world.look()
    assert world.plan.world_size == 4

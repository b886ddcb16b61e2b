"""Who holds the others up when all ranks hang, and what is done about it."""

from __future__ import annotations

from dataclasses import replace

from tests.core.world import World, racks
from tlaunch.launcher.core.blame import TRIES
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.hang import Hung, hanging, suspects
from tlaunch.launcher.core.plan import Plan

WAITS = Hung(since=10.0, ran=5.0, host="h", place="train.py:60 in step", waits="all_reduce")
LOADS = Hung(since=10.0, ran=5.0, host="h", place="data.py:9 in load", stack="Stack\n", output="loading")


def world_of(spares: int = 4, max_restarts: int = 9) -> World:
    return World.started(racks(1, (4 + spares) // 2, 2), "dp=4", spares, max_restarts=max_restarts)


def judged(world: World, ranks: dict[int, Hung], *, exits: dict[int, Exit] | None = None) -> dict[int, Exit]:
    return dict(hanging(world.plan, exits or {}, ranks, {"r0-n0": 0.0, "r0-n1": 100.0}, 60.0))


def test_the_one_that_does_not_wait_is_the_cause() -> None:
    found = judged(world_of(), {0: WAITS, 1: WAITS, 2: WAITS, 3: LOADS})
    assert found == {
        3: Exit(
            message="for 60 s at data.py:9 in load; ranks 0-2 wait for it in all_reduce",
            traceback="Stack\n",
            output="loading",
            host="h",
            time=10.0,
            ran=5.0,
            hang="cause",
        )
    }
    assert str(found[3]).startswith("hang: for 60 s at data.py:9 in load; ")


def test_of_several_the_one_that_stood_still_first_is_the_cause_by_one_clock() -> None:
    later = replace(LOADS, since=109.0)  # on the node of ranks 0 and 1, whose clock shows 100 s more
    found = judged(world_of(), {0: WAITS, 1: later, 2: LOADS, 3: WAITS})
    assert list(found) == [1]
    assert str(found[1].message).endswith(
        "; ranks 0,3 wait for it in all_reduce; rank 2 hangs too, elsewhere than in a collective"
    )


def test_one_of_which_nothing_is_known_does_not_wait_as_far_as_is_known() -> None:
    (ended,) = judged(world_of(), {0: WAITS, 1: WAITS, 2: Hung(10.0, 5.0, "h"), 3: WAITS}).values()
    assert ended.message == "for 60 s at an unknown place; ranks 0-1,3 wait for it in all_reduce"


def test_where_nobody_is_in_a_collective_most_wait_for_the_few_that_are_elsewhere() -> None:
    item = replace(WAITS, waits=None)
    assert suspects({0: item, 1: item, 2: item, 3: LOADS}) == (3,)
    assert suspects({0: item, 1: LOADS}) == ()
    assert suspects({0: Hung(10.0, 5.0, "h"), 1: Hung(10.0, 5.0, "h")}) == ()
    assert suspects({0: LOADS}) == (0,), "it is alone"


def test_when_all_wait_or_none_does_that_is_said() -> None:
    (ended,) = judged(world_of(), dict.fromkeys(range(4), WAITS)).values()
    assert ended.hang == "unclear"
    assert ended.message == (
        "for 60 s at train.py:60 in step; all 4 ranks wait in collectives, so that the cause cannot be told"
    )
    elsewhere = {rank: replace(LOADS, place=f"train.py:{rank}") for rank in range(4)}
    (ended,) = judged(world_of(), elsewhere).values()
    assert str(ended.message).endswith(
        "; none of 4 ranks is known to wait for the others, so that the cause cannot be told"
    )


def test_as_long_as_one_rank_gets_further_or_has_failed_nobody_hangs() -> None:
    world, three = world_of(), {0: WAITS, 1: WAITS, 3: LOADS}
    assert judged(world, three) == {}
    assert judged(world, {}) == {}
    assert judged(world, three, exits={2: Exit(code=1)}) == {}
    assert list(judged(world, three, exits={2: Exit(code=0)})) == [3], "one that has finished is not waited for"
    assert judged(world, {3: LOADS}, exits=dict.fromkeys(range(4), Exit(code=0))) == {}


# --- the decision ----------------------------------------------------------------------------------------------------


def hang(world: World, rank: int, like: Hung = LOADS) -> Plan:
    others = dict.fromkeys(set(range(4)) - {rank}, WAITS)
    for hung, ended in judged(world, {**others, rank: like}).items():
        world.ended(hung, ended)
    world.look()
    world.ack()
    return world.plan


def test_a_hang_restarts_all_in_place_and_counts_as_the_jobs_own() -> None:
    world = world_of()
    seats = world.seats()
    plan = hang(world, 3)
    assert world.seats() == seats
    assert {seat.since for seat in plan.seats} == {plan.generation}
    assert plan.restarts == 1
    assert plan.decisions == (f"restart rank 3 in place on {seats[3]} (restart 1 of 9)",)
    assert "failed: hang: for 60 s at data.py:9 in load" in str(plan.events[0])


def test_a_slot_on_which_ranks_hang_again_and_again_is_taken_for_bad() -> None:
    world = world_of()
    home = world.seats()[3]
    for _ in range(TRIES - 1):
        hang(world, 3)
    assert world.seats()[3] == home
    plan = hang(world, 3)
    assert world.seats()[3] != home, "and not for a bug of the script's, though it hangs at the same place"
    assert dict(plan.bad) == {home: "rank 3 failed there 3 times, last hang"}
    assert plan.restarts == 0
    plan = hang(world, 3)
    assert plan.restarts == TRIES + 1, "it has followed the rank: it is the script's"


def test_without_spares_max_restarts_ends_it() -> None:
    world = world_of(spares=0, max_restarts=1)
    hang(world, 3)
    hang(world, 3)
    assert world.result.code == 1
    assert "--max-restarts 1 reached: 2 failures of the job's own code counted (rank 3: 2)" in world.result.reason
    assert world.result.traceback == "Stack\n"


def test_no_slot_is_blamed_for_a_hang_whose_cause_is_unclear() -> None:
    world = world_of()
    for number in range(1, TRIES + 3):
        plan = hang(world, 0, WAITS)
        assert (plan.restarts, plan.bad, plan.faults) == (number, (), ())


def test_words_in_a_stack_are_not_what_a_process_says() -> None:
    ended = Exit(message="for 60 s", traceback='  File "x.py", line 1, in GPU is lost, Broken pipe', hang="cause")
    assert (ended.lost_peer, ended.broken, ended.bug) == (False, False, None)

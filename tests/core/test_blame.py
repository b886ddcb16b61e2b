"""Whose fault it is: the script's, the slot's, or nobody's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.world import World, racks, recovered
from tlaunch.launcher.core.blame import KEPT_FAULTS, QUICK, TRIES, weighty
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.decisions import Decision, Restart, Swap
from tlaunch.launcher.core.detect import detect
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.core.policy import Failure, Policy
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Node, Slot

SEGV = Exit(signal=11, time=1.0, ran=5.0)


def world_of(spares: int = 4, max_restarts: int = 9, mesh: str = "dp=4") -> World:
    """Return a job that takes all slots of its one rack."""
    ranks = Mesh.parse(mesh).size
    return World.started(racks(1, (ranks + spares) // 2, 2), mesh, spares, max_restarts=max_restarts)


def bug(message: str = "ValueError: step {}: bad batch", line: int = 62, ran: float = 5.0, number: int = 0) -> Exit:
    traceback = f'Traceback (most recent call last):\n  File "train.py", line {line}, in main\n{message}'
    return Exit(code=3, message=message.format(number), traceback=traceback, time=1.0, ran=ran)


def ecc(ran: float = 5.0) -> Exit:
    message = "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    return replace(bug(message, ran=ran), code=1)


def fail(world: World, rank: int, ended: Exit) -> Plan:
    """Let a rank fail, and all others with it."""
    world.crash_all(first=rank)
    world.ended(rank, ended)
    world.look()
    world.ack()
    return world.plan


# --- an operator's trials --------------------------------------------------------------------------------------------


class Restarts(Policy):
    """Would go on for ever."""

    def on_failure(self, failure: Failure, cluster: Cluster) -> Decision:
        return Restart(failure.rank)


@pytest.mark.parametrize("policy", [Policy(), Restarts()], ids=["ladder", "policy"])
def test_what_an_operator_has_killed_costs_neither_slot_nor_restarts(policy: Policy) -> None:
    world = world_of(max_restarts=1)
    world.policy = policy
    assert fail(world, 2, SEGV).restarts == 1
    for _ in range(TRIES + 1):
        plan = fail(world, 2, Exit(signal=9, message="killed by an operator", time=1.0, ran=5.0, trial=True))
        assert (plan.result, plan.restarts, plan.bad, len(plan.faults)) == (None, 1, (), 1)
        assert plan.decisions == (
            f"restart rank 2 in place on {plan.seats[2].slot} (an operator's trial, which is not counted)",
        )
    assert fail(world, 2, SEGV).result is not None, "what is its own still counts"


# --- the same exception on every try ---------------------------------------------------------------------------------


def test_the_same_exception_on_every_try_is_the_scripts_and_ends_the_job() -> None:
    world = world_of()
    for number in range(TRIES - 1):
        assert fail(world, number, bug(number=number)).result is None, "whichever rank it hits first"
    assert fail(world, 1, bug(number=7)).result is not None
    assert world.result.code == 3
    assert world.result.traceback == bug().traceback
    assert world.result.reason.endswith(
        "; 3 tries in a row ended alike, so the fault is the script's: "
        "ValueError: step #: bad batch (train.py:62 in main)"
    )


@pytest.mark.parametrize("other", [bug(line=63), bug("KeyError: {}"), SEGV, bug(ran=QUICK)])
def test_anything_else_begins_the_count_anew(other: Exit) -> None:
    """Another place, another exception, no exception, or a try that ran for long before it failed."""
    world = world_of()
    tries = (bug(), bug(), other, bug()) if other.ran >= QUICK else (bug(), bug(), other, bug(), bug())
    for rank, ended in enumerate(tries):
        assert fail(world, rank % 4, ended).result is None
    assert fail(world, 0, bug()).result is not None


def test_the_first_of_the_tries_may_have_run_for_days() -> None:
    world = world_of()
    for ran in (1e6, 5.0):
        assert fail(world, 0, bug(ran=ran)).result is None
    assert fail(world, 0, bug()).result is not None


def test_lost_hardware_in_between_does_not_make_the_script_better() -> None:
    world = world_of()
    fail(world, 0, bug())
    world.lose("r0-n0")
    recovered(world)
    fail(world, 0, bug())
    assert fail(world, 0, bug()).result is not None


@pytest.mark.parametrize("message", ["RuntimeError: Connection closed by peer", "RuntimeError: NCCL error in: x"])
def test_what_may_be_somebody_elses_fault_is_limited_by_max_restarts_only(message: str) -> None:
    world = world_of(spares=0)
    for _ in range(9):
        assert fail(world, 0, bug(message)).result is None
    fail(world, 0, bug(message))
    assert "--max-restarts 9 reached" in world.result.reason


# --- a slot on which ranks fail again and again ----------------------------------------------------------------------


def test_a_flapping_slot_is_taken_for_bad_and_what_was_counted_for_it_is_forgiven() -> None:
    world = world_of()
    home = world.seats()[1]
    fail(world, 3, SEGV)
    for _ in range(TRIES - 1):
        fail(world, 1, SEGV)
    assert (world.seats()[1], world.plan.restarts) == (home, 3)
    plan = fail(world, 1, SEGV)
    assert world.seats()[1] != home
    assert dict(plan.bad) == {home: "rank 1 failed there 3 times, last killed by SIGSEGV (segmentation fault)"}
    assert plan.restarts == 1, "that of rank 3"
    assert plan.reasons[0] == "ranks 0,2-3 failed as a consequence of rank 1; that is not counted"
    assert plan.reasons[1] == (
        f"{home} is taken for bad hardware: rank 1 failed there 3 times, last killed by SIGSEGV (segmentation fault); "
        "2 earlier failures there are not counted any more"
    )


def test_exceptions_that_differ_are_counted_to_the_slot() -> None:
    world = world_of()
    home = world.seats()[1]
    for line in range(TRIES):
        fail(world, 1, bug(line=line))
    assert home in dict(world.plan.bad)


def test_a_slot_is_not_suspected_while_an_exception_comes_again() -> None:
    world = world_of()
    for ended in (SEGV, bug(), bug()):
        assert fail(world, 1, ended).bad == ()
    assert fail(world, 1, bug()).result is not None
    world = world_of()
    for ended in (SEGV, bug(), bug(), SEGV):
        fail(world, 1, ended)
    assert len(world.plan.bad) == 1


def test_a_failure_that_follows_its_rank_is_the_scripts_and_takes_no_other_spare() -> None:
    world = world_of(max_restarts=5)
    for _ in range(TRIES):
        fail(world, 1, SEGV)
    moved_to = world.seats()[1]
    assert world.plan.restarts == 0
    plan = fail(world, 1, SEGV)
    assert plan.restarts == 4, "those on the first slot are counted after all"
    assert "the failure has followed rank 1" in plan.reasons[1]
    assert fail(world, 1, SEGV).restarts == 5
    assert world.seats()[1] == moved_to
    assert len(world.plan.bad) == 1
    fail(world, 1, SEGV)
    assert world.result.code == 139
    assert "--max-restarts 5 reached: 6 failures of the job's own code counted (rank 1: 6)" in world.result.reason


class Mover(Policy):
    """Moves a rank that fails, rather than to start it again where it is."""

    def on_failure(self, failure: Failure, cluster: Cluster) -> Decision:
        return Restart(failure.rank) if failure.spare is None else Swap(failure.rank, failure.spare)


def test_a_slot_that_kills_whoever_lands_on_it() -> None:
    """One rank fails there and goes away, the next one that comes fails as well: that is no accident."""
    world = world_of()
    world.policy = Mover()
    bad = world.seats()[1]
    fail(world, 1, SEGV)
    assert world.seats()[1] != bad
    for slot in {*world.cluster.spares, world.seats()[0]} - {bad}:
        world.fail(slot)
    recovered(world)
    assert world.seats()[0] == bad, "the last spare"
    world.join(Node("r0-n9", 1, domain="d0", rack="r0"))
    plan = fail(world, 0, Exit(signal=6, ran=1.0))
    assert world.seats()[0] == Slot("r0-n9", 0)
    assert dict(plan.bad)[bad] == "ranks 0, 1 failed there one after the other, last killed by SIGABRT (aborted)"
    assert plan.restarts == 0


def test_without_a_spare_to_try_the_rank_on_nobody_is_suspected() -> None:
    world = world_of(spares=0, max_restarts=4)
    for _ in range(4):
        assert fail(world, 1, SEGV).world_size == 4
    fail(world, 1, SEGV)
    assert "--max-restarts 4 reached" in world.result.reason
    assert world.plan.bad == ()


def test_two_flapping_slots_at_the_same_time() -> None:
    world = world_of(max_restarts=4)
    homes = {rank: world.seats()[rank] for rank in (1, 2)}
    for rank in (1, 2, 1, 2, 1, 2):
        assert fail(world, rank, SEGV).result is None
    assert dict(world.plan.bad).keys() == set(homes.values())
    assert world.plan.restarts == 0


# --- broken hardware that shows as an exception ----------------------------------------------------------------------


def test_a_gpu_that_says_it_is_broken_is_replaced_at_once_and_not_counted() -> None:
    world = world_of(max_restarts=0)
    home = world.seats()[1]
    plan = fail(world, 1, ecc())
    assert plan.restarts == 0
    assert world.seats()[1] != home
    assert "uncorrectable ECC" in dict(plan.bad)[home]


def test_without_a_spare_a_broken_gpu_costs_a_replica() -> None:
    world = world_of(spares=0)
    assert fail(world, 1, ecc()).world_size == 3
    world.ended(0, ecc())
    world.cluster = replace(world.cluster, spec=replace(world.cluster.spec, min_world=3))
    world.look()
    assert world.result.reason.startswith("2 ranks are left, --min-world is 3: rank 0 on")
    assert world.result.traceback == ecc().traceback


def test_a_script_that_only_says_that_the_gpu_is_broken_does_not_eat_every_spare() -> None:
    world = world_of(max_restarts=2)
    fail(world, 1, ecc())
    fail(world, 1, ecc())
    assert (len(world.plan.bad), world.plan.restarts) == (1, 2), "it came along to the next slot, at once"
    fail(world, 1, ecc())
    assert "--max-restarts 2 reached" in world.result.reason


def test_two_gpus_that_break_in_the_course_of_time_are_both_believed() -> None:
    world = world_of(max_restarts=0)
    fail(world, 1, ecc())
    fail(world, 2, ecc())
    fail(world, 1, ecc(ran=QUICK))
    assert (len(world.plan.bad), world.plan.restarts) == (3, 0)


def test_a_gpu_assertion_that_comes_again_on_another_slot_is_the_scripts() -> None:
    world = world_of(max_restarts=4)
    assertion = bug("torch.AcceleratorError: CUDA error: device-side assert triggered")
    for _ in range(TRIES):
        fail(world, 1, assertion)
    assert len(world.plan.bad) == 1
    assert fail(world, 2, assertion).restarts == 4
    fail(world, 0, assertion)
    assert "--max-restarts 4 reached" in world.result.reason


# --- however it fails ------------------------------------------------------------------------------------------------

WAYS = (SEGV, Exit(code=7, ran=1e6), bug(), bug(line=9), bug(ran=1e6), ecc(), ecc(ran=1e6), bug("E: NCCL error in: x"))


@given(
    tries=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(WAYS)), min_size=1, max_size=12),
    spares=st.integers(0, 2).map(lambda half: 2 * half),
    max_restarts=st.integers(0, 6),
)
@settings(deadline=None, max_examples=60)
def test_what_fails_on_every_try_comes_to_an_end(tries: list[tuple[int, Exit]], spares: int, max_restarts: int) -> None:
    """Each try is counted or costs a slot, of which there are so many."""
    world = world_of(spares, max_restarts)
    bound = (4 + spares + 1) * (max_restarts + 1)
    for number in range(bound + 1):
        rank, ended = tries[number % len(tries)]
        before = world.plan
        if fail(world, rank % before.world_size, ended).result is not None:
            break
        assert world.plan.restarts > before.restarts or len(world.plan.bad) > len(before.bad)
    assert world.result.reason
    assert world.result.code in {ended.status for _, ended in tries} | {1}


@given(
    rank=st.integers(0, 3),
    ways=st.lists(st.sampled_from([way for way in WAYS if not way.broken]), min_size=1, max_size=5),
    spares=st.integers(0, 4).map(lambda half: 2 * half),
    max_restarts=st.integers(0, 6),
)
@settings(deadline=None, max_examples=60)
def test_a_rank_that_fails_wherever_it_is_takes_one_spare_at_most(
    rank: int, ways: list[Exit], spares: int, max_restarts: int
) -> None:
    world = world_of(spares, max_restarts)
    for number in range(max_restarts + 2):
        if fail(world, rank, ways[number % len(ways)]).result is not None:
            break
    assert world.result.code != 0
    assert len(world.plan.bad) <= 1


# --- what is written down --------------------------------------------------------------------------------------------


def test_the_history_is_bounded_and_stands_in_the_plan() -> None:
    world = world_of(spares=0, max_restarts=100)
    for number in range(KEPT_FAULTS + 5):
        fail(world, number % 4, SEGV)
    assert len(world.plan.faults) == KEPT_FAULTS
    assert world.plan.restarts == KEPT_FAULTS + 5
    assert decode(Plan, encode(world.plan), "the plan") == world.plan


def test_another_controller_comes_to_the_same_decision() -> None:
    """It knows nothing but what stands in the store."""
    world = world_of()
    for _ in range(TRIES):
        read = decode(Plan, encode(world.plan), "the plan")
        world.cluster = replace(world.cluster, plan=read, history=())
        fail(world, 1, SEGV)
    assert len(world.plan.bad) == 1


def test_faults_go_with_their_ranks_when_the_job_shrinks() -> None:
    """What happened to a rank under another number is no failure of a second rank on its slot."""
    world = world_of(spares=0, mesh="dp=4")
    fail(world, 3, SEGV)
    fail(world, 0, SEGV)
    home = world.seats()[3]
    world.fail(world.seats()[0])
    recovered(world)
    number = next(rank for rank, slot in world.seats().items() if slot == home)
    assert [(fault.rank, fault.slot) for fault in world.plan.faults] == [(number, home)]
    assert number != 3
    world.join(Node("r0-n9", 2, domain="d0", rack="r0"))
    assert fail(world, number, SEGV).bad == ((Slot("r0-n0", 0), "XID 79"),)
    fail(world, number, SEGV)
    assert home in dict(world.plan.bad)


def test_what_is_weighty_should_be_certain() -> None:
    world = world_of(max_restarts=1)
    world.ended(1, SEGV)
    assert not weighty(world.cluster, detect(world.cluster))
    recovered(world)
    world.ended(1, SEGV)
    assert weighty(world.cluster, detect(world.cluster)), "it would end the job"
    world.lose("r0-n0")
    assert not weighty(world.cluster, detect(world.cluster)), "the node is the cause"


def test_a_rank_that_left_early_is_named_where_everybody_else_only_lost_a_peer() -> None:
    world = world_of()
    world.ended(2, Exit(code=0))
    for rank in (0, 1, 3):
        world.crash(rank, time=rank, message="RuntimeError: Connection closed by peer")
    assert "rank 2 had ended with exit code 0 while others went on" in recovered(world).reasons


def test_clocks_of_nodes_are_brought_together() -> None:
    world = world_of()
    world.ended(0, Exit(signal=11, time=5.0))  # on r0-n0, whose clock began an hour later
    world.ended(2, Exit(signal=11, time=3605.0))
    world.cluster = replace(world.cluster, clocks={"r0-n0": 3601.0, "r0-n1": 0.0})
    assert [event.rank for event in detect(world.cluster)] == [2, 0]  # type: ignore[union-attr]
    world.cluster = replace(world.cluster, clocks={"r0-n0": 3599.0, "r0-n1": 0.0})
    assert [event.rank for event in detect(world.cluster)] == [0, 2]  # type: ignore[union-attr]
    world.cluster = replace(world.cluster, clocks={"r0-n1": 0.0})
    assert [event.rank for event in detect(world.cluster)] == [2, 0]  # type: ignore[union-attr]

"""Whatever happens, in whatever order, and whatever a policy says: the invariants of the design hold.

Hypothesis draws a machine, a job, and a sequence of failures, joins, drains and acks. The controller looks whenever it
is told to. The invariants are stated here once more, in the words of the design and not by the planner's own check.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.stated import check_next
from tests.core.world import World
from tlaunch.launcher.core.assign import Assignment, assignments, generation_head
from tlaunch.launcher.core.blame import TRIES
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.decisions import Decision, Grow, MoveGroup, Restart, Shrink, Stop, Swap, Wait
from tlaunch.launcher.core.detect import detect, next_deadline
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.core.planner import Outcome, decide
from tlaunch.launcher.core.policy import Failure, Policy, Room
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Scope, Slot

TRACE = 'Traceback (most recent call last):\n  File "train.py", line 7, in main\n'
EXITS = (
    Exit(code=0),
    Exit(signal=9, time=1.0, ran=5.0),
    Exit(code=1, time=1.0, ran=700.0),
    Exit(code=3, message="ValueError: step 3", traceback=TRACE, time=1.0, ran=5.0),
    Exit(code=1, message="E: CUDA error: device-side assert triggered", traceback=TRACE, time=1.0, ran=5.0),
    Exit(code=1, message="E: uncorrectable ECC error encountered", traceback=TRACE, time=1.0, ran=5.0),
    Exit(code=1, message="E: Connection closed by peer", traceback=TRACE, time=1.0, ran=5.0),
)
"""Every kind of end that is dealt with in a way of its own."""

SCOPES: tuple[Scope, ...] = ("node", "domain", "rack", "any")


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    slots = draw(st.integers(1, 4))
    nodes: list[Node] = []
    for rack in range(draw(st.integers(1, 3))):
        for index in range(draw(st.integers(1, 4))):
            domain = draw(st.sampled_from([None, f"d{rack}", f"d{rack}b"]))
            nodes.append(Node(f"r{rack}-n{index}", slots, domain, f"r{rack}"))
    return Machine(tuple(nodes))


@st.composite
def jobs(draw: st.DrawFn) -> Cluster:
    """Return a job on a machine with room for it."""
    machine = draw(machines())
    room = len(machine.slots)
    tensor = draw(st.integers(1, min(4, room)))
    replicas = draw(st.integers(1, room // tensor))
    mesh = Mesh.parse(draw(st.sampled_from([f"dp={replicas},tp={tensor}", f"tp={tensor},dp={replicas}"])))
    spec = JobSpec(
        job_id="job",
        nodes=len(machine.nodes),
        spares=draw(st.integers(0, room - mesh.size)),
        mesh=mesh,
        max_restarts=draw(st.integers(0, 3)),
        swap_scope=draw(st.sampled_from(SCOPES)),
        min_world=draw(st.integers(1, mesh.size)),
    )
    return Cluster(spec, machine, frozenset(machine.by_name))


class Hostile(Policy):
    """Says anything: the right thing about the wrong rank, the wrong thing about the right one, rubbish, or nothing."""

    def __init__(self, draws: tuple[int, ...]) -> None:
        self.draws = draws
        self.calls = 0

    def on_failure(self, failure: Failure, cluster: Cluster) -> Decision:
        assert cluster.plan is not None
        draw = self.draws[self.calls % len(self.draws)]
        self.calls += 1
        slots = cluster.machine.slots
        slot = slots[draw % len(slots)]
        answers: tuple[object, ...] = (
            Restart(failure.rank),
            Restart(failure.rank + 1),
            Swap(failure.rank, slot),
            Swap(failure.rank, slot),
            MoveGroup(failure.rank),
            MoveGroup(draw),
            Swap(failure.rank, failure.slot),
            Swap((failure.rank + draw) % cluster.plan.world_size, slot),
            Swap(failure.rank, Slot("elsewhere", draw)),
            Swap(failure.rank, cast("Slot", "r0-n0/gpu-0")),
            Shrink(draw % 4),
            Shrink(-1),
            Wait(draw % 400, "why not"),
            Wait(nan if draw % 2 else inf, "for ever"),
            Stop("", draw),
            Stop("stop", 999),
            Grow(),
            cast("Decision", None),
            failure,
            super().on_failure(failure, cluster),
        )
        answer = answers[draw // 7 % len(answers)]
        if draw % 11 == 0:
            raise RuntimeError("no idea")
        return cast("Decision", answer)

    def on_room(self, room: Room, cluster: Cluster) -> Grow | None:
        draw = self.draws[self.calls % len(self.draws)]
        self.calls += 1
        answers: tuple[object, ...] = (
            None,
            Grow(draw % 4),
            Grow(room.replicas),
            Grow(-1),
            Grow(cast("int", None)),
            Shrink(),
            super().on_room(room, cluster),
        )
        if draw % 11 == 0:
            raise RuntimeError("no idea")
        return cast("Grow | None", answers[draw // 7 % len(answers)])


policies = st.one_of(st.just(()), st.lists(st.integers(0, 1000), min_size=1, max_size=8).map(tuple))


def made(draws: tuple[int, ...]) -> Policy:
    return Hostile(draws) if draws else Policy()


class AnyJob(RuleBasedStateMachine):
    """One job through thick and thin."""

    @initialize(cluster=jobs())
    def start(self, cluster: Cluster) -> None:
        self.world = World(cluster)
        self.told: dict[str, Assignment] = {}
        self.look(())

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(data=st.data(), ended=st.sampled_from(EXITS), others=st.booleans())
    @precondition(lambda self: self.running)
    def process_ends(self, data: st.DataObject, ended: Exit, *, others: bool) -> None:
        rank = data.draw(st.sampled_from(range(self.world.plan.world_size)))
        if not ended.ok and others:
            self.world.crash_all(rank)
        self.world.ended(rank, ended)

    @rule(data=st.data(), ended=st.sampled_from([ended for ended in EXITS if not ended.ok]), draws=policies)
    @precondition(lambda self: self.running)
    def fails_again_and_again(self, data: st.DataObject, ended: Exit, draws: tuple[int, ...]) -> None:
        rank = data.draw(st.sampled_from(range(self.world.plan.world_size)))
        for _ in range(TRIES):
            if self.running and rank < self.world.plan.world_size:
                self.process_ends_now(rank, ended, draws)

    def process_ends_now(self, rank: int, ended: Exit, draws: tuple[int, ...]) -> None:
        self.world.crash_all(rank)
        self.world.ended(rank, ended)
        self.look(draws)
        self.world.ack()

    @rule(data=st.data(), ended=st.sampled_from(EXITS), draws=policies)
    @precondition(lambda self: self.running and self.world.cluster.alive)
    def two_at_once(self, data: st.DataObject, ended: Exit, draws: tuple[int, ...]) -> None:
        """A rank and another rank, or a node, or the slot of another one, before anybody looks."""
        rank, other = (data.draw(st.sampled_from(range(self.world.plan.world_size))) for _ in range(2))
        self.world.ended(rank, ended)
        match data.draw(st.sampled_from(["rank", "node", "slot"])):
            case "rank":
                self.world.crash(other)
            case "node":
                self.world.lose(self.world.seats()[other].node)
            case "slot":
                self.world.fail(self.world.seats()[other])
        self.look(draws)

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def slot_fails(self, data: st.DataObject) -> None:
        self.world.fail(data.draw(st.sampled_from(self.world.cluster.machine.slots)))

    @rule(data=st.data())
    @precondition(lambda self: self.world.cluster.alive)
    def node_is_lost(self, data: st.DataObject) -> None:
        self.world.lose(data.draw(st.sampled_from(sorted(self.world.cluster.alive))))

    @rule(data=st.data(), new=st.integers(0, 99))
    def node_joins(self, data: st.DataObject, new: int) -> None:
        back = [node for node in self.world.cluster.machine if node.name not in self.world.cluster.alive]
        fresh = Node(f"new-{new}", 2, None, "r0")
        self.world.join(data.draw(st.sampled_from([*back, *([fresh] if new % 4 == 0 else [])] or [fresh])))

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def operator_drains(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.world.cluster.machine.slots))
        self.world.drain([slot])

    @rule()
    def operator_takes_the_drains_back(self) -> None:
        cluster = self.world.cluster
        bad = {slot: reason for slot, reason in cluster.bad.items() if slot not in cluster.drained}
        self.world.cluster = replace(cluster, bad=bad, drained=frozenset())

    @rule(data=st.data())
    @precondition(lambda self: self.world.cluster.alive)
    def node_acks(self, data: st.DataObject) -> None:
        self.world.ack(data.draw(st.sampled_from(sorted(self.world.cluster.alive))))

    @rule(chance=st.integers(0, 20))
    def operator_stops(self, chance: int) -> None:
        if chance == 20:
            self.world.cluster = replace(self.world.cluster, stop=("interrupted", 130))

    @rule()
    def all_ack(self) -> None:
        self.world.ack()

    @rule(seconds=st.sampled_from([1, 30, 61, 301]))
    def time_passes(self, seconds: int) -> None:
        self.world.advance(seconds)

    # --- what is done about it ---------------------------------------------------------------------------------------

    @rule(draws=policies)
    def look(self, draws: tuple[int, ...]) -> None:
        before = self.world.cluster
        events = detect(before)
        assert events == detect(before)
        self.world.policy = made(draws)
        outcome = self.world.look()
        assert outcome == decide(before, events, made(draws)), "the same question has the same answer"
        if outcome.plan is not None:
            check_next(before, outcome.plan)
            self.check_assignments(before, outcome.plan)
        else:
            assert self.world.cluster.plan == before.plan
        check_that_it_goes_on(self.world.cluster, outcome)

    def check_assignments(self, before: Cluster, plan: Plan) -> None:
        machine = before.machine
        self.told = assignments(plan, machine, self.told)
        assert machine.by_name.keys() <= self.told.keys()
        head = generation_head(plan, before.spec, ())
        placed = [
            (seat.rank, Slot(node, seat.index), seat.since)
            for node, given in self.told.items()
            for seat in given.under(head).seats
        ]
        assert sorted(placed) == [(seat.rank, seat.slot, seat.since) for seat in plan.seats]
        for given in self.told.values():
            assert [seat.local_rank for seat in given.seats] == list(range(len(given.seats)))
            assert (given.group_rank is None) == (not given.seats)
        groups = [given.group_rank for given in self.told.values() if given.group_rank is not None]
        assert sorted(groups) == list(range(len(plan.nodes)))

    @property
    def running(self) -> bool:
        plan = self.world.cluster.plan
        return plan is not None and plan.result is None

    @invariant()
    def generations_only_grow(self) -> None:
        if hasattr(self, "world"):
            assert [plan.generation for plan in self.world.plans] == list(range(1, len(self.world.plans) + 1))

    def teardown(self) -> None:
        """After the faults stop, the job runs or has ended, with one clear reason, after a few looks."""
        if not hasattr(self, "world"):
            return
        for _ in range(4):
            self.world.ack()
            self.look(())
        assert decide(self.world.cluster, detect(self.world.cluster), Policy()).plan is None
        cluster = self.world.cluster
        if cluster.plan is None:
            self.world.advance(cluster.spec.start_timeout)
            self.look(())
        elif cluster.plan.result is None:
            crashed = [rank for rank, ended in cluster.exits.items() if not ended.ok]
            waiting = {seat.rank for seat in cluster.plan.seats} - cluster.exits.keys()
            assert not crashed
            assert not waiting & set(cluster.displaced), "a rank that still runs has a slot to run on"
        if self.world.cluster.plan is not None:
            plan = self.world.plan
            assert plan.result is None or plan.result.reason
            assert decode(Plan, encode(plan), "the plan") == plan


def check_that_it_goes_on(cluster: Cluster, outcome: Outcome) -> None:
    """Nothing waits for ever: what is not settled has a deadline."""
    plan = cluster.plan
    deadline = next_deadline(cluster)
    assert deadline is None or deadline > cluster.now
    if plan is None:
        assert deadline is not None
    elif plan.result is not None:
        assert deadline is None
        assert outcome.look_again is None
    elif outcome.look_again is not None:
        assert cluster.now < outcome.look_again <= cluster.now + cluster.spec.start_timeout
    elif any(node in cluster.alive and node not in cluster.acked for node in plan.nodes):
        assert deadline is not None or cluster.now >= cluster.planned_at + cluster.spec.ack_timeout


AnyJob.TestCase.settings = settings(
    max_examples=120, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow], deadline=None
)
test_invariants_hold = AnyJob.TestCase

"""A node's part in the job on the in-memory store: what it applies and when, and what happens when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.membership import NodeTaken
from tlaunch.launcher.control.participant import Participant, _concerns
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.records import Ack, Leader, Registration, Rendezvous, Report
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Result
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Put
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Node

KEYS = Keys("job")
TIMING = Timing(retry=0.01, probe=0.05, request=0.1)
PAIR = JobSpec("job", nodes=2, spares=1, mesh=Mesh.flat(1), ack_timeout=0.3)
HERE = "node-0"


@dataclass
class Slots:
    """One slot that runs nothing. ``broken``: it does not do as it is told, either."""

    broken: bool = False
    heads: list[int] = field(default_factory=list)
    running: tuple[AssignedSeat, ...] = ()
    exits: dict[int, Exit] = field(default_factory=dict)
    changed: Callable[[], None] = lambda: None
    told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def report(self) -> Report:
        return Report(self.heads[-1] if self.heads else 0, dict(self.exits))

    @property
    def busy(self) -> bool:
        return bool(self.running)

    async def yield_stale(self, head: Generation, assignment: Assignment) -> None:
        self.heads.append(head.number)
        self.told.set()
        if self.broken:
            raise TlaunchError("a process does not die")
        self.running = tuple(seat for seat in self.running if seat in assignment.seats)

    def to_start(self, assignment: Assignment) -> tuple[AssignedSeat, ...]:
        return tuple(seat for seat in assignment.seats if seat not in self.running)

    async def start(self, head: Generation, assignment: Assignment, place: Rendezvous) -> None:
        self.running = assignment.seats

    async def warm(self, assignment: Assignment | None) -> None:
        pass

    def kill(self, rank: int, *, trial: bool = False) -> bool:
        raise AssertionError("nobody asks for that here")

    def fail(self, index: int, reason: str) -> None:
        raise AssertionError("nobody asks for that here")

    def give_up(self, seats: Iterable[AssignedSeat], error: Exception) -> None:
        self.exits |= {seat.rank: Exit(message=str(error)) for seat in seats}
        self.changed()


class Venue:
    """A place to meet for ranks that do not exist."""

    over = False

    async def open(self, generation: int, over: Callable[[], object]) -> Rendezvous:
        return Rendezvous("127.0.0.1", 1)

    def close(self) -> None:
        pass


@asynccontextmanager
async def taking_part(store: MemoryStore, slots: Slots, name: str = HERE) -> AsyncIterator[None]:
    """Have a node take part."""
    listener = Listener(name)
    address = await listener.open("127.0.0.1")
    participant = Participant(
        store,
        Registration(Node(name, 1, name, "rack"), "host", 1, name, address),
        PAIR,
        Policy(),
        slots=slots,
        venue=Venue(),
        timing=TIMING,
    )
    slots.changed = participant.report_due
    running = asyncio.create_task(participant.take_part())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
        await listener.close()


@asynccontextmanager
async def led_by_others() -> AsyncIterator[tuple[MemoryStore, Mirror]]:
    """A store in which somebody who does nothing is the controller, and what stands in it."""
    store = MemoryStore()
    await store.put(KEYS.spec, encode(PAIR))
    await store.put(KEYS.leader, encode(Leader("node-9", "x")))
    async with asyncio.timeout(20), Mirror(store.client(), KEYS.root) as mirror:
        yield store, mirror


async def until(mirror: Mirror, key: str, wanted: Callable[[bytes], bool]) -> None:
    while key not in mirror.items or not wanted(mirror.items[key].value):
        await mirror.changed(None)


def acked(generation: int) -> Callable[[bytes], bool]:
    return lambda value: decode(Ack, value, "").generation == generation


def head(number: int, changed: tuple[str, ...] | None = (HERE,)) -> Put:
    return Put(KEYS.generation, encode(Generation(number, 1, 1, 0, 3, since=number, changed=changed)))


def assigned(generation: int, rank: int | None = 0) -> Put:
    seats = () if rank is None else (AssignedSeat(rank, 0, 0, generation),)
    return Put(KEYS.assign(HERE), encode(Assignment(generation, 0 if seats else None, seats)))


# --- what cannot be applied ------------------------------------------------------------------------------------------


async def test_a_plan_that_its_node_cannot_apply_is_not_acknowledged_and_the_rank_moves_to_a_spare() -> None:
    store = MemoryStore()
    await store.put(KEYS.spec, encode(PAIR))
    stuck, well = Slots(broken=True), Slots()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(20))
        mirror = await stack.enter_async_context(Mirror(store.client(), KEYS.root))
        await stack.enter_async_context(taking_part(store.client(), stuck))
        await stack.enter_async_context(taking_part(store.client(), well, "node-1"))
        await until(mirror, KEYS.ack("node-1"), acked(2))
        assert well.running == (AssignedSeat(rank=0, index=0, local_rank=0, since=2),)
        assert KEYS.ack(HERE) not in mirror.items
        given = decode(Assignment, mirror.items[KEYS.assign(HERE)].value, "")
        assert (given.seats, given.bad) == ((), (0,)), "nor is the node trusted with anything again"


async def test_a_node_that_cannot_follow_where_nothing_changes_for_it_gives_its_ranks_up() -> None:
    async with led_by_others() as (store, mirror):
        await store.txn([], [assigned(1, rank=3), head(1)])
        await store.put(KEYS.rendezvous(1), encode(Rendezvous("127.0.0.1", 1)))
        slots = Slots()
        async with taking_part(store.client(), slots):
            await until(mirror, KEYS.ack(HERE), acked(1))
            slots.broken = True
            await store.txn([], [head(2, changed=())])  # every rank starts again, and nobody has to acknowledge it
            await until(mirror, KEYS.report(HERE), lambda value: 3 in decode(Report, value, "").exits)
            assert decode(Report, mirror.items[KEYS.report(HERE)].value, "").generation == 2
            assert decode(Ack, mirror.items[KEYS.ack(HERE)].value, "").generation == 1


async def test_what_could_not_be_applied_does_not_keep_a_node_from_the_next_plan() -> None:
    async with led_by_others() as (store, mirror):
        await store.txn([], [assigned(1), head(1)])
        slots = Slots(broken=True)
        async with taking_part(store.client(), slots):
            await slots.told.wait()
            slots.broken = False
            await store.txn([], [assigned(2, rank=None), head(2)])
            await until(mirror, KEYS.ack(HERE), acked(2))
            assert slots.heads == [1, 2]


# --- assignments without a plan --------------------------------------------------------------------------------------


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set whenever a node has read its assignment."""
    read, looked = Participant._read, asyncio.Event()

    async def spy(self: Participant) -> tuple[Generation | None, Assignment | None, bool]:
        found = await read(self)
        looked.set()
        return found

    monkeypatch.setattr(Participant, "_read", spy)
    return looked


async def test_an_assignment_counts_only_once_its_plan_is_committed(looked: asyncio.Event) -> None:
    """Where many nodes change, assignments come first. The controller may end in between, and the next plan differ."""
    async with led_by_others() as (store, mirror):
        await store.txn([], [assigned(1), head(1)])
        slots = Slots()
        async with taking_part(store.client(), slots):
            await until(mirror, KEYS.ack(HERE), acked(1))
            await store.txn([], [assigned(2, rank=None)])
            looked.clear()
            await store.txn([], [head(1)])  # the same again, so that it looks
            await looked.wait()
            await store.txn([], [assigned(2)])  # by another controller, after another decision
            await store.txn([], [head(2)])
            await until(mirror, KEYS.ack(HERE), acked(2))
            assert slots.heads == [1, 2]
            assert [seat.since for seat in slots.running] == [2]


async def test_a_node_that_comes_back_runs_nothing_of_a_plan_that_was_never_committed(looked: asyncio.Event) -> None:
    async with led_by_others() as (store, mirror):
        await store.txn([], [assigned(2), head(1)])
        slots = Slots()
        async with taking_part(store.client(), slots):
            await looked.wait()
            await store.txn([], [assigned(2, rank=None), head(2)])
            await until(mirror, KEYS.ack(HERE), acked(2))
            assert (slots.heads, slots.running) == ([2], ())


@pytest.mark.parametrize(
    ("found", "concerned"),
    [
        (None, True),
        (Generation(5, 4, 2, 0, 3, changed=("node-0", "node-1")), True),
        (Generation(5, 4, 2, 0, 3, changed=("node-1",)), False),
        (Generation(5, 4, 2, 0, 3, changed=()), False),
        (Generation(5, 4, 2, 0, 3, changed=None), True),
        (Generation(6, 4, 2, 0, 3, changed=()), True),
        (Generation(4, 4, 2, 0, 3, changed=()), True),
        (Generation(5, 4, 2, 0, 3, changed=None, result=Result(0, "done")), False),
    ],
    ids=["gone", "named", "others", "nobody", "many", "missed one", "the same again", "the end"],
)
def test_which_nodes_read_their_assignment_anew(found: Generation | None, *, concerned: bool) -> None:
    assert _concerns(HERE, found, applied=4) is concerned


# --- joining ---------------------------------------------------------------------------------------------------------


async def test_where_joining_fails_nothing_beside_it_begins() -> None:
    store = MemoryStore()
    begun: list[str] = []

    async def beside() -> None:
        begun.append("it runs")

    async with taking_part(store, Slots()):
        async with asyncio.timeout(20), Mirror(store.client(), KEYS.root) as mirror:
            await until(mirror, KEYS.agent(HERE), bool)
        registered = await store.get(KEYS.agent(HERE))
        assert registered is not None
        first = decode(Registration, registered.value, "")
        second = Registration(first.node, "host", 2, "another", first.address)
        late = Participant(store, second, PAIR, Policy(), slots=Slots(), venue=Venue(), timing=TIMING)
        with pytest.raises(NodeTaken):
            await late.take_part(beside)
    assert begun == []

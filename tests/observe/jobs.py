"""A small job as it stands in a store: two racks of two nodes with two slots each, six ranks and two spares."""

from __future__ import annotations

from dataclasses import replace

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Leader, Registration
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.core.events import Exit, NodeLost, NodesReady, RankFailed, SlotFailed
from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.core.stored import stored
from tlaunch.launcher.store.protocol import Store
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Slot

JOB = "gpt-a1"
KEYS = Keys(JOB)
MACHINE = Machine(tuple(Node(f"node-{i}", 2, rack=f"rack-{i // 2}", domain=f"nvl-{i // 2}") for i in range(4)))
SPEC = JobSpec(JOB, nodes=4, spares=2, mesh=Mesh.parse("dp=3,tp=2"), script="train.py")


def slot(text: str) -> Slot:
    return Slot.parse(text)


START = Plan(
    generation=1,
    mesh=SPEC.mesh,
    seats=tuple(Seat(rank, MACHINE.slots[rank], 1) for rank in range(6)),
    events=(NodesReady(),),
    decisions=("start 6 ranks",),
    reasons=("rack-1 keeps 2 spares",),
)
"""node-0 and node-1 have ranks 0 to 3, node-2 has 4 and 5, node-3 is spare."""

SAID = "\n".join(f"step {step}" for step in range(8))
FAILURE = RankFailed(1, slot("node-0/gpu-1"), Exit(signal=9, output=SAID, host="gb03", ran=12.3))
RESTART = replace(
    START,
    generation=2,
    restarts=1,
    events=(FAILURE,),
    decisions=("restart rank 1 on node-0/gpu-1",),
    reasons=("the slot is healthy",),
)

BROKEN = SlotFailed(slot("node-2/gpu-0"), "XID 79", 4)
SWAP = replace(
    RESTART,
    generation=3,
    seats=tuple(
        replace(seat, slot=slot("node-3/gpu-0"), since=3) if seat.rank == 4 else seat for seat in RESTART.seats
    ),
    bad=((slot("node-2/gpu-0"), "XID 79"),),
    events=(BROKEN,),
    decisions=("swap rank 4 to node-3/gpu-0",),
    reasons=("same rack",),
)

LOST = NodeLost("node-1", "its lease ran out", (2, 3))
END = Plan(
    generation=4,
    mesh=SPEC.mesh,
    seats=(),
    bad=SWAP.bad,
    restarts=1,
    result=Result(1, "4 ranks are fewer than --min-world 6", "Traceback (most recent call last):\nValueError: first"),
    events=(LOST,),
    decisions=("stop",),
    reasons=("no spare is left",),
)


async def fill(store: Store, *plans: Plan, without: tuple[str, ...] = (), keys: Keys = KEYS) -> None:
    """Write the job as its controller and agents would; ``without`` are lost nodes."""
    await store.put(keys.spec, encode(replace(SPEC, job_id=keys.job)))
    for node in MACHINE:
        await store.put(keys.nodes + node.name, encode(node))
        if node.name not in without:
            await store.put(keys.agent(node.name), encode(Registration(node, "localhost", 1, "a", "localhost:1")))
    await store.put(keys.leader, encode(Leader("node-0", "a")))
    for plan in plans:
        await store.put(keys.plan(plan.generation), encode(stored(plan, None)))

"""All that is around the core, as simple as it can be: nodes that obey or fail, a clock that is moved by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.detect import detect
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.core.planner import Outcome, decide
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Scope, Slot


def racks(count: int, nodes: int, slots: int) -> Machine:
    """Return racks r0, r1, ... of nodes r0-n0, r0-n1, ...; each rack is one NVLink domain."""
    return Machine(
        tuple(
            Node(f"r{rack}-n{node}", slots, domain=f"d{rack}", rack=f"r{rack}")
            for rack in range(count)
            for node in range(nodes)
        )
    )


@dataclass
class World:
    """A job on a machine. What happens to it goes into ``cluster``; :meth:`look` does what the controller does."""

    cluster: Cluster
    policy: Policy = field(default_factory=Policy)
    plans: list[Plan] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        machine: Machine,
        mesh: str,
        spares: int = 0,
        *,
        policy: Policy | None = None,
        max_restarts: int = 3,
        swap_scope: Scope = "rack",
        min_world: int = 1,
        start_timeout: float = 300.0,
    ) -> World:
        """Return a job that has not started yet, on a machine all of whose nodes are there."""
        spec = JobSpec(
            job_id="job",
            nodes=len(machine.nodes),
            spares=spares,
            mesh=Mesh.parse(mesh),
            max_restarts=max_restarts,
            swap_scope=swap_scope,
            min_world=min_world,
            start_timeout=start_timeout,
        )
        return cls(Cluster(spec, machine, frozenset(machine.by_name)), policy or Policy())

    @classmethod
    def started(cls, machine: Machine, mesh: str, spares: int = 0, **options: object) -> World:
        """Return a job that runs."""
        world = cls.of(machine, mesh, spares, **options)  # type: ignore[arg-type]
        world.look()
        world.ack()
        return world

    @property
    def plan(self) -> Plan:
        assert self.cluster.plan is not None
        return self.cluster.plan

    @property
    def result(self) -> Result:
        assert self.plan.result is not None
        return self.plan.result

    def seats(self) -> dict[int, Slot]:
        return {seat.rank: seat.slot for seat in self.plan.seats}

    def look(self) -> Outcome:
        """Decide on what has happened, and commit the next plan."""
        outcome = decide(self.cluster, detect(self.cluster), self.policy)
        if outcome.plan is not None:
            self.plans.append(outcome.plan)
            named = set(outcome.plan.nodes)
            nodes = (node for node in self.cluster.machine if node.name in self.cluster.alive or node.name in named)
            self.cluster = replace(
                self.cluster,
                machine=Machine(tuple(nodes)),
                plan=outcome.plan,
                exits={},
                acked=frozenset(),
                planned_at=self.cluster.now,
                waiting_since=None,
                history=tuple(self.plans[:-1]),
            )
        elif outcome.look_again is None:
            self.cluster = replace(self.cluster, waiting_since=None)
        elif self.cluster.waiting_since is None:
            self.cluster = replace(self.cluster, waiting_since=self.cluster.now)
        return outcome

    def ack(self, *nodes: str) -> None:
        """Let these nodes, or all that are alive, have applied the plan."""
        self.cluster = replace(self.cluster, acked=self.cluster.acked | (frozenset(nodes) or self.cluster.alive))

    def advance(self, seconds: float) -> None:
        self.cluster = replace(self.cluster, now=self.cluster.now + seconds)

    def ended(self, rank: int, ended: Exit) -> None:
        """Let the process of a rank end."""
        self.cluster = replace(self.cluster, exits={**self.cluster.exits, rank: ended})

    def crash(self, rank: int, time: float = 1.0, message: str = "RuntimeError: boom") -> None:
        self.ended(rank, Exit(code=1, message=message, traceback=f"Traceback of rank {rank}\n{message}", time=time))

    def crash_all(self, first: int) -> None:
        """Let one rank fail and all others with it, as processes do that lose a peer."""
        for rank in range(self.plan.world_size):
            if rank == first:
                self.crash(rank, time=1.0)
            else:
                self.crash(rank, time=1.0 + 0.001 * (rank + 1), message="RuntimeError: Connection closed by peer")

    def lose(self, *nodes: str) -> None:
        self.cluster = replace(self.cluster, alive=self.cluster.alive - set(nodes))

    def join(self, node: Node) -> None:
        """Let a node register, for the first time or again."""
        others = tuple(other for other in self.cluster.machine if other.name != node.name)
        known = node.name in self.cluster.machine.by_name
        machine = self.cluster.machine if known else Machine((*others, node))
        self.cluster = replace(self.cluster, machine=machine, alive=self.cluster.alive | {node.name})

    def fail(self, slot: Slot, reason: str = "XID 79") -> None:
        """Let the health probe report a slot."""
        self.cluster = replace(
            self.cluster, bad={**self.cluster.bad, slot: reason}, drained=self.cluster.drained - {slot}
        )

    def drain(self, slots: Iterable[Slot], reason: str = "maintenance") -> None:
        """Let an operator ask for these slots; those that are bad already stay that."""
        new = frozenset(slots) - self.cluster.bad.keys()
        self.cluster = replace(
            self.cluster,
            bad={**self.cluster.bad, **dict.fromkeys(new, reason)},
            drained=self.cluster.drained | new,
        )


def two_racks() -> World:
    """Two racks of three nodes with two slots each; dp=4,tp=2 on the first two nodes of each, spares on the third."""
    return World.started(racks(2, 3, 2), "dp=4,tp=2", spares=4)


def moved(before: dict[int, Slot], after: dict[int, Slot]) -> dict[int, Slot]:
    """Return the ranks that are on another slot than before, with their new one."""
    return {rank: slot for rank, slot in after.items() if before.get(rank) != slot}


def recovered(world: World) -> Plan:
    """Look, and expect a plan that goes on."""
    outcome = world.look()
    assert outcome.plan is not None
    assert outcome.plan.result is None
    world.ack()
    return outcome.plan

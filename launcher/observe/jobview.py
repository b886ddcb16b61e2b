"""A job as its keys in the store show it: what ``tlaunch status`` prints and the live view draws. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Leader, Registration
from tlaunch.launcher.control.snapshot import View as Reader
from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.protocol import KeyValue
from tlaunch.topology.model import Machine, Node, Slot

RoleKind = Literal["rank", "spare", "bad", "lost", "awaited", "idle"]


@dataclass(frozen=True, slots=True)
class Role:
    """What a slot is for at present.

    ``awaited``: its node has not registered yet. ``idle``: there is no plan yet, or the job has ended. ``rank`` is also
    given for a lost slot from which the rank has not been moved yet; ``reason`` says why a slot is bad.
    """

    kind: RoleKind
    rank: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class JobView:
    """One job at one moment.

    ``machine``: every node that was asked for, is registered or has ever been. ``history``: the plans that the store
    still holds, oldest first. ``leader``: the node of the controller.
    """

    job_id: str
    spec: JobSpec | None
    machine: Machine
    alive: frozenset[str]
    leader: str | None
    history: tuple[Plan, ...]

    @property
    def plan(self) -> Plan | None:
        """The current plan."""
        return self.history[-1] if self.history else None

    @property
    def generation(self) -> int:
        """The number of the current plan; 0 before the first."""
        return self.plan.generation if self.plan else 0

    @property
    def result(self) -> Result | None:
        """How the job ended; ``None`` while it goes on."""
        return self.plan.result if self.plan else None

    @cached_property
    def roles(self) -> Mapping[Slot, Role]:
        """The role of every slot, in the machine's order."""
        return {slot: self._role(slot) for slot in self.machine.slots}

    def count(self, kind: RoleKind) -> int:
        """Return how many slots have a role of this kind."""
        return sum(role.kind == kind for role in self.roles.values())

    @cached_property
    def _bad(self) -> Mapping[Slot, str]:
        return dict(self.plan.bad) if self.plan else {}

    def _role(self, slot: Slot) -> Role:
        plan = self.plan
        seat = plan.by_slot.get(slot) if plan else None
        rank = seat.rank if seat else None
        if slot.node not in self.alive and self.result is None:  # once the job has ended, agents leave in order
            return Role("lost" if plan else "awaited", rank)
        if slot in self._bad:
            return Role("bad", reason=self._bad[slot])
        if rank is not None:
            return Role("rank", rank)
        return Role("spare" if plan and plan.result is None else "idle")


def read(reader: Reader, asked: Machine | None = None) -> JobView:
    """Build the view of a job.

    ``asked``: the nodes that the job was started for, to show those that have not registered yet. A ``reader`` that is
    kept decodes only what has changed.

    Raises:
        CodecError, NoBase: a record in the store is not what it should be.
    """
    keys = reader.keys
    registered = {name: record.node for name, record in reader.below(Registration, keys.agents)}
    nodes: dict[str, Node] = {node.name: node for node in asked} if asked else {}
    nodes |= dict(reader.below(Node, keys.nodes)) | registered
    leader = reader.one(Leader, keys.leader)
    return JobView(
        job_id=keys.job,
        spec=reader.one(JobSpec, keys.spec),
        machine=Machine(tuple(nodes.values())),
        alive=frozenset(registered),
        leader=leader.node if leader else None,
        history=tuple(reader.plans()),
    )


def from_listing(job_id: str, items: tuple[KeyValue, ...], asked: Machine | None = None) -> JobView:
    """Build the view of a job from a listing of everything below its root."""
    return read(Reader(Keys(job_id), {kv.key: kv for kv in items}), asked)

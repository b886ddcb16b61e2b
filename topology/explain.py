"""One sentence for each choice: log line, reason in the plan and test oracle at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Scope, Slot, distance

SHARED = {
    1: "same node",
    2: "same NVLink domain",
    3: "same rack",
    4: "another rack of the same pod",
    5: "nothing nearer was free",
}
"""What two slots have in common, by their distance."""

REGION: Mapping[Scope, str] = {
    "node": "on the same node",
    "domain": "in the same NVLink domain",
    "rack": "in the same rack",
    "any": "anywhere",
}
"""Where a scope lets a rank go."""


def count(number: int, noun: str) -> str:
    """Write ``1 spare``, ``7 spares``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spares_left(near: Node, by_rack: Mapping[str | None, int]) -> str:
    """Say how many spares are in the rack of ``near``, or in the whole machine where there are no racks."""
    if near.rack is None:
        return f"{count(sum(by_rack.values()), 'spare')} left"
    return f"{count(by_rack.get(near.rack, 0), 'spare')} left in {near.rack}"


def move(machine: Machine, rank: int, old: Slot, new: Slot, by_rack: Mapping[str | None, int]) -> str:
    """Say where a rank goes and why that is near. ``by_rack``: how many spares each rack has afterwards."""
    target = machine.node_of(new)
    shared = SHARED[distance(machine.node_of(old), target)]
    return f"rank {rank}: {old} -> {new}; {shared}; {spares_left(target, by_rack)}"


def split_groups(machine: Machine, mesh: Mesh, seats: Mapping[int, Slot], moves: Mapping[int, Slot]) -> tuple[str, ...]:
    """Say which innermost groups the moves take apart that lay in one NVLink domain before."""
    name, size = mesh.dims[-1]
    lines: list[str] = []
    for group in sorted({rank // size for rank in moves}):
        members = range(group * size, group * size + size)
        before = {machine.node_of(seats[rank]).domain_key for rank in members}
        after = {machine.node_of(moves.get(rank, seats[rank])).domain_key for rank in members}
        if len(before) == 1 < len(after):
            lines.append(f"ranks {ranks(members)} ({name}={size}) lie in {len(after)} NVLink domains now")
    return tuple(lines)


def no_spare(machine: Machine, rank: int, old: Slot, within: Scope) -> str:
    """Say that a rank finds no place."""
    node = machine.node_of(old)
    name = {"node": node.name, "domain": node.domain, "rack": node.rack, "any": None}[within]
    where = f" ({name})" if name else ""
    return f"rank {rank}: {old} has no spare {REGION[within]}{where}"


def ranks(numbers: Iterable[int]) -> str:
    """Write ``0-3,8`` for ``0, 1, 2, 3, 8``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

"""Where ranks go under other launchers: one after the other along some order of the nodes. For comparison."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random

from tlaunch.topology.locality import Locality, locality
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Slot


def host_names(machine: Machine, usable: Collection[int]) -> list[int]:
    """Return the usable slots (by position) with the nodes in alphabetical order, as most launchers sort them."""
    return _slots(machine, sorted(range(len(machine.nodes)), key=lambda node: machine.nodes[node].name), usable)


def arrival(machine: Machine, usable: Collection[int], seed: int = 0) -> list[int]:
    """Return the usable slots with the nodes in the order of their arrival at a rendezvous, which is any."""
    nodes = list(range(len(machine.nodes)))
    Random(seed).shuffle(nodes)  # noqa: S311  the same on every run, which is the point
    return _slots(machine, nodes, usable)


def shuffled(machine: Machine, usable: Collection[int], seed: int = 0) -> list[int]:
    """Return the usable slots in random order: what no order at all is like."""
    slots = _slots(machine, range(len(machine.nodes)), usable)
    Random(seed).shuffle(slots)  # noqa: S311  as above
    return slots


def slurm_blocks(machine: Machine, usable: Collection[int], segment: int | None = None) -> list[int]:
    """Return the usable slots as Slurm's topology/block with block distribution has them: domain by domain.

    ``segment``: only so many nodes of each domain are taken, as ``--segment`` does, as far as that is possible.
    """
    domains: dict[int, list[int]] = {}
    for node, domain in enumerate(machine.regions["domain"]):
        domains.setdefault(domain, []).append(node)
    first = [node for nodes in domains.values() for node in nodes[:segment]]
    rest = [node for nodes in domains.values() for node in nodes[segment:]] if segment else []
    return _slots(machine, [*first, *rest], usable)


def compared(machine: Machine, mesh: Mesh, seats: Mapping[int, Slot], usable: Iterable[Slot]) -> dict[str, Locality]:
    """Judge a placement beside the orders of others, by the name of the order; the placement itself is ``tlaunch``."""
    slots = {machine.position[slot] for slot in usable}
    orders = {
        "host names": host_names(machine, slots),
        "arrival": arrival(machine, slots),
        "random": shuffled(machine, slots),
        "Slurm blocks": slurm_blocks(machine, slots),
    }
    found = {name: locality(machine, mesh, order[: mesh.size]) for name, order in orders.items()}
    return {"tlaunch": locality(machine, mesh, seats), **found}


def _slots(machine: Machine, nodes: Iterable[int], usable: Collection[int]) -> list[int]:
    starts: Sequence[int] = machine.starts
    return [slot for node in nodes for slot in range(starts[node], starts[node + 1]) if slot in usable]

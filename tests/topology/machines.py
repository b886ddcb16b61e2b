"""Machines for the tests: the NVL72 rack, and small ones drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import strategies as st

from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Slot


def nvl72(racks: int = 1) -> Machine:
    """Return racks of 18 nodes with 4 GPUs each, one NVLink domain for each rack."""
    names = [f"rack-{index // 18:02d}" for index in range(18 * racks)]
    return Machine(tuple(Node(f"node-{index:02d}", 4, domain=rack, rack=rack) for index, rack in enumerate(names)))


def hgx(nodes: int, per_rack: int = 4) -> Machine:
    """Return nodes with 8 GPUs each, one NVLink domain for each node."""
    return Machine(
        tuple(Node(f"node-{i:02d}", 8, domain=f"node-{i:02d}", rack=f"rack-{i // per_rack:02d}") for i in range(nodes))
    )


def slots(*names: str) -> list[Slot]:
    return [Slot.parse(name) for name in names]


def written(seats: Iterable[Slot]) -> list[str]:
    return [str(slot) for slot in seats]


def on_node(seats: Mapping[int, Slot], node: str) -> dict[int, Slot]:
    return {rank: slot for rank, slot in seats.items() if slot.node == node}


@st.composite
def trees(draw: st.DrawFn, max_slots: int = 14) -> Machine:
    """Draw a proper tree: pods hold racks, racks hold domains or single nodes. Some levels may be absent."""
    nodes: list[Node] = []
    total = draw(st.integers(1, max_slots))
    pods, racked = draw(st.booleans()), draw(st.booleans())
    rack = domain = 0
    linked = True
    while total:
        size = draw(st.integers(1, min(4, total)))
        total -= size
        step = draw(st.sampled_from(["same domain", "next domain", "next rack"]))
        if nodes and step != "same domain":
            domain += 1
            linked = draw(st.booleans())
            rack += step == "next rack"
        nodes.append(
            Node(
                f"n{len(nodes)}",
                size,
                domain=f"d{domain}" if linked else None,
                rack=f"r{rack}" if racked else None,
                pod=f"p{rack // 2}" if pods else None,
            )
        )
    return Machine(tuple(nodes))


@st.composite
def tangles(draw: st.DrawFn) -> Machine:
    """Draw a machine whose levels need not form a tree, in any order, as careless discovery might report it."""
    level = st.sampled_from([None, "a", "b", "c"])
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return Machine(tuple(Node(f"n{i}", size, draw(level), draw(level), draw(level)) for i, size in enumerate(sizes)))


@st.composite
def meshes(draw: st.DrawFn, max_size: int) -> Mesh:
    """Draw a mesh of at most ``max_size`` ranks, with ``dp`` anywhere or nowhere."""
    names = draw(st.permutations(["dp", "pp", "tp"]))[: draw(st.integers(1, 3))]
    room = max_size
    dims: list[tuple[str, int]] = []
    for name in names:
        size = draw(st.integers(1, min(room, 6)))
        room //= size
        dims.append((name, size))
    return Mesh(tuple(dims))

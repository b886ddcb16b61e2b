"""Edges counted one by one, the score, and the lower bound against every placement there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.machines import meshes, nvl72, trees
from tlaunch.topology.layout import Layout
from tlaunch.topology.locality import WIDE, least, locality
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node
from tlaunch.topology.orders import arrival, compared, host_names, shuffled, slurm_blocks
from tlaunch.topology.placement import place
from tlaunch.topology.spares import SpareRequest


def edges(mesh: Mesh, dim: int) -> tuple[set[frozenset[int]], set[frozenset[int]]]:
    """Every ring edge and every pair of a dimension, straight from the definition."""
    size, stride = mesh.dims[dim][1], mesh.strides[dim]
    ring, pairs = set[frozenset[int]](), set[frozenset[int]]()
    for rank in range(mesh.size):
        at = rank // stride % size
        ring.add(frozenset({rank, rank + ((at + 1) % size - at) * stride}))
        pairs |= {frozenset({rank, rank + (other - at) * stride}) for other in range(size)}
    return {edge for edge in ring if len(edge) == 2}, {edge for edge in pairs if len(edge) == 2}


@given(trees(max_slots=24), st.data())
def test_edges_are_counted_as_defined(machine: Machine, data: st.DataObject) -> None:
    mesh = data.draw(meshes(len(machine.slots)))
    seats = data.draw(st.permutations(range(len(machine.slots))))[: mesh.size]
    found = locality(machine, mesh, seats)
    for dim, traffic in enumerate(found.dims):
        for counted, all_edges in zip((traffic.ring, traffic.pairs), edges(mesh, dim), strict=True):
            assert counted.total == len(all_edges)
            for level in WIDE:
                home = [machine.regions[level][machine.node_at[position]] for position in seats]
                assert counted.leaving[level] == sum(len({home[rank] for rank in edge}) > 1 for edge in all_edges)


@given(trees(max_slots=24), st.data())
def test_the_score_is_between_its_ends(machine: Machine, data: st.DataObject) -> None:
    mesh = data.draw(meshes(len(machine.slots)))
    placement = place(machine, mesh, 0)
    found = locality(machine, mesh, placement.seats)
    assert found == locality(machine, mesh, [machine.position[placement.seats[rank]] for rank in range(mesh.size)])
    assert 0 <= found.score <= 100
    assert (found.score == 100) == (found.leaving("domain") == 0)


def test_the_score_of_known_placements() -> None:
    far = Machine(tuple(Node(f"n{i}", 1, rack=f"r{i}", pod=f"p{i}") for i in range(4)))
    assert locality(far, Mesh.parse("dp=2,tp=2"), range(4)).score == 0
    near = Machine((Node("a", 4),))
    assert locality(near, Mesh.parse("dp=2,tp=2"), range(4)).score == 100
    racks = Machine((Node("a", 2, rack="r"), Node("b", 2, rack="r")))
    # dp counts a quarter of tp, and leaving a domain is a quarter of leaving a pod: 1 - (1/4 * 1/4) / (1 + 1/4).
    assert locality(racks, Mesh.parse("dp=2,tp=2"), range(4)).score == pytest.approx(95)


def assignments(ranks: int, regions: int, seats: int) -> Iterator[tuple[int, ...]]:
    """Every way to put ranks into regions that are alike."""

    def fill(free: frozenset[int], home: int) -> Iterator[dict[int, int]]:
        if not free:
            yield {}
            return
        if home == regions:
            return
        first, *others = sorted(free)
        for size in range(min(seats, len(free))):
            for more in combinations(others, size):
                here = {first, *more}
                for rest in fill(free - here, home + 1):
                    yield rest | dict.fromkeys(here, home)

    for found in fill(frozenset(range(ranks)), 0):
        yield tuple(found[rank] for rank in range(ranks))


def leaving(mesh: Mesh, home: Sequence[int], pattern: int) -> tuple[int, ...]:
    """Edges that leave a region, by dimension in the order of seating."""
    split = [
        [len({home[rank] for rank in edge}) > 1 for edge in edges(mesh, dim)[pattern]] for dim in Layout.of(mesh).order
    ]
    return tuple(map(sum, split))


UNIFORM = [
    ("dp=2,tp=4", 4, 2),
    ("dp=2,tp=4", 2, 4),
    ("dp=4,tp=2", 4, 2),
    ("dp=2,pp=2,tp=2", 4, 2),
    ("dp=2,pp=2,tp=2", 2, 4),
    ("dp=2@rack,pp=2,tp=2", 4, 2),
    ("dp=3,tp=3", 3, 3),
    ("dp=3,tp=2", 4, 2),
    ("dp=4,tp=2", 5, 2),
    ("tp=8", 4, 3),
    ("dp=2,tp=3", 4, 2),
    ("tp=5", 2, 3),
]


@pytest.mark.parametrize(("text", "seats", "racks"), UNIFORM)
@pytest.mark.parametrize("pattern", [0, 1], ids=["ring", "pairs"])
def test_the_bound_holds_for_every_placement_and_is_reached(text: str, seats: int, racks: int, pattern: int) -> None:
    mesh = Mesh.parse(text)
    bound = least(mesh, seats, racks)
    order = [mesh.dims[index][0] for index in Layout.of(mesh).order]
    best = min(leaving(mesh, home, pattern) for home in assignments(mesh.size, racks, seats))
    for name, fewest in zip(order, best, strict=True):
        assert bound[name][pattern] <= fewest
        if bound[name][pattern] < fewest:
            break  # the bounds of the others hold only beside this one's
    machine = Machine(tuple(Node(f"n{i}", seats, f"d{i}", f"d{i}") for i in range(racks)))
    home = [machine.node_index[place(machine, mesh, 0).seats[rank].node] for rank in range(mesh.size)]
    assert leaving(mesh, home, pattern) == best


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.data())
def test_uniform_machines_reach_the_bound(pp: int, dp: int, tp: int, data: st.DataObject) -> None:
    """Racks whose seats are a block of the mesh, or an equal piece of one, with spares besides."""
    mesh = Mesh((("pp", pp), ("dp", dp), ("tp", tp)))
    blocks = [*(d for d in range(1, tp + 1) if tp % d == 0), *(tp * d for d in range(1, dp + 1) if dp % d == 0)]
    seats = data.draw(st.sampled_from([*blocks, *(tp * dp * d for d in range(1, pp + 1) if pp % d == 0)]))
    racks = mesh.size // seats + data.draw(st.integers(0, 2))
    spares = data.draw(st.integers(0, 2)) if seats % tp == 0 else 0  # else groups rather take the spares than be split
    machine = Machine(tuple(Node(f"n{i}", seats + spares, f"d{i}", f"d{i}") for i in range(racks)))
    found = locality(machine, mesh, place(machine, mesh, SpareRequest(spares, per="rack")).seats)
    bound = least(mesh, seats, racks)
    assert {dim.name: (dim.ring.leaving["rack"], dim.pairs.leaving["rack"]) for dim in found.dims} == bound


def test_orders_of_others() -> None:
    machine = Machine((Node("n10", 2, "b"), Node("n9", 1, "a"), Node("n1", 1, "b")))
    assert host_names(machine, range(4)) == [3, 0, 1, 2]
    assert slurm_blocks(machine, range(4)) == [0, 1, 3, 2]
    assert slurm_blocks(machine, range(4), 1) == [0, 1, 2, 3]
    assert host_names(machine, {0, 3}) == [3, 0]
    assert sorted(arrival(machine, range(4), 1)) == sorted(shuffled(machine, range(4), 1)) == [0, 1, 2, 3]
    assert arrival(nvl72(), range(72), 1) == arrival(nvl72(), range(72), 1) != arrival(nvl72(), range(72), 2)


def test_a_placement_beside_the_orders_of_others() -> None:
    machine, mesh = nvl72(4), Mesh.parse("dp=4,pp=8,tp=8")
    found = compared(machine, mesh, place(machine, mesh, SpareRequest.parse("8/rack")).seats, machine.slots)
    assert list(found) == ["tlaunch", "host names", "arrival", "random", "Slurm blocks"]
    assert found["tlaunch"].score == max(each.score for each in found.values())
    assert found["tlaunch"].dims[1].ring.leaving["rack"] == 0
    assert found["Slurm blocks"].dims[1].ring.leaving["rack"] > 0

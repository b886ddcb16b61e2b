from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.machines import meshes
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import TopologyError


def test_a_mesh_is_written_and_read_back() -> None:
    mesh = Mesh.parse("dp=8, pp=2,tp=4")
    assert mesh.dims == (("dp", 8), ("pp", 2), ("tp", 4))
    assert str(mesh) == "dp=8,pp=2,tp=4"
    assert (mesh.size, mesh.replicas, mesh.replica_size, mesh.inner) == (64, 8, 8, 4)


def test_a_flat_mesh_has_a_replica_for_each_rank() -> None:
    mesh = Mesh.flat(3)
    assert str(mesh) == "dp=3"
    assert (mesh.replicas, mesh.replica_size, mesh.inner) == (3, 1, 3)


def test_without_dp_the_job_is_one_replica() -> None:
    mesh = Mesh.parse("pp=2,tp=2")
    assert (mesh.replicas, mesh.replica_size) == (1, 4)
    assert mesh.ranks_of(0) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is not NAME=SIZE, such as dp=8"),
        ("dp", "'dp' is not NAME=SIZE, such as dp=8"),
        ("dp=", "'dp=' is not NAME=SIZE, such as dp=8"),
        ("dp=0", "'dp=0' is not NAME=SIZE, such as dp=8"),
        ("dp=-1", "'dp=-1' is not NAME=SIZE, such as dp=8"),
        ("dp=²", "'dp=²' is not NAME=SIZE, such as dp=8"),
        ("dp=2,,tp=2", "'' is not NAME=SIZE, such as dp=8"),
        ("2=dp", "'2=dp' is not NAME=SIZE, such as dp=8"),
        ("dp=2,dp=4", "the dimension 'dp' stands twice"),
    ],
)
def test_what_is_no_mesh_is_refused(text: str, problem: str) -> None:
    with pytest.raises(TopologyError) as error:
        Mesh.parse(text)
    assert str(error.value) == f"mesh {text!r}: {problem}"


@given(meshes(64))
def test_replicas_are_the_ranks_with_one_dp_coordinate(mesh: Mesh) -> None:
    coordinates = list(product(*(range(size) for _, size in mesh.dims)))  # the last dimension varies fastest
    names = [name for name, _ in mesh.dims]
    replicas = [place[names.index("dp")] if "dp" in names else 0 for place in coordinates]
    assert [mesh.replica_of(rank) for rank in range(mesh.size)] == replicas
    for replica in range(mesh.replicas):
        assert mesh.ranks_of(replica) == tuple(rank for rank, other in enumerate(replicas) if other == replica)


@given(meshes(64), st.integers(1, 9))
def test_resizing_changes_the_number_of_replicas_only(mesh: Mesh, replicas: int) -> None:
    other = mesh.resized(replicas)
    assert other.replica_size == mesh.replica_size
    assert other.replicas == (replicas if "dp" in dict(mesh.dims) else 1)

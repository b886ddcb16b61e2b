"""The parallel dimensions of a job, for example ``dp=8,pp=2,tp=4``; the last one varies fastest."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tlaunch.topology.model import TopologyError

REPLICA_DIMENSION = "dp"


@dataclass(frozen=True, slots=True)
class Mesh:
    """Named dimensions, slowest first. A mesh without ``dp`` has one replica: the whole job."""

    dims: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> Mesh:
        """Read ``name=size,...``."""
        dims: list[tuple[str, int]] = []
        for part in text.split(","):
            name, sep, size = (piece.strip() for piece in part.partition("="))
            if not sep or not name.isidentifier() or not size.isascii() or not size.isdigit() or int(size) < 1:
                raise TopologyError(f"mesh {text!r}: {part.strip()!r} is not NAME=SIZE, such as dp=8")
            if name in dict(dims):
                raise TopologyError(f"mesh {text!r}: the dimension {name!r} stands twice")
            dims.append((name, int(size)))
        return cls(tuple(dims))

    @classmethod
    def flat(cls, world_size: int) -> Mesh:
        """Return the mesh of plain data parallelism."""
        return cls(((REPLICA_DIMENSION, world_size),))

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.dims)

    @property
    def size(self) -> int:
        """The number of ranks."""
        return prod(size for _, size in self.dims)

    @property
    def replicas(self) -> int:
        return dict(self.dims).get(REPLICA_DIMENSION, 1)

    @property
    def replica_size(self) -> int:
        """The ranks of one data-parallel replica."""
        return self.size // self.replicas

    @property
    def inner(self) -> int:
        """The size of the innermost dimension, whose groups are consecutive ranks."""
        return self.dims[-1][1]

    def resized(self, replicas: int) -> Mesh:
        """Return the same mesh with another number of replicas."""
        return Mesh(tuple((name, replicas if name == REPLICA_DIMENSION else size) for name, size in self.dims))

    def _stride(self) -> tuple[int, int]:
        """Return (ranks between two neighbours along dp, replicas)."""
        stride = 1
        for name, size in reversed(self.dims):
            if name == REPLICA_DIMENSION:
                return stride, size
            stride *= size
        return stride, 1

    def replica_of(self, rank: int) -> int:
        """Tell which replica a rank belongs to."""
        stride, replicas = self._stride()
        return rank // stride % replicas

    def ranks_of(self, replica: int) -> tuple[int, ...]:
        """Return the ranks of one replica, in order."""
        return tuple(rank for rank in range(self.size) if self.replica_of(rank) == replica)

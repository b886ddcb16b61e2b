"""The parallel dimensions of a job, for example ``dp=8,pp=2,tp=4``; the last one varies fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import cast

from tlaunch.topology.model import LEVELS, Level, TopologyError

REPLICA_DIMENSION = "dp"
_DIGITS = 9
"""The longest size of a dimension; more is no number of ranks."""


@dataclass(frozen=True)
class Mesh:
    """Named dimensions, slowest first. A mesh without ``dp`` has one replica: the whole job.

    ``within``: the level that the groups of a dimension should stay within, for those dimensions that name one, in the
    order of ``dims``.
    """

    dims: tuple[tuple[str, int], ...]
    within: tuple[tuple[str, Level], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mesh:
        """Read ``name=size,...``; a size may be followed by the level to stay within, as in ``tp=8@domain``."""
        dims: list[tuple[str, int]] = []
        within: list[tuple[str, Level]] = []
        for part in text.split(","):
            name, sep, value = (piece.strip() for piece in part.partition("="))
            size, at, level = (piece.strip() for piece in value.partition("@"))
            number = int(size) if size.isascii() and size.isdigit() and len(size) <= _DIGITS else 0
            if not sep or not name.isidentifier() or number < 1:
                raise TopologyError(f"mesh {_shown(text)}: {_shown(part.strip())} is not NAME=SIZE, such as dp=8")
            if name in dict(dims):
                raise TopologyError(f"mesh {_shown(text)}: the dimension {_shown(name)} stands twice")
            if at and level not in LEVELS:
                raise TopologyError(
                    f"mesh {_shown(text)}: {_shown(part.strip())}: {_shown(level)} is no level of the machine; "
                    f"expected one of {', '.join(LEVELS)}, as in tp=8@domain"
                )
            dims.append((name, number))
            if at:
                within.append((name, cast("Level", level)))
        return cls(tuple(dims), tuple(within))

    @classmethod
    def flat(cls, world_size: int) -> Mesh:
        """Return the mesh of plain data parallelism."""
        return cls(((REPLICA_DIMENSION, world_size),))

    def __str__(self) -> str:
        levels = {name: f"@{level}" for name, level in self.within}
        return ",".join(f"{name}={size}{levels.get(name, '')}" for name, size in self.dims)

    @cached_property
    def size(self) -> int:
        """The number of ranks."""
        return prod(size for _, size in self.dims)

    @cached_property
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

    @property
    def grouped(self) -> bool:
        """Whether innermost groups are parts of replicas; in plain data parallelism the one group is the whole job."""
        return self.dims[-1][0] != REPLICA_DIMENSION and self.inner > 1

    def group_of(self, rank: int) -> range:
        """Return the ranks of the innermost group that a rank belongs to."""
        first = rank // self.inner * self.inner
        return range(first, first + self.inner)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """For each dimension, how many ranks lie between two neighbours along it."""
        return tuple(prod(size for _, size in self.dims[index + 1 :]) for index in range(len(self.dims)))

    def resized(self, replicas: int) -> Mesh:
        """Return the same mesh with another number of replicas."""
        dims = tuple((name, replicas if name == REPLICA_DIMENSION else size) for name, size in self.dims)
        return Mesh(dims, self.within)

    @cached_property
    def _stride(self) -> tuple[int, int]:
        """(ranks between two neighbours along dp, replicas)."""
        for (name, size), stride in zip(self.dims, self.strides, strict=True):
            if name == REPLICA_DIMENSION:
                return stride, size
        return self.size, 1

    def replica_of(self, rank: int) -> int:
        """Tell which replica a rank belongs to."""
        stride, replicas = self._stride
        return rank // stride % replicas

    def runs_of(self, replica: int) -> Iterator[range]:
        """Yield the ranks of one replica, in runs of consecutive ones."""
        stride, replicas = self._stride
        for first in range(replica * stride, self.size, stride * replicas):
            yield range(first, first + stride)

    def ranks_of(self, replica: int) -> tuple[int, ...]:
        """Return the ranks of one replica, in order."""
        return tuple(rank for run in self.runs_of(replica) for rank in run)


def _shown(text: str) -> str:
    """Quote what a user wrote, on one line and not too long."""
    return repr(text if len(text) <= 60 else text[:60] + "...")

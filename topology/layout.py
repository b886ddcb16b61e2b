"""In which order the ranks of a mesh are seated, and what has to stay together.

Seats are handed out along a *sequence* of the ranks in which one dimension varies fastest, then the next, and so on.
That is the mesh's own order, except that dimensions which must stay within a level go before those that need not,
narrow levels first. So whatever has to stay together is one block of consecutive places in the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import LEVELS

DOMAIN, ANYWHERE = LEVELS.index("domain"), len(LEVELS)


@dataclass(frozen=True, slots=True)
class Need:
    """Each block of ``size`` consecutive places has to lie in one region of a level (its index in ``LEVELS``)."""

    size: int
    level: int


@dataclass(frozen=True, slots=True)
class Layout:
    """``order``: the dimensions (their index in the mesh), fastest first; ``blocks``: the sizes of their blocks.

    ``needs``: what has to stay together, from the smallest block and narrowest level to the largest and widest.
    """

    mesh: Mesh
    order: tuple[int, ...]
    blocks: tuple[int, ...]
    needs: tuple[Need, ...]

    @classmethod
    def of(cls, mesh: Mesh) -> Layout:
        """Lay out a mesh. Its last dimension should stay within an NVLink domain unless it names another level."""
        asked = {name: LEVELS.index(level) for name, level in mesh.within}
        last = len(mesh.dims) - 1

        def tightness(index: int) -> tuple[float, int]:
            # The last one comes after those that say themselves that they must be in a domain.
            return asked.get(mesh.dims[index][0], DOMAIN + 0.5 if index == last else ANYWHERE), -index

        order = tuple(sorted(range(last + 1), key=tightness))
        blocks = tuple(accumulate((mesh.dims[index][1] for index in order), mul))
        needs: list[Need] = []
        for index, block in zip(order, blocks, strict=True):
            level = int(tightness(index)[0])
            if level == ANYWHERE:
                break
            if needs and needs[-1].level == level and mesh.dims[index][0] in asked:
                needs[-1] = Need(block, level)  # both were asked for, and only both together are one block
            else:
                needs.append(Need(block, level))
        return cls(mesh, order, blocks, tuple(needs))

    def ranks(self) -> range | list[int]:
        """Return the rank at each place of the sequence."""
        if self.order == tuple(reversed(range(len(self.order)))):
            return range(self.mesh.size)
        ranks = [0]
        for index in self.order:
            stride = self.mesh.strides[index]
            ranks = [first + rank for first in range(0, self.mesh.dims[index][1] * stride, stride) for rank in ranks]
        return ranks

    def relaxations(self) -> list[tuple[Need, ...]]:
        """Return the needs as they are, then less and less of them: the largest blocks give way first.

        A block that cannot stay within its level should at least stay within the next wider one.
        """
        steps: list[tuple[Need, ...]] = []
        for count in range(len(self.needs), 0, -1):
            *inner, outer = self.needs[:count]
            steps += [(*inner, Need(outer.size, level)) for level in range(outer.level, ANYWHERE)]
        return [*steps, ()]

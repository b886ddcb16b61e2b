"""The corpus: the source files of the Python standard library, which every machine that runs this has.

The files are never loaded. A corpus is the list of their names and sizes, and a sample is one short read, so that
64 ranks that start on the same machine at once are ready within milliseconds.
"""

from __future__ import annotations

import os
import sysconfig
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor


def share(step: int, batch: int, rank: int, world_size: int) -> range:
    """The sample numbers of one rank in one step (counted from 0).

    Step ``s`` consists of the samples ``s * batch`` to ``(s + 1) * batch - 1`` for every world size; the ranks take
    turns. Shares differ by one sample when ``world_size`` does not divide ``batch``, and are empty on the ranks beyond.
    """
    return range(step * batch + rank, (step + 1) * batch, world_size)


class Corpus:
    """Windows of ``block + 1`` bytes over a list of files, visited in another random order in each epoch.

    Which bytes a sample number stands for depends on the files, on ``block`` and on ``seed``, and on nothing else.
    """

    def __init__(self, files: Sequence[Path], block: int, seed: int = 0) -> None:
        """Raise ``ValueError`` when no file is long enough for a single window."""
        self.block = block
        self.seed = seed
        counts = [(path, (path.stat().st_size - 1) // block) for path in files]
        self._files = [path for path, count in counts if count > 0]
        self._ends = list(accumulate(count for _, count in counts if count > 0))
        if not self._files:
            raise ValueError(f"no file of more than {block} bytes among the {len(files)} files of the corpus")
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @classmethod
    def standard_library(cls, block: int, seed: int = 0) -> Corpus:
        """The modules directly in the standard library's folder (about 160 files, 4 MB), sorted by name."""
        folder = Path(sysconfig.get_path("stdlib"))
        return cls(sorted(folder.glob("*.py")), block, seed)

    def __len__(self) -> int:
        """The number of windows in one epoch."""
        return self._ends[-1]

    def batch(self, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the given sample numbers: two int64 tensors [len(samples), block]."""
        data = bytearray().join(self._windows(samples))
        # frombuffer refuses an empty buffer, and a rank beyond the batch has nothing to read.
        flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        windows = flat.view(len(samples), self.block + 1).long()
        return windows[:, :-1], windows[:, 1:]

    def window(self, sample: int) -> tuple[Path, int]:
        """The file and the offset in bytes at which a sample starts."""
        epoch, position = divmod(sample, len(self))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._order, self._epoch = torch.randperm(len(self), generator=generator), epoch
        number = int(self._order[position])
        file = bisect_right(self._ends, number)
        first = self._ends[file - 1] if file else 0
        return self._files[file], (number - first) * self.block

    def _windows(self, samples: Sequence[int]) -> Iterator[bytes]:
        for sample in samples:
            path, offset = self.window(sample)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield os.pread(descriptor, self.block + 1, offset)
            finally:
                os.close(descriptor)

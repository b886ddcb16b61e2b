"""The checkpointer: what a training script holds.

with Checkpointer("/data/run7", every=100) as checkpointer:
state = {"model": model, "optimizer": optimizer, "step": 0}
start = checkpointer.restore(state) or 0
for step in range(start + 1, steps + 1):
...
optimizer.step()
checkpointer.save(step, state)
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
from collections.abc import Mapping
from concurrent.futures import Future
from importlib.metadata import version
from types import TracebackType
from typing import Literal, Self

import torch

from tlaunch.checkpoint import random_state
from tlaunch.checkpoint.arena import aligned
from tlaunch.checkpoint.capture import Capture, StepGuard, Target
from tlaunch.checkpoint.catalog import Keep
from tlaunch.checkpoint.commit import clean, take_generation
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.flat import Flat, State, expand, flatten, steady_storages
from tlaunch.checkpoint.layout import RESERVED
from tlaunch.checkpoint.link import SOCKET, SaverHome
from tlaunch.checkpoint.manifest import Manifest
from tlaunch.checkpoint.places import open_files
from tlaunch.checkpoint.plan import Place, Plan
from tlaunch.checkpoint.ranks import Node, Ranks
from tlaunch.checkpoint.restoring import restore
from tlaunch.checkpoint.saving import Saving
from tlaunch.checkpoint.slices import Inventory, Share, held, inventory, share_out
from tlaunch.checkpoint.values import Json, to_json

log = logging.getLogger(__name__)

PLAN_SPACE = 1 << 20
"""Bytes at least that an arena has for the plan, beyond the tensors."""


class Checkpointer:
    """Saves and restores the training state of all ranks of the default process group below ``path``.

    Args:
        path: a folder that all ranks see, or a URL. It is made when it is not there.
        every: ``save`` does nothing for steps that are not multiples of this.
        keep: which checkpoints are kept when a new one is committed.
        busy: what ``save`` does while both of its buffers are still being written: ``"wait"`` until one is free, or
            ``"skip"`` this step, and log it. All ranks must be given the same.
        mesh: sizes of the training mesh's dimensions, only for people who look at the checkpoint.

    Memory: twice the bytes that this rank writes, in shared memory (``capacity`` tells how much that is). It is taken
    at the first save, which is slower than the later ones.

    Making one is collective: every rank makes one at the same place. From then on, whoever made one for the same path
    before can commit nothing more.

    Raises:
        Unusable: the arguments make no sense.
        CheckpointError: the path cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: int = 1,
        keep: Keep | None = None,
        busy: Literal["wait", "skip"] = "wait",
        mesh: Mapping[str, int] | None = None,
    ) -> None:
        if every < 1:
            raise Unusable(f"every: expected at least 1, got {every}")
        if busy not in ("wait", "skip"):
            raise Unusable(f"busy: expected 'wait' or 'skip', got {busy!r}")
        self._files = open_files(path)
        self._every, self._busy, self._mesh = every, busy, dict(mesh or {})
        self._ranks = Ranks()
        self.generation: int = self._ranks.from_first(self._take_over)
        """The number of this run among those that have written here."""
        self._home: SaverHome | None = None
        self._socket = self._find_saver()
        keep = keep or Keep()
        first = self._ranks.rank == 0
        self._saving = Saving(
            self._started,
            {"do": "open", "root": self._files.root, "last": keep.last if first else 0, "every": keep.every},
        )
        self._guard = StepGuard()
        self._inventory: Inventory | None = None
        self._share = Share(frozenset(), frozenset())
        self._closed = False

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, step: int, state: State) -> Future[bool]:
        """Begin to save the state as that after ``step``, and return at once.

        The future is true once the checkpoint of all ranks is committed, false when the step is not due or was
        skipped; it raises ``CheckpointError`` when saving failed. Until then the training may go on: the next
        ``optimizer.step()`` waits for what is left of the copy. Whoever changes parameters otherwise calls
        ``wait_captured`` first.

        Raises:
            Unusable: something in the state has no representation; its name is in the message. Nothing is saved.
        """
        if self._closed:
            raise CheckpointError("this checkpointer is closed")
        if step < 0:
            raise Unusable(f"step: expected a number that is not negative, got {step}")
        if step % self._every:
            return _resolved(result=False)
        self._guard.wait()  # a capture of the step before, where no optimizer has waited for it
        flat = self._flat(state)
        values = {name: to_json(value, name) for name, value in flat.values.items()}
        found = inventory(flat)
        if found != self._inventory:
            self._agree(found)
        targets, places, size = self._layout(flat)
        plan = Plan(self._part(step, {name: values[name] for name in self._share.values}), places).to_bytes()
        self._saving.resize(size + max(PLAN_SPACE, len(plan)))
        buffer = self._saving.free_buffer(wait=self._busy == "wait")
        if buffer is None:
            log.warning("step %d is not saved: the one before is still being written", step)
            return _resolved(result=False)
        future = self._saving.expect(step)
        buffer.arena.view[size : size + len(plan)] = plan
        later = [target for name, target in targets if name in flat.steady]
        capture = Capture(buffer.arena, [target for name, target in targets if name not in flat.steady], later)
        self._guard.watch(capture)
        self._saving.hand_over(step, buffer, capture, size, len(plan))
        return future

    def wait_captured(self) -> None:
        """Wait until the tensors of the last ``save`` may be changed. ``optimizer.step()`` does this by itself."""
        self._guard.wait()

    def wait(self) -> None:
        """Wait until every step that was saved is committed, or has failed: the futures tell which."""
        self._saving.wait()

    def close(self) -> None:
        """Wait for what is being saved, and let go of the saver. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._guard.close()
        self._saving.wait()
        self._saving.close()
        if self._home is not None:
            self._home.close()
        self._ranks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- restoring -------------------------------------------------------------------------------------------------

    def restore(self, state: State, *, step: int | None = None, strict: bool = True) -> int | None:
        """Load the newest checkpoint, or that of ``step``, into the objects of ``state``, and return its step.

        Returns ``None`` when nothing has been saved yet. The checkpoint may come from any number of ranks and any
        mesh; each rank reads only the blocks that hold what it needs. Random number generators go on where those of
        the same rank were, when there are as many ranks as then. Collective.

        With ``strict=False`` names that only the checkpoint or only the state has are left alone.

        Raises:
            Unusable: names, shapes or types differ; they are listed. Nothing was changed.
            Damaged: bytes of the checkpoint have changed; the file is named. Nothing was changed.
        """
        return restore(self._files, self._ranks, state, step=step, strict=strict)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _take_over(self) -> int:
        owner: dict[str, Json] = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
        generation = take_generation(self._files, owner)
        for name in clean(self._files, generation):
            log.info("removed %s, which an earlier writer has left", name)
        return generation

    def _find_saver(self) -> str:
        """Return the socket of this node's saver: the agent's, or one that the first rank of the node starts."""
        given = os.environ.get(SOCKET)
        if given:
            return given
        homes = self._ranks.everybody(Node.here())
        first = homes.index(homes[self._ranks.rank])
        if first == self._ranks.rank:
            self._home = SaverHome()
        return self._ranks.everybody("" if self._home is None else self._home.path)[first]

    def _started(self) -> str:
        if self._home is not None:
            self._home.start()
        return self._socket

    def _flat(self, state: State) -> Flat:
        tree = expand(state)
        taken = next((name for name in RESERVED if name in tree), None)
        if taken is not None:
            raise Unusable(f"{taken}: this name is taken; expected another one in the state")
        tree["ranks"] = {str(self._ranks.rank): {"random": random_state.capture()}}
        return flatten(tree, steady_storages(state))

    def _agree(self, found: Inventory) -> None:
        """Share out with all ranks who writes what. Collective, as the shape of the state changes for all at once."""
        self._share = share_out(self._ranks.everybody(found))[self._ranks.rank]
        self._inventory = found

    def _layout(self, flat: Flat) -> tuple[list[tuple[str, Target]], tuple[Place, ...], int]:
        targets: list[tuple[str, Target]] = []
        places: list[Place] = []
        end = 0
        for name, tensor in flat.tensors.items():
            part = held(name, tensor)
            if (name, part.region) not in self._share.boxes:
                continue
            size = part.local.numel() * part.local.element_size()
            targets.append((name, Target(part, end, size)))
            places.append(Place(name, part.dtype, part.shape, part.region, end))
            end += aligned(size)
        return targets, tuple(places), end

    def _part(self, step: int, values: dict[str, Json]) -> Manifest:
        return Manifest(
            step=step,
            generation=self.generation,
            world=self._ranks.world,
            ranks=(self._ranks.rank,),
            created=_now(),
            values=values,
            mesh=self._mesh,
            software={"tlaunch": version("tlaunch"), "torch": torch.__version__},
        )


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _resolved(*, result: bool) -> Future[bool]:
    future: Future[bool] = Future()
    future.set_result(result)
    return future

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
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from types import TracebackType
from typing import Literal, Self

import torch

from tlaunch.checkpoint.arena import aligned
from tlaunch.checkpoint.arguments import mesh_of, step_of, whole
from tlaunch.checkpoint.capture import Capture, StepGuard
from tlaunch.checkpoint.catalog import Keep
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.flat import State
from tlaunch.checkpoint.generations import newest_generation
from tlaunch.checkpoint.home import SOCKET, SaverHome, was_started
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.link import settle
from tlaunch.checkpoint.manifest import Manifest
from tlaunch.checkpoint.places import open_files
from tlaunch.checkpoint.plan import plan_to_bytes
from tlaunch.checkpoint.preparing import Preparing
from tlaunch.checkpoint.ranks import Node, Ranks
from tlaunch.checkpoint.restoring import restore
from tlaunch.checkpoint.saving import Saving
from tlaunch.checkpoint.takeover import take_over
from tlaunch.checkpoint.values import Json

log = logging.getLogger(__name__)


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
    before can commit nothing more. What ranks of the same job had captured completely before they died is written and
    committed first, for which this waits, at most a minute.

    As a context manager it is closed in the end, which waits for what is being saved; after an exception nobody waits,
    and the saver finishes what was captured by itself.

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
        self._every = whole("every", every, 1)
        if busy not in ("wait", "skip"):
            raise Unusable(f"busy: expected 'wait' or 'skip', got {busy!r}")
        if not isinstance(keep, Keep | None):
            raise Unusable(f"keep: expected a Keep, such as Keep(last=3), got {keep!r}")
        self._files = open_files(path)
        self._busy, self._mesh = busy, {} if mesh is None else mesh_of(mesh)
        self._software = {"tlaunch": version("tlaunch"), "torch": str(torch.__version__)}
        self._ranks = Ranks()
        given = os.environ.get(SOCKET, "")
        if given and was_started(given):
            settle(given, self._files.root)
        mine = {"path": self._files.root, "every": self._every, "busy": busy}
        told = self._ranks.everybody((Node.here(), mine))  # all have settled
        nodes = [node for node, _ in told]
        try:
            _refuse_different([given for _, given in told])
            self.generation: int = self._ranks.from_first(self._take_over)
            """The number of this run among those that have written here."""
        except Exception:
            self._ranks.close()
            raise
        self._home: SaverHome | None = None
        self._socket = given or self._own_saver(nodes)
        keep = keep or Keep()
        first = self._ranks.rank == 0
        self._saving = Saving(
            self._started,
            {"do": "open", "root": self._files.root, "last": keep.last if first else 0, "every": keep.every},
        )
        self._guard = StepGuard()
        self._preparing = Preparing(self._ranks)
        # The second goes on copying when the first has to wait for a new saver.
        self._copiers = ThreadPoolExecutor(2, thread_name_prefix="checkpoint capture")
        self._has_saved = False
        self._unrenewed: str | None = None
        """Why nothing can be saved since the last restore, if so."""
        self._closed = False

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, step: int, state: State) -> Future[bool]:
        """Begin to save the state as that after ``step``, and return at once.

        The future is true once the checkpoint of all ranks is committed, false when the step is not due or was
        skipped; it raises ``CheckpointError`` when saving failed. Until then the training may go on: the next
        ``optimizer.step()`` waits for what is left of the copy. Whoever changes parameters otherwise, such as
        averages of weights, calls ``wait_captured`` first. A step that this run has committed already stays as it is.

        What has one name is taken to be the same on all ranks, as under data parallelism, and one of them writes it.
        What differs from rank to rank needs names that differ: ``{"sampler": {str(rank): sampler.state_dict()}}``.
        Below a name that only one rank has, its names and shapes may change from save to save. All others change on all
        ranks at the same save, which is collective then, as the first one is.

        Raises:
            Unusable: something in the state has no representation, or ranks have something else under the same name,
                which is in the message. Nothing is saved. At the first save all ranks raise when one does.
        """
        self._refuse_closed()
        step = step_of(step)
        if step % self._every:
            return _resolved(result=False)
        if self._unrenewed is not None:
            return _failed(CheckpointError(f"step {step} is not saved {self._unrenewed}"))
        future = self._saving.expect(step)
        try:
            begun = self._begin(step, state)
        except Exception as error:
            self._saving.settle(step, CheckpointError(f"step {step} is not saved: {error}"))
            if self._preparing.agreed:  # else the others know
                self._stay_out(step, str(error) or repr(error))
            if isinstance(error, Unusable) or not isinstance(error, CheckpointError):
                raise
            return future  # no trouble with checkpoints ends the training
        if not begun:
            log.warning("step %d is skipped: the one before is still being written", step)
            self._saving.settle(step, None, saved=False)
            self._stay_out(step, "")
        return future

    def _begin(self, step: int, state: State) -> bool:
        """Begin to capture a step; false when all buffers are in use and it is to be skipped."""
        self._guard.wait()  # a capture of the step before, where no optimizer has waited for it
        order = self._preparing.order(state)
        shape = order.shape
        plan = plan_to_bytes(self._part(step, order.values), shape.boxes)
        begin = aligned(shape.layout.size)
        self._saving.resize(begin + len(plan))
        buffer = self._saving.free_buffer(wait=self._busy == "wait")
        if buffer is None:
            return False
        try:
            view = buffer.arena.view
            view[: len(shape.layout.header)] = shape.layout.header
            view[begin : begin + len(plan)] = plan
            capture = Capture(buffer.arena, order.now, shape.later, self._copiers)
        except Exception:
            self._saving.free(buffer)
            raise
        self._guard.watch(capture)
        part = slice(begin, begin + len(plan))
        address = Address(self.generation, step)
        self._saving.hand_over(address, self._ranks, buffer, capture, shard=shape.layout.size, plan=part)
        self._has_saved = True
        return True

    def _stay_out(self, step: int, reason: str) -> None:
        """Let the other ranks know that this one does not save a step, which they can never commit then."""
        if self._ranks.world > 1:
            self._saving.stay_out(self.generation, step, self._ranks.rank, reason)

    @property
    def capacity(self) -> int:
        """Bytes of shared memory that this rank holds for saving: none before the first save."""
        return self._saving.capacity

    def wait_captured(self) -> None:
        """Wait until the tensors of the last ``save`` may be changed. ``optimizer.step()`` does this by itself."""
        self._guard.wait()

    def wait(self) -> None:
        """Wait until every step that was saved is committed, or has failed: the futures tell which."""
        self._saving.wait()

    def close(self) -> None:
        """Wait for what is being saved, and let go of the saver. Safe to call twice."""
        self._close(wait=True)

    def _close(self, *, wait: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._guard.close()
        self._copiers.shutdown()
        self._preparing.forget()
        if wait:
            self._saving.wait()
        else:
            self._saving.leave("the training has ended with an error, and left it to the saver process")
        self._saving.close()
        if self._home is not None:
            self._home.close(wait=wait)
        self._ranks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where the training has failed, other ranks may never come to the same step, and somebody waits for our end.
        self._close(wait=error is None or (isinstance(error, SystemExit) and not error.code))

    # --- restoring -------------------------------------------------------------------------------------------------

    def restore(self, state: State, *, step: int | None = None, strict: bool = True) -> int | None:
        """Load the newest checkpoint, or that of ``step``, into the objects of ``state``, and return its step.

        Returns ``None`` when nothing has been saved yet. The checkpoint may come from any number of ranks and any
        mesh; each rank reads only the blocks that hold what it needs. Random number generators go on where those of
        the same rank were, when there are as many ranks as then. Where this run has saved already and the path can no
        longer be written to, the state is loaded, and the futures of later saves fail. Collective.

        With ``strict=False`` names that only the checkpoint or only the state has are left alone.

        Raises:
            Unusable: names, shapes or types differ; they are listed. Or the path has another program's checkpoint and
                none of ours. Nothing was changed.
            Damaged: bytes of the checkpoint have changed; the file is named. Nothing was changed, unless it says that
                the state is partly loaded: then they have changed while they were read.
        """
        self._refuse_closed()
        wanted = None if step is None else step_of(step)
        self._guard.wait()
        self._saving.wait()
        found = restore(self._files, self._ranks, state, step=wanted, strict=strict)
        if found is not None and self._has_saved:
            # We may have gone back: what is saved from now on must not meet what this run has saved before.
            self._ranks.everybody(None)  # all have waited for what they were saving
            self._unrenewed = None
            try:
                self.generation = self._ranks.from_first(self._renew)
                self._has_saved = False
            except CheckpointError as error:  # all is loaded, and the training may go on
                self._unrenewed = f"after going back to step {found}: {error}"
                log.warning("nothing is saved any more %s", self._unrenewed)
        return found

    def _refuse_closed(self) -> None:
        if self._closed:
            raise CheckpointError("this checkpointer is closed")

    # --- inside ----------------------------------------------------------------------------------------------------

    def _take_over(self) -> int:
        owner: dict[str, Json] = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
        return take_over(self._files, owner)

    def _renew(self) -> int:
        """Take another generation, unless somebody else has taken the path over: then he keeps it."""
        return self.generation if newest_generation(self._files) > self.generation else self._take_over()

    def _own_saver(self, nodes: list[Node]) -> str:
        """Return the socket of this node's saver where no agent keeps one: the first rank of the node does."""
        first = nodes.index(nodes[self._ranks.rank])
        if first == self._ranks.rank:
            self._home = SaverHome()
        return self._ranks.everybody("" if self._home is None else self._home.path)[first]

    def _started(self) -> str:
        if self._home is not None:
            try:
                self._home.start()
            except OSError as error:
                raise CheckpointError(f"no saver can be started: {error}") from error
        return self._socket

    def _part(self, step: int, values: dict[str, Json]) -> Manifest:
        return Manifest(
            step=step,
            generation=self.generation,
            world=self._ranks.world,
            ranks=(self._ranks.rank,),
            created=_now(),
            values=values,
            mesh=self._mesh,
            software=self._software,
        )


def _refuse_different(given: Sequence[Mapping[str, object]]) -> None:
    for rank, mine in enumerate(given):
        for what, value in mine.items():
            if value != given[0][what]:
                raise Unusable(
                    f"{what}: rank 0 was given {given[0][what]!r} and rank {rank} {value!r}; expected the same"
                )


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _resolved(*, result: bool) -> Future[bool]:
    future: Future[bool] = Future()
    future.set_result(result)
    return future


def _failed(error: CheckpointError) -> Future[bool]:
    log.warning("%s", error)  # a future that nobody looks at would hide it
    future: Future[bool] = Future()
    future.set_exception(error)
    return future

"""One rank's saves on their way: arenas, the saver's answers, and the futures that users hold."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.capture import Capture
from tlaunch.checkpoint.errors import CheckpointError, Superseded
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.link import Link
from tlaunch.checkpoint.messages import Message
from tlaunch.checkpoint.ranks import Ranks
from tlaunch.checkpoint.tree import Node

log = logging.getLogger(__name__)

BUFFERS = 2
"""Arenas: one is filled while the other is written."""

LONG = 1.0
"""Seconds of waiting for a free arena from which on they are worth a line."""


STALLED = 1800.0
"""Seconds without a word from a saver that owes one, after which nothing is saved any more. That is enough to write
hundreds of gigabytes to a slow disk, and longer than a saver waits for other ranks."""

SPARE = 1 << 20
"""Bytes that an arena has beyond what it is made for: values grow."""

TRIES = 2
"""How many savers a step is given to: one may die by accident, of two it may be the cause."""


@dataclass(slots=True)
class Buffer:
    """An arena. ``busy`` from when it is chosen until it is written."""

    index: int
    arena: Arena
    busy: bool = False


@dataclass(slots=True)
class _Order:
    """What the saver is to do about a step that is captured."""

    write: Message
    commit: Message
    """What is left to do once it is written."""
    buffer: Buffer | None
    """Where it is; ``None`` once it is written."""
    link: Link | None = None
    """The connection on which it was said last."""
    tries: int = 0


class Saving:
    """Hands captured steps to the saver. ``connect`` returns the path of the saver's socket, and starts it if need be.

    When a saver dies, what it had not committed is given to the next one, once: the arenas still hold it.
    """

    def __init__(self, connect: Callable[[], str], opening: Message) -> None:
        self._connect = connect
        self._opening = opening
        self._changed = threading.Condition()  # may be taken twice by one thread
        self._linking = threading.Lock()
        self._delivering = threading.Lock()
        self._buffers: list[Buffer] = []
        self._futures: dict[int, Future[bool]] = {}
        self._orders: dict[int, _Order] = {}
        self._link: Link | None = None
        self._heard = time.monotonic()
        """When the saver last said anything, or began to owe an answer."""
        self._stalled: str | None = None

    def resize(self, size: int) -> None:
        """See to arenas of at least so many bytes. Waits until those that are too small have been written.

        Who has grown once may grow at each save, and gets room for that.

        Raises:
            CheckpointError: there is not enough memory, or no saver.
        """
        if self._buffers and all(buffer.arena.size >= size for buffer in self._buffers):
            return
        self.wait_written()
        size += SPARE + (size // 8 if self._buffers else 0)
        with self._linking:
            for buffer in self._buffers:
                buffer.arena.close(discard=True)  # before there is more; the saver has written what it needs of it
            self._buffers = []
            arenas: list[Arena] = []
            try:
                arenas.extend(Arena.make(size) for _ in range(BUFFERS))
            except CheckpointError:
                for arena in arenas:
                    arena.close()
                raise
            self._buffers = [Buffer(index, arena) for index, arena in enumerate(arenas)]
            if self._link is not None:
                try:
                    self._introduce(self._link)
                except CheckpointError:
                    self._link.close()  # its saver has died; the next one is told all
                    self._link = None
        self._linked()

    @property
    def capacity(self) -> int:
        """Bytes of all arenas."""
        return sum(buffer.arena.size for buffer in self._buffers)

    def free_buffer(self, *, wait: bool) -> Buffer | None:
        """Return an arena to fill; ``None`` when all are in use and we don't wait.

        Raises:
            CheckpointError: the saver does not do anything any more.
        """
        since = time.monotonic()
        with self._changed:
            if wait:
                self._wait_until(lambda: not all(buffer.busy for buffer in self._buffers))
            if (waited := time.monotonic() - since) > LONG:
                log.warning("waited %.1f s until a checkpoint before was written", waited)
            free = None if self._stalled else next((buffer for buffer in self._buffers if not buffer.busy), None)
            if free is not None:
                free.busy = True
            elif self._stalled:
                raise CheckpointError(self._stalled)
            return free

    def free(self, buffer: Buffer) -> None:
        """Take back an arena."""
        with self._changed:
            buffer.busy = False
            self._changed.notify_all()

    def expect(self, step: int) -> Future[bool]:
        """Return the future that says how saving a step ends: true once it is committed.

        Raises:
            CheckpointError: this step is being saved already.
        """
        with self._changed:
            if step in self._futures:
                raise CheckpointError(f"step {step} is being saved already")
            future = self._futures[step] = Future()
            future.set_running_or_notify_cancel()  # nobody can cancel it: it is resolved in any case
            return future

    def hand_over(
        self, address: Address, ranks: Ranks, buffer: Buffer, capture: Capture, *, shard: int, plan: slice
    ) -> None:
        """Have a step saved as soon as it is captured: the shard is the first ``shard`` bytes of the arena."""
        step = address.step
        order = _Order(
            {
                "do": "save",
                "step": step,
                "arena": buffer.index,
                "shard_size": shard,
                "plan": plan.start,
                "plan_size": plan.stop - plan.start,
            },
            {"do": "commit", "step": step, "generation": address.generation, "world": ranks.world, "rank": ranks.rank},
            buffer,
        )

        def captured(done: Future[None]) -> None:
            try:
                done.result()
            except BaseException as error:  # noqa: BLE001 - whoever holds the future is to know
                self.free(buffer)
                self.settle(step, CheckpointError(f"step {step} is not saved: {error}"))
                return
            with self._changed:
                if not self._orders:
                    self._heard = time.monotonic()
                self._orders[step] = order
            self._deliver(step)

        capture.done.add_done_callback(captured)

    def _deliver(self, step: int) -> None:
        """Tell the saver of a step, unless the present one knows of it already."""
        with self._delivering:
            with self._changed:
                order = self._orders.get(step)
            if order is None:
                return
            try:
                link = self._linked()
                if order.link is link:
                    return
                order.tries += 1
                if order.tries > TRIES:
                    raise CheckpointError("the saver process has ended again")
            except Exception as error:  # noqa: BLE001 - nobody else would resolve the future, or free the arena
                if order.buffer is not None:
                    self.free(order.buffer)
                self.settle(step, CheckpointError(f"step {step} may not have been saved: {error}"))
                return
            order.link = link
            with contextlib.suppress(CheckpointError):  # it has just died; we come here again when that is noticed
                link.say(order.commit if order.buffer is None else order.write)

    def stay_out(self, generation: int, step: int, rank: int, reason: str) -> None:
        """Let the savers of other ranks know that this one does not save a step. No ``reason``: it skips it."""
        order: Message = {"do": "absent", "generation": generation, "step": step, "rank": rank, "reason": reason}
        try:
            self._linked().say(order)
        except CheckpointError as error:
            log.warning("the other ranks could not be told that step %d is not saved here: %s", step, error)

    def settle(self, step: int, error: CheckpointError | None, *, saved: bool = True) -> None:
        """Resolve the future of a step, if that has not been done."""
        with self._changed:
            future = self._futures.pop(step, None)
            self._orders.pop(step, None)
            self._changed.notify_all()
        if future is None:
            return
        if error is None:
            future.set_result(saved)
        else:
            log.warning("%s", error)  # a future that nobody looks at would hide it
            future.set_exception(error)

    def wait_written(self) -> None:
        """Wait until no arena is in use.

        Raises:
            CheckpointError: the saver does not do anything any more.
        """
        with self._changed:
            self._wait_until(lambda: not any(buffer.busy for buffer in self._buffers))
        if self._stalled:
            raise CheckpointError(self._stalled)

    def wait(self) -> None:
        """Wait until every step is committed or has failed. What takes too long, the saver gives up."""
        with self._changed:
            self._wait_until(lambda: not self._futures)

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: reached() or self._stalled is not None)

    def _on_silence(self) -> float:
        """Give up on a saver that has owed an answer for too long; return how long it may be silent from now on."""
        with self._changed:
            left = self._heard + STALLED - time.monotonic()
            if self._stalled or not self._orders or left > 0:
                return left if self._orders and left > 0 else STALLED
            # It may wake and read the arenas, so that they cannot be used again.
            self._stalled = f"the saver process has said nothing for {STALLED:g} s: nothing is saved any more"
            owed = tuple(self._futures)
        for step in owed:
            self.settle(step, CheckpointError(f"step {step} may not have been saved: {self._stalled}"))
        return STALLED

    def leave(self, reason: str) -> None:
        """Wait for nothing any more. The saver does what it was told."""
        with self._changed:
            owed = tuple(self._futures)
        for step in owed:
            self.settle(step, CheckpointError(f"step {step} may not have been saved: {reason}"))

    def close(self) -> None:
        """Leave the saver, which finishes what it was given."""
        with self._linking:
            link, self._link = self._link, None
        if link is not None:
            link.close()
        for buffer in self._buffers:
            buffer.arena.close()
        self._buffers = []

    def _linked(self) -> Link:
        """Return the connection to the saver, and make a new one when there is none or the saver has died."""
        with self._linking:
            if self._link is not None and self._link.alive:
                return self._link
            if self._link is not None:
                self._link.close()
                self._link = None
            link = Link(self._connect(), self._on_answer, self._on_silence)
            try:
                link.say(self._opening)
                self._introduce(link)
            except CheckpointError:
                link.close()
                raise
            self._link, self._heard = link, time.monotonic()
            return link

    def _introduce(self, link: Link) -> None:
        for buffer in self._buffers:
            link.give(buffer.index, buffer.arena)

    def _on_answer(self, answer: Node | None) -> None:
        if answer is None:
            self._on_lost()
            return
        self._heard = time.monotonic()
        did, step = answer.at("did").text(), answer.at("step").number()
        if answer.at("arena").value is not None:
            self._on_written(step)
        if did == "committed":
            self.settle(step, None)
        elif did == "skipped":
            log.warning("%s", answer.at("error").text())
            self.settle(step, None, saved=False)
        elif did == "failed":
            kind = Superseded if answer.at("superseded").value else CheckpointError
            self.settle(step, kind(answer.at("error").text()))

    def _on_written(self, step: int) -> None:
        with self._changed:
            order = self._orders.get(step)
            if order is not None and order.buffer is not None:
                self.free(order.buffer)
                order.buffer = None

    def _on_lost(self) -> None:
        with self._changed:
            if not self._orders:
                return
        # In another thread: this one belongs to the connection that is gone.
        threading.Thread(target=self._deliver_again, name="checkpoint orders", daemon=True).start()

    def _deliver_again(self) -> None:
        with self._changed:
            steps = list(self._orders)
        for step in steps:
            self._deliver(step)

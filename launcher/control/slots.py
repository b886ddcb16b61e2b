"""The processes of one node: a worker in each slot that has a rank, a standby in each that has none."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.endings import describe, not_started
from tlaunch.launcher.control.memory import OomKills
from tlaunch.launcher.control.output import Output
from tlaunch.launcher.control.program import Program, RankFiles
from tlaunch.launcher.control.records import Rendezvous, Report
from tlaunch.launcher.control.spawn import Process, Zygote
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.launcher.core.environment import worker_environment
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.hang import Hung
from tlaunch.launcher.process import messages
from tlaunch.launcher.process.messages import Work
from tlaunch.topology.model import Node

log = logging.getLogger(__name__)

IN_PLACE = -1
"""The key of the standby that waits for a restart in place; it belongs to no slot."""


class Stuck(TlaunchError):
    """A process did not die of SIGKILL in time."""


@dataclass(slots=True)
class Running:
    """The live process of a rank, with its files and when it was ``started``, on the monotonic clock.

    ``yielding``: we end it ourselves, so that its exit is no news. ``killed_for``: why we have killed it, and since
    when (monotonic time) that was the case; ``trial``: because an operator wanted that.
    """

    seat: AssignedSeat
    process: Process
    files: RankFiles
    started: float
    yielding: bool = False
    killed_for: tuple[str, float] | None = None
    trial: bool = False
    stop_timer: asyncio.TimerHandle | None = None


class Slots:
    """Makes what runs equal to what the assignment asks for. ``changed`` is called whenever the report has changed."""

    def __init__(
        self,
        node: Node,
        program: Program,
        zygote: Callable[[], Awaitable[Zygote]],
        output: Output,
        *,
        timing: Timing,
        changed: Callable[[], None],
    ) -> None:
        self._node = node
        self._program = program
        self._zygote = zygote
        self._output = output
        self._timing = timing
        self._changed = changed
        self._running: dict[int, Running] = {}
        self._standbys: dict[int, Process] = {}
        self._exits: dict[int, Exit] = {}
        self._bad: dict[int, str] = {}
        self._hung: Mapping[int, Hung] = {}
        self._generation = 0
        self._oom_kills = OomKills.look()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def standbys(self) -> Mapping[int, Process]:
        """The warm standbys, by slot; the one for restarts in place under ``IN_PLACE``."""
        return self._standbys

    @property
    def report(self) -> Report:
        """What the controller has to know of this node."""
        return Report(self._generation, dict(self._exits), dict(self._bad), dict(self._hung))

    @property
    def busy(self) -> bool:
        """Whether any rank runs here."""
        return bool(self._running)

    @property
    def running(self) -> tuple[Running, ...]:
        """The ranks that run here, without those that are being ended."""
        return tuple(running for running in self._running.values() if not running.yielding)

    def tell_hung(self, hung: Mapping[int, Hung]) -> None:
        """Report which ranks do not get any further."""
        for rank, found in hung.items():
            log.warning("rank %d does not get any further: %s", rank, found.stack or found.waits or found.place)
        self._hung = hung
        self._changed()

    async def yield_stale(self, head: Generation, assignment: Assignment) -> None:
        """End every process that the assignment does not ask for, and forget how ranks of older generations ended."""
        if head.number != self._generation:
            self._generation = head.number
            self._exits.clear()
            self._hung = {}
            self._oom_kills = OomKills.look()
        wanted = {seat.index: (seat.rank, seat.since) for seat in assignment.seats}
        stale = [
            running
            for index, running in self._running.items()
            if wanted.get(index) != (running.seat.rank, running.seat.since)
        ]
        await self._end(stale, self._timing.yield_grace)
        self._dismiss(index for index in self._standbys if index in self._bad or index in assignment.bad)

    def to_start(self, assignment: Assignment) -> tuple[AssignedSeat, ...]:
        """Return the seats that have no process yet and are not known to have failed."""
        return tuple(
            seat
            for seat in assignment.seats
            if seat.index not in self._running and seat.rank not in self._exits and seat.index not in self._bad
        )

    async def start(self, head: Generation, assignment: Assignment, place: Rendezvous) -> None:
        """Start a process in every seat that needs one. One that cannot be started is reported like one that failed."""
        await asyncio.gather(*(self._start(head, assignment, seat, place) for seat in self.to_start(assignment)))

    async def warm(self, assignment: Assignment | None) -> None:
        """See to it that a standby waits in each slot without a rank.

        Where ranks run there is one more, for a restart in place.
        """
        seated = {seat.index for seat in assignment.seats} if assignment else set[int]()
        bad = self._bad.keys() | set(assignment.bad if assignment else ())
        wanted = {index for index in range(self._node.slots) if index not in seated and index not in bad}
        if seated:
            wanted.add(IN_PLACE)
        self._dismiss(index for index, process in self._standbys.items() if index not in wanted or process.ended.done())
        for index in sorted(wanted - self._standbys.keys()):
            self._standbys[index] = await self._standby(index)

    def kill(self, rank: int, *, trial: bool = False) -> bool:
        """SIGKILL the process of a rank, as an operator's ``trial`` or not; false when it does not run here."""
        for running in self._running.values():
            if running.seat.rank == rank:
                if trial:
                    running.killed_for, running.trial = ("killed by an operator", time.monotonic()), True
                running.process.kill(signal.SIGKILL)
                return True
        return False

    def fail(self, index: int, reason: str) -> None:
        """A slot is bad: report it, and end what runs there."""
        self._bad[index] = reason
        running = self._running.get(index)
        if running is not None:
            running.yielding = True
            running.process.kill(signal.SIGKILL)
        self._dismiss([index] if index in self._standbys else [])
        self._changed()

    async def stop(self, grace: float) -> None:
        """End everything: SIGTERM, ``grace`` seconds, SIGKILL."""
        self._dismiss(tuple(self._standbys))
        await self._end(tuple(self._running.values()), grace)

    def _dismiss(self, indices: Iterable[int]) -> None:
        for index in tuple(indices):
            self._standbys.pop(index).kill(signal.SIGKILL)

    async def _standby(self, index: int) -> Process:
        zygote = await self._zygote()
        device = index if self._program.gpus and index != IN_PLACE else None
        return await zygote.standby(cuda_device=device, timeout=self._timing.warm)

    async def _take_standby(self, seat: AssignedSeat) -> Process:
        """Prefer the slot's own standby, then the one for restarts in place, then a new one."""
        for index in (seat.index, IN_PLACE):
            process = self._standbys.pop(index, None)
            if process is None or process.ended.done():
                continue
            mismatch = self._program.gpus and index == seat.index and seat.local_rank != seat.index
            if mismatch or process.stopped:
                # Its CUDA context is on the device that this slot is by default, not by the seat's LOCAL_RANK.
                process.kill(signal.SIGKILL)
                continue
            return process
        return await self._standby(IN_PLACE)

    async def _start(self, head: Generation, assignment: Assignment, seat: AssignedSeat, place: Rendezvous) -> None:
        program = self._program
        files = program.files(head.number, seat.rank)
        running: Running | None = None
        try:
            files = files.prepared()
            if not files.kept:
                self._output.say(seat.rank, f"no space left in {program.log_dir}: what this rank prints is lost")
            environment = worker_environment(
                program.env,
                generation=head,
                assignment=assignment,
                seat=seat,
                node=self._node,
                master=(place.host, place.port),
                job_id=program.job,
                error_file=files.failure,
                gpus=program.gpus,
            )
            process = await self._take_standby(seat)
            running = Running(seat, process, files, time.monotonic())
            self._running[seat.index] = running
            process.ended.add_done_callback(lambda future: self._ended(running, future.result()))
            process.on_stopped = lambda: self._stopped(running)
            self._output.follow(seat.rank, "out", files.out)
            self._output.follow(seat.rank, "err", files.err)
            process.start(
                Work(
                    argv=program.argv,
                    env=environment,
                    cwd=program.cwd,
                    stdout=files.out,
                    stderr=files.err,
                    module=program.module,
                    mode=program.start,
                    stack=files.stack if program.asked else None,
                )
            )
        except (TlaunchError, OSError) as error:
            if running is not None:
                running.yielding = True
                running.process.kill(signal.SIGKILL)
                self._running.pop(seat.index, None)
            self.give_up((seat,), error)

    def give_up(self, seats: Iterable[AssignedSeat], error: Exception) -> None:
        """Report ranks as failed that cannot be started."""
        for seat in seats:
            log.error("rank %d could not be started: %s", seat.rank, error)
            self._exits[seat.rank] = not_started(error, time.monotonic())
        self._changed()

    def _stopped(self, running: Running) -> None:
        """A rank was stopped by a signal, or goes on: one that stays stopped holds all others up."""
        if running.stop_timer is not None:
            running.stop_timer.cancel()
            running.stop_timer = None
        if running.process.stopped:
            loop = asyncio.get_running_loop()
            running.stop_timer = loop.call_later(self._timing.stopped, self._end_stopped, running, time.monotonic())

    def _end_stopped(self, running: Running, since: float) -> None:
        # This node may have been stopped with everything on it, and have just been woken.
        if running.process.is_stopped():
            running.killed_for = (f"stopped by a signal for {self._timing.stopped:g} s, so it was killed", since)
            running.process.kill(signal.SIGKILL)

    def _ended(self, running: Running, ended: messages.Exit) -> None:
        if running.stop_timer is not None:
            running.stop_timer.cancel()
        if self._running.get(running.seat.index) is running:
            del self._running[running.seat.index]
        self._output.finish(running.seat.rank)
        if running.process.note:
            log.warning("rank %d: %s", running.seat.rank, running.process.note)
        if not running.yielding:
            log.info("rank %d has ended: %s", running.seat.rank, ended)
            noticed = running.process.noticed or time.monotonic()
            found = describe(ended, running.files, started=running.started, noticed=noticed, slots=self._node.slots)
            if running.killed_for is not None and ended.code is None and ended.signal in {None, signal.SIGKILL}:
                why, since = running.killed_for
                found = replace(found, message=why, time=since, trial=running.trial)
            elif (killer := self._out_of_memory(ended)) is not None:
                found = replace(found, message=killer)
            self._exits[running.seat.rank] = found
            self._changed()

    def _out_of_memory(self, ended: messages.Exit) -> str | None:
        """Say so when the kernel has killed for want of memory since this generation began."""
        now = OomKills.look() if ended.signal == signal.SIGKILL else None
        return None if now is None else now.since(self._oom_kills)

    async def _end(self, ending: Iterable[Running], grace: float) -> None:
        ending = tuple(ending)
        if not ending:
            return
        for running in ending:
            running.yielding = True
            running.process.kill(signal.SIGTERM)
        waiting = [asyncio.shield(running.process.ended) for running in ending]
        _, late = await asyncio.wait(waiting, timeout=grace)
        if late:
            for running in ending:
                running.process.kill(signal.SIGKILL)
            _, late = await asyncio.wait(waiting, timeout=self._timing.reap)
        if late:
            for running in ending:
                if not running.process.ended.done():
                    self.fail(running.seat.index, "its process does not die of SIGKILL")
            raise Stuck(
                f"{len(late)} processes on {self._node.name} did not die of SIGKILL within {self._timing.reap:g} s"
            )

"""Worker processes from the agent's side: ask a zygote for standbys, give them work, kill them, see them end.

Nothing here blocks the event loop, and nothing waits without a deadline. The end of a process is seen by its pidfd;
how it ended is told by the zygote that reaps it. If the zygote is gone, the process lives on and tells its exit code
itself, if it comes to its end; else its ``Exit`` will say *unknown*.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from tlaunch.errors import TlaunchError
from tlaunch.launcher.process.channel import Channel, ChannelClosed, Message
from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.process.messages import REPORTED_ENV, Exit, Work

# How long after a process's end its zygote may take to tell how it ended. It takes a millisecond; only for a zygote
# that hangs is there this deadline, because the end of one that dies is seen.
EXIT_STATUS_SECONDS = 5.0
# linux/pidfd.h, from Linux 6.9 on: deliver the signal to the process group.
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2


class SpawnError(TlaunchError):
    """No process could be had: the zygote is gone, refused, or did not answer in time."""


class Process:
    """One process that a zygote has forked: a standby until ``start``, then a worker.

    ``note`` says what the standby had to say: why there is no CUDA context, or why it needed a fresh interpreter.
    ``ended`` resolves as soon as it is known how the process ended; it never raises. ``noticed``: when it was seen that
    it has, on the monotonic clock. ``stopped``: a signal has stopped it (SIGSTOP and the like); ``on_stopped`` is
    called whenever that changes.
    """

    def __init__(self, pid: int, pidfd: int, channel: Channel, lifeline: Lifeline, zygote: Zygote) -> None:
        self.pid = pid
        self.state: Literal["standby", "running", "ended"] = "standby"
        self.note: str | None = None
        self.noticed: float | None = None
        self.stopped = False
        self.on_stopped: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Exit] = self._loop.create_future()
        self._pidfd = pidfd
        self._channel: Channel | None = channel
        self._lifeline = lifeline
        self._zygote = zygote
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._give_up: asyncio.TimerHandle | None = None
        self._result = Exit()
        self._error: str | None = None
        self._loop.add_reader(pidfd, self._on_pidfd)
        self._loop.add_reader(channel, self._on_channel)

    async def ready(self) -> None:
        """Return when the standby waits for work, or has ended."""
        await asyncio.shield(self._ready)

    def start(self, work: Work) -> None:
        """Turn the standby into a worker. If it has died meanwhile, nothing happens: ``ended`` says so."""
        if self.state == "ended":
            return
        assert self.state == "standby", f"process {self.pid} has work already"
        self.state = "running"
        self._zygote.tell_started(self.pid, work)
        if self._channel is not None:
            self._channel.send({"work": work.to_json()}, list(work.fds.values()))
            if self._channel.wants_write:
                self._loop.add_writer(self._channel, self._on_writable)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process and its whole group. Does nothing once the process has ended."""
        if self.state == "ended":
            return
        if number == signal.SIGKILL:
            self._lifeline.close()  # the kernel kills the group, however its pid is used by now
            return
        with contextlib.suppress(ProcessLookupError):
            _signal_group(self._pidfd, self.pid, number)

    def signal_alone(self, number: int) -> None:
        """Send a signal to the process itself, and not to what it has started. Nothing once it has ended."""
        if self.state != "ended":
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def is_stopped(self) -> bool:
        """Ask the kernel whether the process is stopped at this moment: the news may be on its way."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return self.state != "ended" and state == "T"

    def set_stopped(self, stopped: bool) -> None:  # noqa: FBT001 - a state, not an option
        """Take note of a stop or a continuation. For ``Zygote`` to call."""
        self.stopped = stopped
        if self.on_stopped is not None:
            self.on_stopped()

    def _on_channel(self) -> None:
        assert self._channel is not None
        try:
            for message, _ in self._channel.receive():
                if "result" in message:
                    self._result = Exit(code=message["result"])
                    continue
                self._error = message.get("error") or self._error
                self.note = message.get("note") or self.note
                self._set_ready()
        except ChannelClosed:
            self._close_channel()
            self._set_ready()

    def _on_writable(self) -> None:
        if self._channel is not None:
            self._channel.flush()
            if not self._channel.wants_write:
                self._loop.remove_writer(self._channel)

    def _set_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _on_pidfd(self) -> None:
        self.noticed = time.monotonic()
        self._loop.remove_reader(self._pidfd)
        self._give_up = self._loop.call_later(EXIT_STATUS_SECONDS, self.finish, None)
        if not self._zygote.connected:
            self.lose_zygote()

    def lose_zygote(self) -> None:
        """Wait no longer to be told how the process ended, if it has. For ``Zygote`` to call."""
        if self._give_up is not None:
            self.finish(None)

    def finish(self, ended: Exit | None) -> None:
        """Take note of how the process ended and release everything that belongs to it. For ``Zygote`` to call.

        ``None``: all that can be known is what the process has said itself.
        """
        if self.state == "ended":
            return
        self.state = "ended"
        self.noticed = self.noticed or time.monotonic()
        if self._give_up is not None:
            self._give_up.cancel()
        if self._channel is not None:
            self._on_channel()  # a last word may be waiting
            self._close_channel()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._lifeline.close()  # kills what is left of the group, should the zygote not have been there to do it
        self._set_ready()
        self._zygote.forget(self.pid)
        ended = ended or self._result
        if self._error and not ended.ok and ended.traceback is None:
            ended = replace(ended, message=self._error)
        self.ended.set_result(ended)

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            self._channel.close()
            self._channel = None


@dataclass(frozen=True, slots=True)
class _Fork:
    """A fork that the zygote was asked for, and our ends of what connects us with the child."""

    channel: Channel
    lifeline: Lifeline
    process: asyncio.Future[Process]

    def refuse(self, why: str) -> None:
        if not self.process.done():
            self._close()
            self.process.set_exception(SpawnError(why))

    def abandon(self) -> None:
        """Nobody waits for the child any more: kill it, or see to it that it dies when it is forked."""
        if not self.process.done():
            self.process.cancel()
        if self.process.cancelled():
            self._close()
        elif self.process.exception() is None:
            self.process.result().kill()

    def _close(self) -> None:
        self.channel.close()
        self.lifeline.close()


class Zygote:
    """A connection to a zygote. ``lost`` is set when it has ended; processes that run then go on running."""

    def __init__(self, sock: socket.socket) -> None:
        self.lost = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(sock)
        self._ids = itertools.count(1)
        self._forks: dict[int, _Fork] = {}
        self._processes: dict[int, Process] = {}
        self._loop.add_reader(self._channel, self._on_readable)

    @classmethod
    async def connect(cls, socket_path: str, *, timeout: float) -> Self:
        """Connect to a zygote; it may still be importing. Raises ``SpawnError``."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(sock, socket_path)
        except (OSError, TimeoutError) as error:
            sock.close()
            raise SpawnError(f"cannot reach the zygote at {socket_path}: {str(error) or 'no answer'}") from error
        return cls(sock)

    @property
    def connected(self) -> bool:
        return not self.lost.is_set()

    async def standby(self, *, cuda_device: int | None = None, timeout: float = 60.0) -> Process:
        """Fork a standby and wait until it is ready. Raises ``SpawnError``, after ``timeout`` seconds at the latest."""
        fork = self._request_fork(cuda_device)
        try:
            async with asyncio.timeout(timeout):
                process = await fork.process
                await process.ready()
        except TimeoutError:
            fork.abandon()
            raise SpawnError(f"the zygote has not made a standby within {timeout:g} s") from None
        except BaseException:
            fork.abandon()
            raise
        if process.ended.done():
            raise SpawnError(f"standby {process.pid} died while it started: {process.ended.result()}")
        return process

    def _request_fork(self, cuda_device: int | None) -> _Fork:
        if not self.connected:
            raise SpawnError("the zygote has ended")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        fork = _Fork(Channel(ours), Lifeline(), self._loop.create_future())
        fork_id = next(self._ids)
        self._forks[fork_id] = fork
        with theirs:
            self._send({"fork": fork_id, "cuda_device": cuda_device}, [theirs.fileno(), fork.lifeline.read_fd])
        return fork

    def tell_started(self, pid: int, work: Work) -> None:
        """Tell the zygote what it needs to describe the process's end. For ``Process`` to call."""
        if self.connected:
            env = {name: work.env[name] for name in REPORTED_ENV if name in work.env}
            self._send({"started": pid, "env": env})

    def forget(self, pid: int) -> None:
        """For ``Process`` to call when it has ended."""
        self._processes.pop(pid, None)

    async def close(self, *, timeout: float = 5.0) -> None:
        """Kill every process that was forked here, wait until they have ended, and disconnect.

        After ``timeout`` seconds, if the kernel cannot end one for so long, go on without.
        """
        processes = list(self._processes.values())
        for process in processes:
            process.kill()
        if processes:
            await asyncio.wait([process.ended for process in processes], timeout=timeout)
        for process in processes:
            process.finish(None)
        self._on_lost()

    def _send(self, message: Message, fds: list[int] | None = None) -> None:
        self._channel.send(message, fds or [])
        if self._channel.wants_write:
            self._loop.add_writer(self._channel, self._on_writable)

    def _on_writable(self) -> None:
        self._channel.flush()
        if not self._channel.wants_write:
            self._loop.remove_writer(self._channel)

    def _on_readable(self) -> None:
        try:
            for message, fds in self._channel.receive():
                self._on_message(message, fds)
        except ChannelClosed:
            self._on_lost()

    def _on_message(self, message: Message, fds: list[int]) -> None:
        if "ended" in message:
            self._on_ended(message["ended"], Exit.from_json(message["exit"]))
            return
        if "stopped" in message or "continued" in message:
            process = self._processes.get(message.get("stopped") or message["continued"])
            if process is not None:
                process.set_stopped("stopped" in message)
            return
        fork = self._forks.pop(message["forked"] if "forked" in message else message["refused"])
        if fork.process.done():  # abandoned: its lifeline is closed, which has killed it
            for fd in fds:
                os.close(fd)
        elif "refused" in message:
            fork.refuse(f"the zygote refuses: {message['why']}")
        else:
            process = Process(message["pid"], fds[0], fork.channel, fork.lifeline, self)
            self._processes[process.pid] = process
            fork.process.set_result(process)

    def _on_ended(self, pid: int, ended: Exit) -> None:
        process = self._processes.get(pid)
        if process is not None:
            process.finish(ended)

    def _on_lost(self) -> None:
        if not self.connected:
            return
        self.lost.set()
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()
        for process in list(self._processes.values()):
            process.lose_zygote()
        for fork in self._forks.values():
            fork.refuse("the zygote has ended")
        self._forks.clear()


def _signal_group(pidfd: int, pid: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
    except OSError as error:
        if isinstance(error, ProcessLookupError):
            raise
        # An older kernel. While the process has not ended its pid is its own.
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(0):
            os.killpg(pid, number)

"""The zygote: one process that has imported torch, from which every worker is forked.

    python -m tlaunch.launcher.elastic.zygote --listen-fd FD --lifeline-fd FD

It serves any number of agents over a unix socket (see ``tlaunch.launcher.process.messages``), forks standbys on
request, and tells the agent that asked for one when it is stopped and how it ended. It is single-threaded and never
starts CUDA, OpenMP or autograd, none of which survive a fork. It installs no atexit handler, and of its one signal
handler its children hear nothing.

Children are tied to their agent twice: by their lifeline, and by the agent's connection, whose end makes the zygote
kill them. They are not tied to the zygote: when it dies they go on, only their exit code can no longer be known.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tlaunch.launcher.elastic.ending import Ending
from tlaunch.launcher.elastic.exits import describe_end
from tlaunch.launcher.elastic.kin import Kin, Mark
from tlaunch.launcher.elastic.standby import Standby
from tlaunch.launcher.elastic.title import set_title
from tlaunch.launcher.process.channel import Channel, ChannelClosed, Message
from tlaunch.launcher.process.lifeline import arm

# What a training script will want, down to what the first ``DistributedDataParallel`` imports.
_PRELOAD = (
    "torch",
    "torch.distributed",
    "torch.distributed.elastic.events",
    "torch.distributed.elastic.multiprocessing.errors",
    "torch.nn.parallel",
    "torch.utils.data",
    "torch._dynamo",
)


@dataclass(eq=False, slots=True)
class _Child:
    pid: int
    pidfd: int
    # Kept open here, so that a worker that closes all its descriptors stays guarded.
    lifeline: int
    owner: _Agent
    env: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Agent:
    channel: Channel
    children: dict[int, _Child] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Source:
    """What to do when a descriptor is ready. ``order``: messages are read before ends are reported."""

    order: int
    handle: Callable[[], Standby | None]


class Zygote:
    """The server loop. In a forked child ``serve`` returns the standby; in the zygote itself it never returns."""

    def __init__(self, listener: socket.socket, lifeline: int, start_env: Mapping[str, str], ending: Ending) -> None:
        self._lifeline = lifeline
        self._start_env = start_env
        self._ending = ending
        listener.setblocking(False)
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._agents: set[_Agent] = set()
        self._children: dict[int, _Child] = {}
        self._kin = Kin()
        self._news, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only a signal that is handled wakes us
        self._selector.register(self._news, selectors.EVENT_READ, _Source(2, self._on_child_news))
        self._selector.register(listener, selectors.EVENT_READ, _Source(0, self._accept))

    def serve(self) -> Standby:
        """Serve until killed."""
        while True:
            ready: list[_Source] = [key.data for key, _ in self._selector.select()]
            for source in sorted(ready, key=lambda source: source.order):
                standby = source.handle()
                if standby is not None:
                    return standby

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        sock.setblocking(False)
        agent = _Agent(Channel(sock))
        self._agents.add(agent)
        self._selector.register(sock, selectors.EVENT_READ, _Source(0, lambda: self._on_agent(agent)))

    def _on_agent(self, agent: _Agent) -> Standby | None:
        if agent not in self._agents:
            return None
        try:
            agent.channel.flush()
            for message, fds in agent.channel.receive():
                standby = self._on_message(agent, message, fds)
                if standby is not None:
                    return standby
        except ChannelClosed:
            self._drop(agent)
            return None
        self._watch_writes(agent)
        return None

    def _on_message(self, agent: _Agent, message: Message, fds: list[int]) -> Standby | None:
        if "fork" in message:
            return self._fork(agent, message, fds)
        child = agent.children.get(message["started"])
        if child is not None:
            child.env = message["env"]
        return None

    def _fork(self, agent: _Agent, message: Message, fds: list[int]) -> Standby | None:
        control, lifeline = fds
        try:
            pid = os.fork()
        except OSError as error:  # out of processes or memory
            agent.channel.send({"refused": message["fork"], "why": f"cannot fork: {error.strerror}"})
            os.close(control)
            os.close(lifeline)
            return None
        if pid == 0:
            self._close()
            return Standby(control, lifeline, message["cuda_device"], self._start_env, self._ending)
        os.close(control)
        child = _Child(pid, os.pidfd_open(pid), lifeline, agent)
        agent.children[pid] = self._children[pid] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, _Source(1, lambda: self._on_end(child)))
        agent.channel.send({"forked": message["fork"], "pid": pid}, [child.pidfd])
        return None

    def _on_end(self, child: _Child) -> None:
        # Until it is reaped its pid, and so its group, can be nobody else's.
        _kill_group(child.pid)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        self._kin.worker_ended(Mark.of(child.lifeline, child.env), set(self._children))
        os.close(child.lifeline)
        del child.owner.children[child.pid], self._children[child.pid]
        status = os.waitid(os.P_PID, child.pid, os.WEXITED)
        assert status is not None  # only with WNOHANG
        if child.owner in self._agents:
            code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
            ended = describe_end(child.pid, code, child.env)
            child.owner.channel.send({"ended": child.pid, "exit": ended.to_json()})
            self._watch_writes(child.owner)

    def _on_child_news(self) -> None:
        """Some child was stopped, was continued or has ended; those that we have forked tell their end by pidfd."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._news, 1 << 16)
        self._kin.look(set(self._children))
        with contextlib.suppress(ChildProcessError):  # there is no child at all
            while changed := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WCONTINUED | os.WNOHANG):
                child = self._children.get(changed.si_pid)
                if child is not None and child.owner in self._agents:
                    stopped = changed.si_code == os.CLD_STOPPED
                    child.owner.channel.send({"stopped" if stopped else "continued": child.pid})
                    self._watch_writes(child.owner)

    def _drop(self, agent: _Agent) -> None:
        self._agents.discard(agent)
        self._selector.unregister(agent.channel)
        agent.channel.close()
        for child in agent.children.values():
            _kill_group(child.pid)

    def _watch_writes(self, agent: _Agent) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if agent.channel.wants_write else 0)
        key = self._selector.get_key(agent.channel)
        if key.events != events:
            self._selector.modify(agent.channel, events, key.data)

    def _close(self) -> None:
        """Close, in a forked child, everything that is the zygote's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._news)
        os.close(self._wakeup)
        self._selector.close()
        self._listener.close()
        os.close(self._lifeline)
        for agent in self._agents:
            agent.channel.close()
            for child in agent.children.values():
                os.close(child.pidfd)
                os.close(child.lifeline)


def _kill_group(pid: int) -> None:
    """Kill a child that is not reaped yet, and its group, which does not exist before the child has made it."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _preload() -> None:
    for name in _PRELOAD:
        importlib.import_module(name)


def main() -> None:
    """Import, serve, and in a forked child become what the agent wants."""
    parser = argparse.ArgumentParser(prog="python -m tlaunch.launcher.elastic.zygote")
    parser.add_argument("--listen-fd", type=int, required=True, help="a listening unix socket")
    parser.add_argument("--lifeline-fd", type=int, required=True, help="what ties it to its owner")
    parser.add_argument("--room", help="makes the command line long, so that a script's has room in its place")
    options = parser.parse_args()
    # Its owner arms it too, but may be killed before it comes to that.
    arm(options.lifeline_fd, os.getpgrp())
    set_title("tlaunch zygote")
    start_env = dict(os.environ)  # before torch adds to it
    # Frozen objects are never visited by the collector, so its marks do not copy the pages that children share.
    gc.disable()
    _preload()
    ending = Ending()
    gc.collect()
    gc.freeze()
    gc.enable()
    Zygote(socket.socket(fileno=options.listen_fd), options.lifeline_fd, start_env, ending).serve().run()


if __name__ == "__main__":
    main()

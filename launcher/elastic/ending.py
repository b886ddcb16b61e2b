"""The end of a forked worker: what plain Python does at its end, without taking the zygote's modules apart.

A worker shares 300 MB with its zygote, and a page costs a copy once it is written to. The interpreter's own end writes
to most of them: it empties every module, frees every object, forgets every interned string, and then torch's static
destructors follow. That is a quarter of a second and 160 MB, for memory that the kernel takes back anyway.

So the interpreter ends by its own code up to the point where nothing of the script is left, and no further::

    the script ends         the exception is reported, by the interpreter
                            threads are joined, exit handlers run       -> _watch_collector
                            daemon threads stop for good, stdout and stderr are flushed, signals get their defaults
    a garbage collection                                                -> _spare_shared_modules
                            the modules that are left are emptied: the script's own, and what it has imported
    ``sys`` is emptied                                                  -> _Last: the process exits

Where one of the three is not reached, because the script has emptied ``atexit`` or ``gc.callbacks`` or because a later
Python ends otherwise, the interpreter goes on to its usual end: slower, not different.

See ``Py_FinalizeEx`` in CPython's Python/pylifecycle.c; the order is the same from 3.11 to 3.13.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from tlaunch.launcher.elastic.foreign_threads import wait_for_foreign_threads
from tlaunch.launcher.process.channel import encoded

# The module of the zygote that is emptied nevertheless when all went well: it holds the process groups, whose end waits
# for the collectives that are still under way, and so do the peers. When the script has failed they are not kept
# waiting: gloo takes a hundredth of a second to part from each peer, and every one that it has parted from fails next.
_GROUPS = "torch.distributed.distributed_c10d"

# Characters. The message must fit into the socket at once.
_LONGEST_ERROR = 2_000

# What the interpreter turns an end into whose output could not be written; see Py_RunMain.
_NOT_FLUSHED = 120


@dataclass(frozen=True, slots=True)
class _Agent:
    """Who is told what the zygote cannot tell: our end of the control socket."""

    fd: int
    identity: tuple[int, int]
    pid: int

    def tell(self, message: Mapping[str, object]) -> None:
        """Tell it, unless this is a child that the script has forked, or the script has closed what it did not know."""
        try:
            if os.getpid() == self.pid and _identity(self.fd) == self.identity:
                os.write(self.fd, encoded(message))
        except OSError:
            pass


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


class Ending:
    """How the process will end. Made in the zygote when it has imported everything; each worker has its own copy."""

    def __init__(self) -> None:
        self._shared = dict(sys.modules)
        self._libc = ctypes.CDLL(None)
        # The exit code, or minus the signal's number. None: the script has not ended, or not by way of `script_ended`.
        self._status: int | None = None
        self._agent: _Agent | None = None
        self._finalizers = list(weakref.finalize._registry)  # type: ignore[attr-defined]  # noqa: SLF001

    def report_to(self, control: int) -> None:
        """Have the exit code told over a control socket, which stays open for that."""
        self._agent = _Agent(control, _identity(control), os.getpid())

    def tell_error(self, error: BaseException) -> None:
        """Tell what the script has failed with, in case the error file could not be written."""
        if self._agent is not None:
            self._agent.tell({"error": f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]})

    def prepare(self) -> None:
        """Call before the script: exit handlers run in reverse, and the script's own shall see nothing of this."""
        atexit.register(self._watch_collector)

    def script_ended(self, error: BaseException | None = None) -> None:
        """Call when the script has returned or raised, and again when the reporting of its exception has raised."""
        self._status = _exit_status(error)

    def _watch_collector(self) -> None:
        if self._status is None:  # called by the script
            return
        wait_for_foreign_threads()
        gc.enable()  # or there would be no collection
        gc.callbacks.append(self._spare_shared_modules)
        # What libraries want to clean up of their own, such as torch's tables of operators, is left as it is, too.
        for finalizer in self._finalizers:
            finalizer.atexit = False

    def _spare_shared_modules(self, phase: str, _: Mapping[str, int]) -> None:
        if phase != "stop" or not sys.is_finalizing():
            return
        gc.callbacks.remove(self._spare_shared_modules)
        assert self._status is not None  # or it would not have been watched for
        # The interpreter has flushed them already. A stream that failed then fails again.
        flushed = [_flush(getattr(sys, name, None)) for name in ("stdout", "stderr")]
        if self._status >= 0 and not all(flushed):
            self._status = _NOT_FLUSHED
        for name, module in self._shared.items():
            ends = name == _GROUPS and self._status == 0
            if not ends and sys.modules.get(name) is module:
                del sys.modules[name]
        # Attributes go in the order in which they came, after those that begin with an underscore.
        sys.__dict__["tlaunch_last"] = _Last(self._status, self._shared, self._libc, self._agent)


class _Last:
    """What ends the process when the interpreter lets go of it. Keeps the shared modules alive until then."""

    def __init__(self, status: int, shared: Mapping[str, ModuleType], libc: ctypes.CDLL, agent: _Agent | None) -> None:
        self._status = status
        self._agent = agent
        self._shared = shared
        self._libc = libc
        # Something that outlives the script, a log handler for example, may hold on to them.
        self._streams = (sys.__stdout__, sys.__stderr__)

    def __del__(self) -> None:
        for stream in self._streams:
            _flush(stream)
        self._libc.fcloseall()  # what exit() does to the streams of C
        if self._status < 0:
            signal.signal(-self._status, signal.SIG_DFL)
            os.kill(os.getpid(), -self._status)
        if self._agent is not None:
            self._agent.tell({"result": self._status})
        os._exit(self._status)


def _exit_status(error: BaseException | None) -> int:
    """Return what the interpreter makes of the exception that it ends by; see Py_RunMain and handle_system_exit."""
    if error is None:
        return 0
    if type(error) is KeyboardInterrupt:
        return -signal.SIGINT
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None:
        return 0
    if not isinstance(error.code, int):
        return 1  # a message
    fits = -(1 << 63) <= error.code < 1 << 63
    return error.code & 0xFF if fits else 0xFF


def _flush(stream: object) -> bool:
    """Flush a standard stream, or what a script has put in its place; return whether it went well."""
    try:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()  # type: ignore[attr-defined]
    except BaseException:  # noqa: BLE001 - whatever it raises, the interpreter has reported it already
        return False
    return True

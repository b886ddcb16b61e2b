"""Turn a forked interpreter into one that runs a script, so that the script cannot tell.

What a script may rely on, and where it comes from: a new ``__main__``; ``sys.argv`` and ``sys.path[0]``; the
environment; ``multiprocessing`` as in a process that nobody forked; random states of its own; tracebacks, exit
codes, hooks and the end of the interpreter as under ``python script.py``. What cannot be had in a fork is found by
``forkable.why_fresh`` beforehand.
"""

# The interpreter treats paths as text, and scripts can see it.
# ruff: noqa: PTH109, PTH110, PTH118

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.machinery
import io
import os
import pkgutil
import runpy
import sys
import threading
import types
from types import TracebackType
from typing import NoReturn

from tlaunch.launcher.elastic.ending import Ending
from tlaunch.launcher.elastic.forkable import script_folder
from tlaunch.launcher.elastic.title import set_title
from tlaunch.launcher.process.messages import Work


def become(work: Work, ending: Ending) -> None:
    """Run the script or module in this interpreter, returning or raising what it does."""
    _set_environment(work)
    _set_arguments(work)
    _set_threading()
    _set_multiprocessing()
    _set_random()
    _hide_ourselves()
    _new_main()
    ending.prepare()
    try:
        if work.module:
            _run_module(work.argv[0], alter_argv=True)
        else:
            _run_script(work.argv[0])
    except BaseException as error:
        ending.script_ended(error)
        _prepare_to_report(error, ending)
        raise
    ending.script_ended()


def _set_environment(work: Work) -> None:
    os.environ.clear()
    os.environ.update(work.full_env())


def _set_arguments(work: Work) -> None:
    sys.argv = list(work.argv)
    sys.orig_argv = [sys.executable, *(["-m"] if work.module else []), *work.argv]
    set_title(" ".join(sys.orig_argv))
    if not sys.flags.safe_path:
        sys.path[0] = script_folder(work)
    importlib.invalidate_caches()


def _set_threading() -> None:
    """Correct what ``threading`` does not after a fork: the main thread's kernel id."""
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # noqa: SLF001


def _set_multiprocessing() -> None:
    """Forget what was recorded of the zygote: its folder, and the key and names that all its children would share."""
    from multiprocessing import process

    process.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]
    process._current_process = type(process.current_process())()  # type: ignore[attr-defined]  # noqa: SLF001


def _set_random() -> None:
    """Give numpy and torch random states of their own, as at their import. ``random`` does so itself at every fork."""
    import torch

    torch.default_generator.seed()
    numpy = sys.modules.get("numpy")  # torch does without it, too
    if numpy is not None:
        numpy.random.seed()


def _hide_ourselves() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tlaunch"]:
        del sys.modules[name]


def _new_main() -> None:
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __annotations__={}, __builtins__=builtins, __loader__=importlib.machinery.BuiltinImporter, __spec__=None
    )
    # multiprocessing knows the main module under a second name.
    for name in ("__main__", "__mp_main__"):
        sys.modules[name] = main


def _run_module(name: str, *, alter_argv: bool) -> None:
    # What `python -m` itself calls, so that even its frames in a traceback are the same.
    runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]  # noqa: SLF001


def _run_script(script: str) -> None:
    path = os.path.join(os.getcwd(), script)
    if pkgutil.get_importer(path) is not None:  # a folder or zip file with a __main__.py
        _run_module("__main__", alter_argv=False)
        return
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        _refuse(f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}")
    namespace = sys.modules["__main__"].__dict__
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    namespace.update(__file__=path, __cached__=None, __loader__=loader)
    exec(compile(source, path, "exec", dont_inherit=True), namespace)  # noqa: S102 - running it is the task


def _refuse(line: str) -> NoReturn:
    """End as ``python`` does when it cannot open the script."""
    sys.stderr.write(line + "\n")
    raise SystemExit(2)


def _prepare_to_report(error: BaseException, ending: Ending) -> None:
    """Have the interpreter report the exception without our frames, and write torchelastic's error file."""
    if isinstance(error, SystemExit):
        return
    trace = _without_our_frames(error.__traceback__)
    error.__traceback__ = trace
    if isinstance(error, Exception):
        _record(error, ending)
    hook = sys.excepthook

    def report(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        sys.excepthook = hook
        value.__traceback__ = sys.last_traceback = trace
        try:
            hook(kind, value, trace)
        except SystemExit as exit_by_hook:
            ending.script_ended(exit_by_hook)
            raise

    # Raising goes on through our frames and adds them again; this puts them right when the interpreter calls its hook.
    sys.excepthook = report


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _record(error: Exception, ending: Ending) -> None:
    """Write the error file, as ``@record`` would, so that scripts without the decorator have a first traceback too."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    ending.tell_error(error)
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not os.path.exists(file):
        with contextlib.suppress(OSError):  # the disk is full, perhaps
            get_error_handler().record_exception(error)

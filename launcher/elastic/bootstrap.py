"""Turn a forked interpreter into one that runs a script, so that the script cannot tell.

What a script may rely on, and where it comes from: a new ``__main__``; ``sys.argv`` and ``sys.path[0]``; the environment;
``multiprocessing`` as in a process that nobody forked; random states of its own; tracebacks, exit codes, hooks and the end
of the interpreter as under ``python script.py``. What cannot be had in a fork is found by ``why_fresh`` beforehand.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.machinery
import io
import os
import pkgutil
import runpy
import sys
import types
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn

from tlaunch.launcher.process.messages import Work

# Variables that the interpreter and the libraries have read by the time that torch is imported: a fork cannot change them.
_READ_AT_START = (
    "PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "TZ",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "NPY_", "TORCH", "PYTORCH_", "ATEN_",
)  # fmt: skip
# Variables among them that are read later, or that matter to the zygote alone.
_READ_LATER = ("TORCHELASTIC_", "TORCH_NCCL_", "PYTORCH_NVML_BASED_CUDA_CHECK")


def why_fresh(work: Work, start_env: Mapping[str, str]) -> str | None:
    """Return why the work needs a fresh interpreter, or ``None`` if a forked one does.

    ``start_env`` is the environment that the zygote was started with. The working directory is the work's already.
    """
    names = sorted(
        name
        for name in {*work.env, *start_env}
        if name.startswith(_READ_AT_START)
        and not name.startswith(_READ_LATER)
        and work.env.get(name) != start_env.get(name)
    )
    if names:
        return f"started in a fresh interpreter, because {', '.join(names)} differ from the zygote's environment"
    hidden = _hidden_modules(_script_folder(work))
    if hidden:
        where = _script_folder(work)
        return f"started in a fresh interpreter, because {where} has its own {', '.join(hidden)}, which is imported already"
    return None


def become(work: Work) -> None:
    """Run the script or module in this interpreter, returning or raising what it does."""
    _set_environment(work)
    _set_arguments(work)
    _set_multiprocessing()
    _set_random()
    _hide_ourselves()
    _new_main()
    try:
        if work.module:
            runpy._run_module_as_main(work.argv[0])  # noqa: SLF001 - what `python -m` itself calls
        else:
            _run_script(work.argv[0])
    except BaseException as error:
        _prepare_to_report(error)
        raise


def _script_folder(work: Work) -> str:
    """What ``python`` puts in ``sys.path[0]``; the working directory is the script's already."""
    if work.module:
        return os.getcwd()
    path = os.path.realpath(work.argv[0])
    return path if os.path.isdir(path) else os.path.dirname(path)


def _hidden_modules(folder: str) -> list[str]:
    """Return the modules of the script's folder that a module hides which the zygote has imported from elsewhere."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    names = {entry.name.partition(".")[0] for entry in entries if entry.name.endswith(".py")}
    names |= {entry.name for entry in entries if os.path.isfile(os.path.join(entry.path, "__init__.py"))}
    return sorted(name for name in names & sys.modules.keys() if _is_from_elsewhere(sys.modules[name], folder))


def _is_from_elsewhere(module: types.ModuleType, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    # Built-in and frozen modules win over the script's folder in any interpreter.
    if file is None or getattr(module.__spec__, "origin", None) == "frozen":
        return False
    return not os.path.realpath(file).startswith(folder + os.sep)


def _set_environment(work: Work) -> None:
    os.environ.clear()
    os.environ.update(work.full_env())


def _set_arguments(work: Work) -> None:
    sys.argv = list(work.argv)
    sys.orig_argv = [sys.executable, *(["-m"] if work.module else []), *work.argv]
    if not sys.flags.safe_path:
        sys.path[0] = _script_folder(work)
    importlib.invalidate_caches()


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
    sys.modules["__main__"] = main


def _run_script(script: str) -> None:
    if pkgutil.get_importer(script) is not None:  # a folder or zip file with a __main__.py
        runpy._run_module_as_main("__main__", alter_argv=False)  # noqa: SLF001 - what `python folder` itself calls
        return
    path = os.path.abspath(script)
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


def _prepare_to_report(error: BaseException) -> None:
    """Have the interpreter report the exception without our frames, and write torchelastic's error file."""
    trace = _without_our_frames(error.__traceback__)
    error.__traceback__ = trace
    if isinstance(error, Exception):
        _record(error)
    hook = sys.excepthook

    def report(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        sys.excepthook = hook
        value.__traceback__ = sys.last_traceback = trace
        hook(kind, value, trace)

    # Raising goes on through our frames and adds them again; this puts them right when the interpreter calls its hook.
    sys.excepthook = report


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _record(error: Exception) -> None:
    """Write the error file, as ``@record`` would, so that scripts without the decorator have a first traceback too."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not os.path.exists(file):
        get_error_handler().record_exception(error)

"""Whether a forked interpreter can stand in for a fresh one: some things are fixed by the time that torch is imported.

The rule has two parts. Variables that the interpreter or a library reads at its start must have the values that the
zygote was started with. And the script's own folder must not hide a module that the zygote has imported from
somewhere else.
"""

# Paths are text here, as they are for the interpreter and in `sys.path`.
# ruff: noqa: PTH109, PTH113, PTH118, PTH120

from __future__ import annotations

import os
import pkgutil
import sys
import types
from collections.abc import Mapping

from tlaunch.launcher.process.messages import Work

# Variables that the interpreter and the libraries have read by the time that torch is imported: a fork cannot change
# them.
_READ_AT_START = (
    "PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "TZ",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "NPY_", "TORCH", "PYTORCH_", "ATEN_",
)  # fmt: skip
# Variables that are read when a CUDA context is made.
_READ_BY_CUDA = ("CUDA_",)
# Variables among them that are read later, or that matter to the zygote alone.
_READ_LATER = ("TORCHELASTIC_", "TORCH_NCCL_", "PYTORCH_NVML_BASED_CUDA_CHECK")


def why_fresh(work: Work, start_env: Mapping[str, str], *, has_cuda_context: bool) -> str | None:
    """Return why the work needs a fresh interpreter, or ``None`` if a forked one does.

    ``start_env`` is the environment that the zygote was started with. The working directory is the work's already.
    """
    fixed = _READ_AT_START + (_READ_BY_CUDA if has_cuda_context else ())
    names = sorted(
        name
        for name in {*work.env, *start_env}
        if name.startswith(fixed) and not name.startswith(_READ_LATER) and work.env.get(name) != start_env.get(name)
    )
    if names:
        return f"started in a fresh interpreter, because {', '.join(names)} differ from the zygote's environment"
    folder = script_folder(work)
    hidden = ", ".join(_hidden_modules(folder))
    if hidden:
        return f"started in a fresh interpreter, because the zygote has imported another {hidden} than {folder} has"
    return None


def script_folder(work: Work) -> str:
    """What ``python`` puts in ``sys.path[0]``; the working directory is the script's already."""
    if work.module:
        return os.getcwd()
    script = os.path.join(os.getcwd(), work.argv[0])
    if pkgutil.get_importer(script) is not None:  # a folder or zip file with a __main__.py
        return script
    return os.path.dirname(os.path.realpath(script))


def _hidden_modules(folder: str) -> list[str]:
    """Return the modules in the script's folder that go by a name which the zygote has imported from elsewhere."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    names = {entry.name.partition(".")[0] for entry in entries if entry.name.endswith(".py")}
    names |= {entry.name for entry in entries if os.path.isfile(os.path.join(entry.path, "__init__.py"))}
    names &= sys.modules.keys() - {"__main__"}
    return sorted(name for name in names if _is_from_elsewhere(sys.modules[name], folder))


def _is_from_elsewhere(module: types.ModuleType, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    # Built-in and frozen modules win over the script's folder in any interpreter.
    if file is None or getattr(module.__spec__, "origin", None) == "frozen":
        return False
    return not os.path.realpath(file).startswith(folder + os.sep)

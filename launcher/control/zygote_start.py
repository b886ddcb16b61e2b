"""Start a zygote as a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tlaunch.launcher.process.lifeline import Lifeline

# Local agents and their reconnections, all before the zygote has finished its imports.
_BACKLOG = 1024
# How much of a worker's command line `ps` can show.
_TITLE_BYTES = 2000


def zygote_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return ``env`` with the defaults that a zygote needs; make it the base of its workers' environment too.

    Variables that libraries read when they are imported have to agree between zygote and worker, or the worker falls
    back to a fresh interpreter. ``OMP_NUM_THREADS=1`` is torchrun's default for several ranks on a node.
    """
    # Asking NVML keeps `torch.cuda.is_available()` from starting the driver, which would not survive a fork.
    return {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", **env}


def start_zygote(
    socket_path: str, *, env: Mapping[str, str], log_path: str, lifeline: Lifeline
) -> subprocess.Popen[bytes]:
    """Start a zygote that listens at ``socket_path`` and dies with the holder of ``lifeline``.

    Agents may connect as soon as this returns; their requests wait until the zygote has imported torch. The folder
    of the socket must be the user's alone (mode 0700). The caller waits for the process and removes the socket.
    """
    with contextlib.suppress(FileNotFoundError):
        Path(socket_path).unlink()  # of a zygote that is gone
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, Path(log_path).open("ab") as log:
        listener.bind(socket_path)
        listener.listen(_BACKLOG)
        kwargs = lifeline.popen_kwargs()
        fds = {"--listen-fd": listener.fileno(), "--lifeline-fd": lifeline.read_fd}
        kwargs["pass_fds"] = tuple(fds.values())
        arguments = [f"{option}={fd}" for option, fd in fds.items()]
        room = f"--room={'.' * _TITLE_BYTES}"
        command = [sys.executable, "-m", "tlaunch.launcher.elastic.zygote", *arguments, room]
        process = subprocess.Popen[bytes](
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=os.sep, **kwargs
        )
    lifeline.guard(process.pid)
    return process

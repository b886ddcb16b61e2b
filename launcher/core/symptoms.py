"""What a failed process has said, and what that tells: a lost peer, broken hardware, or a place in the script."""

from __future__ import annotations

import re

LOST_PEER = (
    # sockets, as gloo, the TCPStore, NCCL and Python put it
    "Connection reset by peer",
    "Connection closed by peer",
    "Connection refused",
    "Connection timed out",
    "Broken pipe",
    "Connection was likely closed",
    "Socket unexpectedly closed",
    "Remote peer closed the connection",
    # gloo
    "Timed out waiting",
    "Application timeout caused pair closure",
    "failed to pass monitoredBarrier",
    "successfully reached monitoredBarrier",
    # the store of rank 0
    "Socket Timeout",
    "wait timeout after",
    "Wait timeout",
    "seconds waiting for clients",
    "client socket has timed out",
    "failed to connect/validate to host",
    # NCCL and its watchdog
    "remote process exit",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
    "NCCL operations have failed or timed out",
    "watchdog got stuck",
    "dump signal",
)
"""What a process says that has lost another one: gloo's and the store's words were provoked with torch 2.13, NCCL's are
those of ``ProcessGroupNCCL.cpp`` and of ``ncclGetErrorString``."""

BROKEN = (
    "uncorrectable ECC",
    "uncorrectable NVLink",
    "GPU is lost",
    "fallen off the bus",
    "GPU requires reset",
)
"""What CUDA and NVML say of a GPU that is broken, whatever the script does."""

ACCELERATOR = (
    "CUDA error",
    "CUDA driver error",
    "CUDA-capable device",
    "CUDNN_STATUS",
    "cuDNN error",
    "CUBLAS_STATUS",
    "CUSOLVER_STATUS",
    "HIP error",
    "AcceleratorError",
    "device-side assert",
    "NCCL error",
    "DistBackendError",
    "Input/output error",
)
"""What may be the GPU, the network, the disk or the script: where it follows the rank to another slot, the script."""

_FRAME = re.compile(r'^\s*File "(?P<file>.+?)", line (?P<line>\d+)(?:, in (?P<function>.+))?$', re.MULTILINE)
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib/python\d|^<frozen ")
_VARYING = re.compile(r"[\w.+-]*\d[\w.+-]*")
_COMPARED = 400
_BEGINNING = "Traceback (most recent call last):"


def says(words: tuple[str, ...], *texts: str | None) -> bool:
    """Tell whether any of these words stands in any of the texts."""
    return any(word in text for text in texts if text for word in words)


def place(traceback: str) -> str | None:
    """Return ``file:line in function`` of the innermost frame of the last exception that is not a library's.

    Where all frames are a library's, the innermost one; ``None`` when there are no frames.
    """
    last = traceback[max(0, traceback.rfind(_BEGINNING)) :]
    frames = list(_FRAME.finditer(last))
    own = [frame for frame in frames if not _LIBRARY.search(frame["file"])] or frames
    if not own:
        return None
    file, line, function = own[-1].group("file", "line", "function")
    where = f"{file.rpartition('/')[2]}:{line}"
    return f"{where} in {function}" if function else where


def alike(message: str) -> str:
    """Return the beginning of a message without what differs from try to try: numbers, addresses, random names."""
    return _VARYING.sub("#", message[:_COMPARED])

"""How a worker ended, in torchelastic's terms. Runs in the zygote, which has torch."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Mapping
from typing import Any

from torch.distributed.elastic import events
from torch.distributed.elastic.events.api import Event, EventMetadataValue, EventSource
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tlaunch.launcher.process.messages import Exit

# A traceback ends with what matters, and a recursion error has a thousand frames.
_TRACEBACK_CHARACTERS = 1 << 16


def describe_end(pid: int, code: int, env: Mapping[str, str]) -> Exit:
    """Describe the end of a worker that ran with ``env`` (empty for a standby that never started).

    ``code`` is the exit code, or minus the signal's number. Records torchelastic's event for the worker's end.
    """
    failure = _failure(pid, code, env) if code else None
    if env:
        _record_event(pid, code, env, failure)
    if failure is None:
        return Exit(code=0)
    return Exit(
        code=code if code > 0 else None,
        signal=-code if code < 0 else None,
        message=_message(failure),
        traceback=_traceback(failure),
        error_file=env.get("TORCHELASTIC_ERROR_FILE") if failure.error_file != "<N/A>" else None,
        timestamp=failure.timestamp,
    )


def _failure(pid: int, code: int, env: Mapping[str, str]) -> ProcessFailure:
    local_rank = env.get("LOCAL_RANK", "")
    describe = functools.partial(ProcessFailure, int(local_rank) if local_rank.isdecimal() else -1, pid, code)
    try:
        return describe(env.get("TORCHELASTIC_ERROR_FILE", ""))
    except (OSError, ValueError, KeyError, TypeError):  # killed while it wrote the file, or a file of another form
        return describe("")


def _message(failure: ProcessFailure) -> str:
    # The annotation says str, but what the standard handler writes is a dictionary.
    message: Any = failure.message
    return str(message.get("message", "")) if isinstance(message, dict) else message


def _traceback(failure: ProcessFailure) -> str | None:
    message: Any = failure.message
    if not isinstance(message, dict):
        return None
    text = message.get("extraInfo", {}).get("py_callstack")
    return str(text)[-_TRACEBACK_CHARACTERS:] if text else None


def _record_event(pid: int, code: int, env: Mapping[str, str], failure: ProcessFailure | None) -> None:
    state = "FAILED" if failure else "SUCCEEDED"
    metadata: dict[str, EventMetadataValue] = {
        "run_id": env.get("TORCHELASTIC_RUN_ID"),
        "global_rank": env.get("RANK"),
        "group_rank": env.get("GROUP_RANK"),
        "local_rank": env.get("LOCAL_RANK"),
        "role": env.get("ROLE_NAME"),
        "hostname": socket.gethostname(),
        "state": state,
        "worker_pid": pid,
        "exit_code": code,
        "raw_error": _message(failure) if failure else None,
        "agent_restarts": env.get("TORCHELASTIC_RESTART_COUNT"),
    }
    event = Event(f"torchelastic.worker.status.{state}", EventSource.WORKER, metadata=metadata)
    # The variable that torchrun reads its --event-log-handler from. A handler that is not registered here is no
    # reason to fail.
    with contextlib.suppress(KeyError):
        events.record(event, env.get("PET_EVENT_LOG_HANDLER", "null"))

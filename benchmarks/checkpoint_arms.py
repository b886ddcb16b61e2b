"""The ways to save a training state that ``benchmarks/checkpoint.py`` compares."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save

from tlaunch.checkpoint import Checkpointer, Keep

State: TypeAlias = dict[str, Any]
PATIENCE = 60.0


class Arm(Protocol):
    """One way to save. ``save`` and ``before_step`` are what training waits for."""

    def save(self, step: int) -> None:
        """Begin to save; the training goes on when this returns."""

    def before_step(self) -> None:
        """Return when the optimizer may change the state."""

    def wait(self) -> None:
        """Return when the last save is where it stays."""

    def done(self) -> bool:
        """Whether it is."""
        ...

    def close(self) -> None:
        """Let go of everything."""


class Tlaunch:
    """Our own."""

    def __init__(self, folder: Path, state: State) -> None:
        self._checkpointer = Checkpointer(folder, keep=Keep(last=1))
        self._state = state
        self._future: Future[bool] = Future()

    def save(self, step: int) -> None:
        self._future = self._checkpointer.save(step, self._state)

    def before_step(self) -> None:
        self._checkpointer.wait_captured()  # the hook of the optimizer does the same

    def wait(self) -> None:
        assert self._future.result(PATIENCE)

    def done(self) -> bool:
        return self._future.done()

    def close(self) -> None:
        self._checkpointer.close()


class TorchSave:
    """``torch.save``, synced to the disk: everything is waited for."""

    def __init__(self, folder: Path, state: State) -> None:
        self._path, self._state = folder / "state.pt", state

    def save(self, step: int) -> None:
        draft = self._path.with_suffix(".draft")
        with draft.open("wb") as file:
            torch.save({**plain(self._state), "step": step}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)

    def before_step(self) -> None:
        pass

    wait = before_step
    close = before_step

    def done(self) -> bool:
        return True


class Dcp:
    """``dcp.async_save`` with its stager kept, staging beside the training, and plans cached."""

    def __init__(self, folder: Path, state: State, kind: AsyncCheckpointerType) -> None:
        shared = kind is AsyncCheckpointerType.PROCESS
        options = StagingOptions(
            use_pinned_memory=False, use_shared_memory=shared, use_async_staging=True, use_non_blocking_copy=False
        )
        self._stager = DefaultStager(options)
        self._folder, self._state, self._kind = folder, state, kind
        self._saved: AsyncSaveResponse | None = None

    def save(self, step: int) -> None:
        response = async_save(
            plain(self._state),
            storage_writer=FileSystemWriter(self._folder / str(step)),
            planner=DefaultSavePlanner(enable_plan_caching=True),
            async_checkpointer_type=self._kind,
            async_stager=self._stager,
        )
        assert isinstance(response, AsyncSaveResponse)
        self._saved = response

    def before_step(self) -> None:
        if self._saved is not None:
            self._saved.staging_completion.result(PATIENCE)

    def wait(self) -> None:
        if self._saved is not None:
            self._saved.upload_completion.result(PATIENCE)
        for old in sorted(self._folder.iterdir(), key=lambda path: int(path.name))[:-1]:
            shutil.rmtree(old)

    def done(self) -> bool:
        return self._saved is None or self._saved.upload_completion.done()

    def close(self) -> None:
        self._stager.close()


class Dlrover:
    """DLRover's flash checkpoint: training waits for a copy to shared memory, which a process writes, unsynced."""

    def __init__(self, folder: Path, state: State) -> None:
        flash = importlib.import_module("dlrover.trainer.torch.flash_checkpoint.ddp")
        self._checkpointer = flash.DdpCheckpointer(str(folder))
        self._folder, self._state, self._step = folder, state, 0
        self._tracker = (
            folder / importlib.import_module("dlrover.python.common.constants").CheckpointConstant.TRACER_FILE_NAME
        )

    def save(self, step: int) -> None:
        self._step = step
        self._checkpointer.save_checkpoint(step, plain(self._state))

    def before_step(self) -> None:
        pass

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"step {self._step} is not in {self._tracker}")
            time.sleep(0.005)  # it tells nobody
        for old in self._folder.glob("[0-9]*"):
            if int(old.name) != self._step:
                shutil.rmtree(old)

    def done(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return int(self._tracker.read_text()) == self._step
        return self._step == 0

    def close(self) -> None:
        # Its saver is a daemon of this process, and ends with it.
        pass


class Nvrx:
    """NVIDIA's resiliency extension: ``torch.save`` in a process of its own."""

    def __init__(self, folder: Path, state: State) -> None:
        module = importlib.import_module("nvidia_resiliency_ext.checkpointing.async_ckpt.torch_ckpt")
        self._checkpoint = module.TorchAsyncCheckpoint()
        self._folder, self._state = folder, state

    def save(self, step: int) -> None:
        self._checkpoint.async_save(plain(self._state), str(self._folder / f"{step}.pt"))

    def before_step(self) -> None:
        pass

    def wait(self) -> None:
        self._checkpoint.finalize_async_save(blocking=True)

    def done(self) -> bool:
        self._checkpoint.finalize_async_save(blocking=False)
        return bool(self._checkpoint._async_calls_queue.get_num_unfinalized_calls() == 0)  # noqa: SLF001 - no other way

    def close(self) -> None:
        self._checkpoint.finalize_async_save(blocking=True, terminate=True)


def plain(state: State) -> State:
    """Return the state dicts of a model and its optimizer, for those who save mappings."""
    return {"model": state["model"].state_dict(), "optimizer": state["optimizer"].state_dict()}


ARMS: dict[str, Callable[[Path, State], Arm]] = {
    "tlaunch": Tlaunch,
    "torch.save + fsync": TorchSave,
    "dcp, thread": lambda folder, state: Dcp(folder, state, AsyncCheckpointerType.THREAD),
    "dcp, process": lambda folder, state: Dcp(folder, state, AsyncCheckpointerType.PROCESS),
    "DLRover": Dlrover,
    "NVRx": Nvrx,
}

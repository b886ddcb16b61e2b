"""Which way tensors on a GPU take, and in which order: with a stand-in for CUDA, which this machine may not have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tlaunch.checkpoint import capture as capturing
from tlaunch.checkpoint import gpu
from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.capture import Capture, Target
from tlaunch.checkpoint.slices import held


class Cuda:
    """Notes what is asked of it; every second tensor that is seen lies on it."""

    def __init__(self, error: int = 0) -> None:
        self.asked: list[str] = []
        self.error = error

    def cudart(self) -> Cuda:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - CUDA's
        assert address % 4096 == 0
        self.asked.append(f"register {size} {flags}")
        return self.error

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's
        assert address % 4096 == 0
        self.asked.append("unregister")
        return 0

    def current_stream(self, device: torch.device) -> Stream:
        del device
        return Stream(self, "current")

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.asked.append(f"{stream.name} copies")
        yield


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self._cuda, self.name = cuda, name

    def wait_stream(self, other: Stream) -> None:
        self._cuda.asked.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Event) -> None:
        del event
        self._cuda.asked.append(f"{self.name} waits for the event")


class Event:
    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def record(self, stream: Stream) -> None:
        self._cuda.asked.append(f"event after {stream.name}")

    def synchronize(self) -> None:
        self._cuda.asked.append("the copier waits for the event")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Put the stand-in where torch's CUDA is; tensors with an even number of elements lie on it."""
    cuda = Cuda()
    for name in ("cudart", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(cuda, "side"))  # noqa: ARG005 - there is one
    monkeypatch.setattr(torch.cuda, "Event", lambda *, blocking: Event(cuda) if blocking else None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    for module in (gpu, capturing):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: tensor.numel() % 2 == 0)
    return cuda


def target(begin: int, *numbers: float) -> Target:
    part: Any = held("x", torch.tensor(numbers))
    return Target(part, begin, part.size)


def test_copies_from_a_gpu_run_beside_and_the_optimizer_s_stream_waits(cuda: Cuda) -> None:
    arena = Arena.make(4096)
    with ThreadPoolExecutor(1) as copiers:
        for round_ in (0.0, 1.0):
            now = [target(0, 1.0 + round_, 2.0), target(64, 3.0)]
            later = [target(128, 4.0 + round_, 5.0), target(192, 6.0)]
            capture = Capture(arena, now, later, copiers)
            capture.done.result(60.0)
            before = list(cuda.asked)
            capture.wait()
            assert cuda.asked == [*before, "current waits for the event"]
            assert torch.frombuffer(arena.view, dtype=torch.float32)[:2].tolist() == [1.0 + round_, 2.0]
            assert [torch.frombuffer(arena.view, dtype=torch.float32, offset=at)[0] for at in (64, 128, 192)] == [
                3.0,
                4.0 + round_,
                6.0,
            ]
    once = ["side waits for current", "side copies", "side copies", "event after side"]
    ends = ["the copier waits for the event", "current waits for the event"]
    assert cuda.asked == ["register 4096 1", *once, *ends, *once, *ends]
    arena.close()
    assert cuda.asked[-1] == "unregister"


def test_memory_that_cannot_be_pinned_is_used_as_it_is(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kernel(count: int, device: str) -> None:
        cuda.asked.append(f"a kernel on {device} for {count}")
        raise RuntimeError("CUDA error: the one before")

    cuda.error = 2
    monkeypatch.setattr(torch, "zeros", kernel)
    arena = Arena.make(4096)
    gpu.pin(arena)
    gpu.pin(arena)
    arena.close()
    assert cuda.asked == ["register 4096 1", "a kernel on cuda for 1"], "the error is not left to the training"
    assert "cannot be pinned, CUDA error 2" in caplog.text


def test_without_a_gpu_nothing_is_pinned() -> None:
    arena = Arena.make(4096)
    with ThreadPoolExecutor(1) as copiers:
        capture = Capture(arena, [target(0, 1.0)], [target(64, 2.0, 3.0)], copiers)
        capture.wait()
        capture.done.result(60.0)
    assert not arena.before_close
    arena.close()

"""What the words of a failed process mean. Those of gloo and of the store are what torch 2.13 really said."""

from __future__ import annotations

import pytest

from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.symptoms import alike, place

SCRIPT = """Traceback (most recent call last):
  File "/home/user/train.py", line 70, in <module>
    main()
  File "/home/user/train.py", line 62, in main
    loss = model(batch)
           ^^^^^^^^^^^^
  File "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1779, in _call_impl
    return forward_call(*args, **kwargs)
  File "/home/user/model.py", line 12, in forward
    return torch.cat(parts)
  File "/opt/venv/lib/python3.11/site-packages/torch/functional.py", line 3, in cat
    raise RuntimeError("Sizes of tensors must match")
RuntimeError: Sizes of tensors must match"""


@pytest.mark.parametrize(
    "words",
    [
        "[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:29394: Connection reset by peer.",
        "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:28578.",
        "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete",
        "[Rank 0]: Rank 2 failed to pass monitoredBarrier in 3000 ms",
        "Rank 1 successfully reached monitoredBarrier, but received errors while waiting for send/recv from rank 0.",
        "Broken pipe",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
        "wait timeout after 3000ms, keys: /default_pg/0//cpu//0/0",
        "Timed out after 4 seconds waiting for clients. 2/3 clients joined.",
        "Socket Timeout",
        "The client socket has timed out after 60000ms while trying to connect to (127.0.0.1, 29500).",
        "[Errno 111] Connection refused",
        "NCCL communicator was aborted on rank 1.",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for 600000 ms",
        "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    ],
)
def test_a_victim_says_that_it_has_lost_a_peer(words: str) -> None:
    assert Exit(code=1, message=f"RuntimeError: {words}").lost_peer
    assert Exit(signal=6, output=f"[rank1]: {words}\nterminate called").lost_peer, (
        "it was aborted and left no traceback"
    )
    assert Exit(code=1, output=f"giving up: {words}").lost_peer, "it caught the exception and said so"
    chained = f"Traceback ...\nRuntimeError: {words}\n\nDuring handling ...\nTraceback ...\nValueError: step 3 failed"
    assert Exit(code=1, message="ValueError: step 3 failed", traceback=chained).lost_peer


@pytest.mark.parametrize(
    "ended",
    [
        Exit(code=1, message="ValueError: the loss is not a number", traceback=SCRIPT),
        Exit(
            code=1,
            message="ValueError: bad",
            traceback=SCRIPT,
            output="warning: Connection reset by peer, trying again",
        ),
        Exit(code=7),
        Exit(signal=9, output="step 12"),
        Exit(),
    ],
)
def test_others_do_not(ended: Exit) -> None:
    assert not ended.lost_peer


def test_a_broken_gpu_is_no_lost_peer_whatever_else_is_said() -> None:
    words = "CUDA error: uncorrectable ECC error encountered; NCCL communicator was aborted"
    for ended in (Exit(code=1, message=words, traceback=SCRIPT), Exit(signal=6, output=words)):
        assert ended.broken
        assert not ended.lost_peer
        assert ended.bug is None


def test_the_place_is_the_innermost_one_of_the_script() -> None:
    assert place(SCRIPT) == "model.py:12 in forward"
    syntax = 'Traceback (most recent call last):\n  File "train.py", line 3\n    def\nSyntaxError: invalid syntax'
    assert place(syntax) == "train.py:3"
    library = (
        'Traceback (most recent call last):\n  File "/usr/lib/python3.11/json/decoder.py", line 9, in decode\nE: x'
    )
    assert place(library) == "decoder.py:9 in decode"
    assert place("Traceback (most recent call last):\nValueError: nowhere") is None


def test_of_chained_exceptions_the_last_one_counts() -> None:
    chained = f"{SCRIPT}\n\nDuring handling of the above exception, another exception occurred:\n\n{SCRIPT}"
    chained = chained.replace("model.py", "first.py", 1)
    assert place(chained) == "model.py:12 in forward"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<Thing object at 0x7f12ab>", "<Thing object at 0x7fed00>"),
        ("step 17: loss 3.5e-7", "step 9: loss 1.25"),
        ("no file /tmp/tmp8xk2/a1", "no file /tmp/tmp91bb/a1"),
    ],
)
def test_numbers_and_addresses_make_no_difference(one: str, other: str) -> None:
    assert alike(one) == alike(other)


def test_a_bug_is_its_exception_and_its_place() -> None:
    bug = Exit(code=1, message="RuntimeError: Sizes of tensors must match: 4 != 5", traceback=SCRIPT).bug
    assert bug == "RuntimeError: Sizes of tensors must match: # != # (model.py:12 in forward)"
    assert Exit(code=1, message="RuntimeError: Sizes").bug is None, "without a place it could be anywhere"
    assert Exit(signal=11, output=SCRIPT).bug is None


@pytest.mark.parametrize(
    "message",
    [
        "torch.AcceleratorError: CUDA error: device-side assert triggered",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled system error",
        "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "OSError: [Errno 5] Input/output error: 'data.bin'",
        "RuntimeError: Connection closed by peer",
    ],
)
def test_what_may_be_the_hardwares_or_a_peers_is_no_bug(message: str) -> None:
    assert Exit(code=1, message=message, traceback=SCRIPT).bug is None


def test_running_out_of_gpu_memory_is_a_bug() -> None:
    one = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 79.1 GiB"
    other = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 24.00 MiB. GPU 3 has 79.1 GiB"
    bugs = [Exit(code=1, message=message, traceback=SCRIPT).bug for message in (one, other)]
    assert bugs[0] is not None
    assert bugs[0] == bugs[1]

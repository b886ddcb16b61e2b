"""What the stack of a rank tells of where it stands."""

from __future__ import annotations

import pytest

from tlaunch.launcher.core.stacks import KEPT_STACK, Frame, as_text, parse, stands_at, waits_in

LIB = "/usr/lib/python3.11"
TORCH = f"{LIB}/site-packages/torch"
OURS = (
    Frame("/opt/tlaunch/launcher/elastic/bootstrap.py", 51, "become"),
    Frame("/opt/tlaunch/launcher/elastic/zygote.py", 240, "main"),
    Frame("<frozen runpy>", 88, "_run_code"),
)
MAIN = Frame("/home/user/train.py", 57, "<module>")
LOAD = Frame("/home/user/data.py", 9, "load_batch")


def dump(*frames: Frame, header: str = "Stack") -> str:
    lines = [f'  File "{frame.file}", line {frame.line} in {frame.function}' for frame in frames]
    return "\n".join([f"{header} (most recent call first):", *lines, ""])


def test_the_last_stack_counts_without_the_launchers_own_frames() -> None:
    assert parse(dump(LOAD, *OURS) + dump(MAIN, *OURS)) == (MAIN,)
    assert parse(dump(LOAD, MAIN, *OURS, header="Current thread 0x00007f2f [python]")) == (LOAD, MAIN)
    assert parse("") == ()
    assert parse("Stack (most recent call first):\n  <no Python frame>\n") == ()


def test_a_place_is_in_the_script_and_not_in_a_library() -> None:
    sleep = Frame(f"{LIB}/threading.py", 327, "wait")
    assert stands_at((sleep, LOAD, MAIN)) == "data.py:9 in load_batch"
    assert stands_at(()) is None
    assert as_text((LOAD, MAIN)).splitlines() == [
        "Stack (most recent call last):",
        '  File "/home/user/train.py", line 57, in <module>',
        '  File "/home/user/data.py", line 9, in load_batch',
    ]


def test_of_a_deep_stack_the_innermost_calls_are_kept() -> None:
    deep = (LOAD, *(Frame("/home/user/train.py", number, "again") for number in range(1000)))
    assert len(as_text(deep)) < KEPT_STACK + 100
    assert stands_at(deep) == "data.py:9 in load_batch"


C10D = Frame(f"{TORCH}/distributed/distributed_c10d.py", 2940, "all_reduce")
WRAPPER = Frame(f"{TORCH}/distributed/c10d_logger.py", 81, "wrapper")
BACKWARD = (
    Frame(f"{TORCH}/autograd/graph.py", 841, "_engine_run_backward"),
    Frame(f"{TORCH}/autograd/__init__.py", 347, "backward"),
    Frame(f"{TORCH}/_tensor.py", 626, "backward"),
)
FUNCTIONAL = (
    Frame(f"{TORCH}/_ops.py", 1158, "__call__"),
    Frame(f"{TORCH}/distributed/_functional_collectives.py", 120, "wait_tensor"),
)
INIT = (
    Frame(f"{TORCH}/distributed/rendezvous.py", 185, "_create_c10d_store"),
    Frame(f"{TORCH}/distributed/distributed_c10d.py", 1717, "init_process_group"),
    Frame(f"{TORCH}/distributed/c10d_logger.py", 95, "wrapper"),
)


@pytest.mark.parametrize(
    ("inner", "called"),
    [
        ((C10D, WRAPPER), "all_reduce"),
        (BACKWARD, "backward"),
        (FUNCTIONAL, "wait_tensor"),
        (INIT, "init_process_group"),
        ((Frame(f"{TORCH}/cuda/__init__.py", 1040, "synchronize"),), "synchronize"),
        ((LOAD,), None),
        ((LOAD, *BACKWARD), None),  # a function of the script's own, called by the backward pass
        ((Frame(f"{TORCH}/nn/modules/linear.py", 125, "forward"),), None),
        ((Frame(f"{TORCH}/utils/data/dataloader.py", 1251, "_try_get_data"),), None),
        ((Frame(f"{TORCH}/distributed/checkpoint/filesystem.py", 300, "write_data"),), None),
        ((Frame(f"{TORCH}/_ops.py", 1158, "__call__"),), None),
        ((), None),
    ],
)
def test_a_rank_waits_for_others_in_a_collective_and_in_what_waits_for_one(
    inner: tuple[Frame, ...], called: str | None
) -> None:
    assert waits_in((*inner, MAIN) if inner else ()) == called

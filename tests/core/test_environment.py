from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from tlaunch.errors import InputError
from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.launcher.core.environment import visible_devices, worker_environment
from tlaunch.topology.model import Node

NODE = Node("node-03", 4)
GENERATION = Generation(3, world_size=6, group_world_size=2, restarts=1, max_restarts=5)


def assignment(*indices: int) -> Assignment:
    seats = tuple(AssignedSeat(4 + local, index, local, since=3) for local, index in enumerate(indices))
    return Assignment(3, 1, seats)


def environment(
    base: dict[str, str], *indices: int, local_rank: int = 0, node: Node = NODE, gpus: bool = False
) -> dict[str, str]:
    given = assignment(*indices)
    return worker_environment(
        base,
        generation=GENERATION,
        assignment=given,
        seat=given.seats[local_rank],
        node=node,
        master=("10.0.0.7", 29517),
        job_id="gpt",
        error_file="/logs/error.json",
        gpus=gpus,
    )


def test_the_contract_of_torchrun_is_complete() -> None:
    base = {"PATH": "/bin", "RANK": "99", "WORLD_SIZE": "99", "MASTER_PORT": "1"}
    assert environment(base, 1, 2, local_rank=1) == {
        "PATH": "/bin",
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_NAME": "default",
        "ROLE_RANK": "5",
        "ROLE_WORLD_SIZE": "6",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "29517",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_MAX_RESTARTS": "5",
        "TORCHELASTIC_RUN_ID": "gpt",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": "/logs/error.json",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "OMP_NUM_THREADS": "1",
        "TLAUNCH_JOB_ID": "gpt",
        "TLAUNCH_GENERATION": "3",
        "TLAUNCH_SLOT": "node-03/gpu-2",
    }


def test_the_installed_torchrun_sets_nothing_that_is_missing_here() -> None:
    torch = importlib.util.find_spec("torch")  # finds it without importing it
    assert torch is not None
    assert torch.origin is not None
    source = Path(torch.origin).parent / "distributed/elastic/agent/server/local_elastic_agent.py"
    (contract,) = (
        node.value
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Dict)
        and any(isinstance(key, ast.Constant) and key.value == "GROUP_RANK" for key in node.value.keys)
    )
    keys = {ast.literal_eval(key) for key in contract.keys if key is not None}
    assert len(keys) > 10
    assert environment({}, 0).keys() >= keys


def test_what_torchrun_leaves_to_the_user_is_left_to_the_user() -> None:
    base = {"OMP_NUM_THREADS": "8", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3"}
    assert environment(base, 0, 1).items() >= base.items()


def test_threads_are_limited_by_the_slots_of_the_node_not_by_the_ranks_of_the_moment() -> None:
    assert environment({}, 0)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment({}, 0, node=Node("node-03", 1))


@pytest.mark.parametrize(
    ("inherited", "indices", "expected"),
    [
        (None, (0, 1, 2, 3), None),
        (None, (0, 1), None),
        (None, (0, 2, 3), "0,2,3,1"),
        (None, (3,), "3,0,1,2"),
        ("4,5,6,7", (0, 1), "4,5,6,7"),
        ("4,5,6,7", (1, 2), "5,6,4,7"),
        ("GPU-a, GPU-b,GPU-c,GPU-d", (2,), "GPU-c,GPU-a,GPU-b,GPU-d"),
        ("0,1,2,3,4,5", (1, 3), "1,3,0,2,4,5"),
    ],
)
def test_local_rank_is_the_index_of_the_ranks_gpu(
    inherited: str | None, indices: tuple[int, ...], expected: str | None
) -> None:
    assert visible_devices(inherited, NODE, assignment(*indices)) == expected
    base = {} if inherited is None else {"CUDA_VISIBLE_DEVICES": inherited}
    assert environment(base, *indices, gpus=True).get("CUDA_VISIBLE_DEVICES") == expected
    before = (inherited or "0,1,2,3").replace(" ", "").split(",")
    after = (expected or "0,1,2,3").split(",")
    assert sorted(after) == sorted(before)
    assert [after[local] for local in range(len(indices))] == [before[index] for index in indices]


@pytest.mark.parametrize("inherited", ["", "0", "GPU-a,GPU-b,"])
def test_fewer_gpus_than_slots_is_one_clear_line(inherited: str) -> None:
    with pytest.raises(InputError, match=r"^node-03: CUDA_VISIBLE_DEVICES='.*' shows \d GPUs, expected 4 or more$"):
        environment({"CUDA_VISIBLE_DEVICES": inherited}, 0, gpus=True)


def test_without_gpus_the_list_is_left_alone() -> None:
    assert environment({"CUDA_VISIBLE_DEVICES": ""}, 2)["CUDA_VISIBLE_DEVICES"] == ""

"""Simulated agents on a real etcd: they find together, learn of a swap, and get over the loss of their controller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "rendezvous.py"


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What a small and a larger job need; the benchmark fails when either does not come to its end."""
    path = tmp_path_factory.mktemp("rendezvous") / "measured.json"
    command = [
        sys.executable,
        str(BENCHMARK),
        "--agents",
        "18,72",
        "--peers",
        "",
        "--repeats",
        "1",
        "--json",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return {each["agents"]: each for each in json.loads(path.read_text())["agents"]}


def test_a_swap_writes_as_much_in_a_large_job_as_in_a_small_one(rounds: dict[int, dict[str, Any]]) -> None:
    small, large = (rounds[agents]["counts"]["swap"] for agents in (18, 72))
    # The report, the plan, its head, two assignments, two acknowledgements, and at most the rendezvous.
    assert small["writes"] == large["writes"] <= 8
    assert abs(large["written"] - small["written"]) < 100, "bytes"
    assert large["reads"] <= small["reads"] + 5, "nobody reads for whom nothing has changed"


def test_the_loss_of_a_controller_writes_as_much_in_a_large_job_as_in_a_small_one(
    rounds: dict[int, dict[str, Any]],
) -> None:
    for agents in (18, 72):
        # The leader, the plan, its head, and for 4 ranks at most 4 new nodes and as many acknowledgements.
        assert rounds[agents]["counts"]["controller"]["writes"] <= 13


def test_a_start_writes_a_few_keys_for_each_node(rounds: dict[int, dict[str, Any]]) -> None:
    for agents in (18, 72):
        assert rounds[agents]["counts"]["start"]["writes"] <= 4 * agents + 5


def test_an_agent_at_rest_renews_its_lease_and_asks_little_else(rounds: dict[int, dict[str, Any]]) -> None:
    for agents in (18, 72):
        rest = rounds[agents]["counts"]["rest"]
        # In 2 s: a keepalive each 1.33 s, and the watch is asked once in 5 s, that of the controller and ours besides.
        assert agents <= rest["keepalives"] <= 2 * agents + 2
        assert rest["sent on watches"] <= agents + 5
        assert rest["writes"] == rest["transactions"] == 0

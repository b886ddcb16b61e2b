from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_s_training_goes_on_where_it_was(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    code = next(block for block in blocks if "Checkpointer" in block).replace("/data/run7", str(tmp_path))
    weights: list[float] = []

    def train_one_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        weights.append(float(next(model.parameters()).detach().sum()))
        optimizer.step()

    for steps in (200, 201):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        exec(code, {"model": model, "optimizer": optimizer, "train_one_step": train_one_step, "steps": steps})
    assert len(weights) == 201
    assert abs(weights[200] - weights[199] + 1.0) < 1e-3  # two weights, of which each goes down by half

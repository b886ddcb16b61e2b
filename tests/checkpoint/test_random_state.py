"""States of random number generators that another version may have saved."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tlaunch.checkpoint.random_state import State, capture, restore


@pytest.mark.parametrize(
    ("name", "what", "changed"),
    [
        ("Python", "python", (3, (1, 2, 3), None)),  # with its keys among its values, as it once was
        ("Python", "python_keys", torch.zeros(3, dtype=torch.uint32)),
        ("torch", "torch", torch.zeros(7, dtype=torch.uint8)),
        ("NumPy", "numpy", {"kind": "PCG64"}),
    ],
)
def test_one_of_another_form_is_left_as_it_is_and_the_others_go_on(
    name: str, what: str, changed: object, caplog: pytest.LogCaptureFixture
) -> None:
    def draw() -> State:
        drawn = float(np.random.random())  # noqa: NPY002 - the old one has a state
        return {"Python": random.random(), "torch": float(torch.rand(())), "NumPy": drawn}

    saved = capture()
    first = draw()
    later = capture()
    second = draw()
    restore(later)
    restore({**saved, what: changed})
    assert draw() == {**first, name: second[name]}
    assert f"random numbers of {name} cannot be restored, and stays as it is: " in caplog.text
    assert len(caplog.records) == 1

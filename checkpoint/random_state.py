"""The states of random number generators, which every rank has for itself."""

from __future__ import annotations

import array
import logging
import random
import sys
from typing import Any, TypeAlias

import torch

log = logging.getLogger(__name__)

State: TypeAlias = dict[str, Any]


def capture() -> State:
    """Return the states of Python, NumPy where it is loaded, torch and its CUDA devices, as a tree for a checkpoint."""
    version, keys, gauss = random.getstate()
    # As a tensor: in the manifest, which every rank reads, it would be 7 KB for each of them.
    python_keys = torch.frombuffer(array.array("I", keys), dtype=torch.uint32)
    state: State = {"python": (version, gauss), "python_keys": python_keys, "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, gauss = numpy.random.get_state()
        state["numpy"] = {
            "kind": str(kind),
            "keys": torch.from_numpy(keys.copy()),
            "rest": (int(position), int(has_gauss), float(gauss)),
        }
    if torch.cuda.is_initialized():
        state["cuda"] = {str(device): torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())}
    return state


def restore(state: State) -> None:
    """Go on where :func:`capture` was. Generators that the state lacks, or this process, are left as they are.

    So is one whose state has another form, as another version may have given it, and that is logged: by now everything
    else is loaded.
    """
    for name, take_on in (("Python", _python), ("torch", _torch), ("NumPy", _numpy), ("CUDA", _cuda)):
        try:
            take_on(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            log.warning("the state of the random numbers of %s cannot be restored, and stays as it is: %s", name, error)


def _python(state: State) -> None:
    version, gauss = state["python"]
    random.setstate((version, tuple(state["python_keys"].tolist()), gauss))


def _torch(state: State) -> None:
    torch.set_rng_state(state["torch"])


def _numpy(state: State) -> None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        saved = state["numpy"]
        numpy.random.set_state((saved["kind"], saved["keys"].numpy(), *saved["rest"]))


def _cuda(state: State) -> None:
    if torch.cuda.is_initialized():
        for device, generator in state.get("cuda", {}).items():
            if int(device) < torch.cuda.device_count():
                torch.cuda.set_rng_state(generator, int(device))

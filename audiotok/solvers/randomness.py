"""Random states: made from a seed, kept in a checkpoint, taken up again."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, *parts: int) -> None:
    """Seed Python, NumPy and torch with a mix of the experiment's seed and what it is for."""
    words = np.random.SeedSequence([seed, *parts]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def rng_state() -> dict[str, Any]:
    """States of the generators of Python, NumPy, torch and this rank's GPU, as tensors and numbers."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {**numpy, "state": {**numpy["state"], "key": torch.tensor(numpy["state"]["key"].astype(np.int64))}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Take up what `rng_state` gave; on a machine without GPU its state is left out."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def keeping_rng(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The batches, leaving random states as they are: starting a loader draws a number, here for the second time."""
    state: dict[str, Any] | None = rng_state()
    for batch in batches:
        if state is not None:
            set_rng_state(state)
            state = None
        yield batch
    if state is not None:
        set_rng_state(state)

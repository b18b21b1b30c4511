"""Random states: made from a seed, saved to a checkpoint, restored."""

import os
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


def set_deterministic(on: bool) -> None:
    """Choose algorithms that give the same result every time, wherever torch has one; before the GPU is first used."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it takes time
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.backends.cudnn.deterministic = on


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
    """Restore `rng_state`; the GPU's part is ignored on a machine without one."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def keeping_rng(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader that is begun again within an epoch, with random states as they were before it.

    A torch `DataLoader` draws a seed for its workers when its iteration begins. The uninterrupted epoch did so once, at
    its start, and the restored random states are those after it: a second draw must leave no trace.
    """
    state = rng_state()
    iterator = iter(batches)
    first = next(iterator, None)
    set_rng_state(state)
    if first is not None:
        yield first
    yield from iterator

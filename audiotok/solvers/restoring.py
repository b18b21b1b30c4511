"""Whether a checkpoint is of this experiment and of its form, entry by entry, before anything of it is restored."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from audiotok.errors import CheckpointError, first_line
from audiotok.integrity import misfit, misfit_of_moments
from audiotok.solvers.averages import State
from audiotok.solvers.interruption import PROGRESS
from audiotok.solvers.randomness import rng_state

# torch adds keys of optimisers and schedules from version to version; early states of the MMD step hold no norm.
_LOOSE = ("optimizer", "scheduler", "adv_losses", "macro_batch")
_LATER = ("watch",)  # entries that checkpoints of earlier versions lack, whose runs go on without
_PROGRESS: State = {"updates": 0, "stages": {}, "elapsed_s": 0.0, "ranks": []}
_RANK: State = {"averages": {"totals": {}, "counts": {}}}


def check_state(state: State, own: State, path: Path, updates_per_epoch: int) -> None:
    """Check the last checkpoint of an experiment against the state of its solver.

    Args:
        state: the saved state.
        own: the state of the solver.
        path: of the checkpoint.
        updates_per_epoch: of the train stage.

    Raises:
        CheckpointError: if it is of another experiment, or an entry is missing or of another form.
    """
    sig = state.get("xp.sig", own["xp.sig"])
    if sig != own["xp.sig"]:
        raise CheckpointError(
            f"{path} is a checkpoint of experiment {sig!r}, in the folder of {own['xp.sig']}; put it back where it "
            "was, or start from its weights in a new experiment with continue_from=PATH"
        )
    own = {name: entry for name, entry in own.items() if name in state or name not in _LATER}
    missing = [name for name in own if name not in state]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}: it was written under another configuration; "
            "continue from it in a new experiment with continue_from=PATH"
        )
    found = _misfit_of_history(state["history"])
    for name, entry in own.items():
        if name != "history" and not found:
            found = misfit(state[name], entry, name, exact=name not in _LOOSE)
    for name, weights in ({} if found else state["best_state"]).items():
        found = found or misfit(weights, own.get(name, {}), f"best_state.{name}")
    if not found and PROGRESS in state:
        found = _misfit_of_progress(state[PROGRESS], updates_per_epoch)
    if found:
        raise CheckpointError(f"{path} does not fit this experiment: {found}")


def check_moments(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Check that the optimiser, restored from a checkpoint, fits its parameters, else CheckpointError."""
    if found := misfit_of_moments(optimizer):
        raise CheckpointError(f"{path} does not fit this experiment: {found}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Make one line of what a state of the wrong form leads to while it is restored."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this experiment: {first_line(error)}") from error


def _misfit_of_history(history: Any) -> str:
    if not isinstance(history, list):
        return f"history is a {type(history).__name__}, expected a list"
    return next((text for n, epoch in enumerate(history) if (text := _misfit_of_stages(epoch, f"history.{n}"))), "")


def _misfit_of_stages(stages: Any, name: str) -> str:
    form: State = {stage: {} for stage in stages} if isinstance(stages, dict) else {"": {}}
    if found := misfit(stages, form, name):
        return found
    faults = (misfit(metrics, dict.fromkeys(metrics, 0.0), f"{name}.{stage}") for stage, metrics in stages.items())
    return next(filter(None, faults), "")


def _misfit_of_progress(progress: Any, updates_per_epoch: int) -> str:
    found = misfit(progress, _PROGRESS, PROGRESS) or _misfit_of_stages(progress["stages"], f"{PROGRESS}.stages")
    if found:
        return found
    if not progress["ranks"] or not 0 <= progress["updates"] <= updates_per_epoch:
        return f"{PROGRESS} has {len(progress['ranks'])} ranks at update {progress['updates']} of {updates_per_epoch}"
    for number, rank in enumerate(progress["ranks"]):
        name = f"{PROGRESS}.ranks.{number}"
        found = misfit(rank, _RANK, name, exact=False)
        missing = [key for key in _RANK if not isinstance(rank, dict) or key not in rank]
        if missing or found:
            return found or f"{name} lacks {', '.join(missing)}"
        if "rng" in rank and (found := misfit(rank["rng"], rng_state(), f"{name}.rng", exact=False)):
            return found
    return ""

"""Models from files: our training checkpoints and exported files, and files exported by AudioCraft."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from audiotok.checkpoint import PRETRAINED_PREFIX, load_checkpoint, resolve_checkpoint
from audiotok.config_text import read_text
from audiotok.errors import CheckpointError, first_line
from audiotok.integrity import misfit, not_finite

Model = TypeVar("Model", bound=nn.Module)
_REGISTRATIONS = 50  # of modules, parameters and buffers, for each tensor of a network; ours have less than 10


def load_pretrained(
    name: str | Path, device: torch.device | str = "cpu", *, build: Callable[[DictConfig], Model]
) -> Model:
    """Build the model that a file describes and fill in its best weights, ready for use (eval mode).

    Args:
        name: a model that comes with the package (demo), an exported file, a training checkpoint, a folder with
            `checkpoint.th`, //sig/SIG, or any of these after //pretrained/.
        device: where to put the model.
        build: makes a model of the file's configuration. A parameter, so that this module knows no kind of model.

    Raises:
        CheckpointError: if there is no such file, it cannot be read safely, its weights do not fit, or are not finite.
    """
    path = resolve_checkpoint(name)
    state = load_checkpoint(path)
    weights, cfg = best_weights_of(state, path), configuration_of(state, path)
    check_weights(cfg, weights, path, build)
    model = build(cfg)
    model.load_state_dict(weights)
    return model.to(device).eval()


def best_weights_of(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Best weights in the state of a file.

    Raises:
        CheckpointError: naming `path`, if there are none.
    """
    best = state.get("best_state")
    # An exported file, ours or AudioCraft's, holds the weights alone; a checkpoint the best state of each module.
    weights = best if state.get("exported") is True or not isinstance(best, dict) else best.get("model")
    unfinished = isinstance(best, dict) and not best and "progress" in state
    if unfinished and isinstance(state.get("history"), list) and not state["history"]:
        raise CheckpointError(f"{path} holds no best state: its first epoch is not finished; train on, then try again")
    if best is None or (isinstance(best, dict) and not best) or weights is None:
        lacking = "best_state" if "xp.cfg" in state else "best_state, xp.cfg"
        raise CheckpointError(
            f"{path} lacks {lacking}; give a checkpoint of a compression solver or a file made by "
            "audiotok.utils.export.export_encodec"
        )
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} does not hold the weights as a dict of tensors; was it written by a solver?")
    if names := not_finite(weights):
        raise CheckpointError(f"{path} has weights that are not finite ({names}): its training diverged; use another")
    return weights


def configuration_of(state: dict[str, Any], path: Path) -> DictConfig:
    """Configuration in the state of a file, which may be from elsewhere; see `read_text`.

    Raises:
        CheckpointError: naming `path`, if there is none or it cannot be read.
    """
    text = state.get("xp.cfg")
    if text is None or (isinstance(text, str) and not text):
        raise CheckpointError(f"{path} lacks xp.cfg; give a checkpoint of a solver or an exported file")
    if not isinstance(text, str):
        raise CheckpointError(f"{path} holds a {type(text).__name__} as xp.cfg, not the configuration as text")
    try:
        return read_text(text)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be used: {error}; was it written by a solver?") from error


def check_trained(name: str, root: Path | None = None) -> None:
    """Check that the experiment of a signature has trained to its end: until then its best state may become another.

    Args:
        name: as `load_pretrained` reads it; only of //sig/SIG anything is asked.
        root: Dora's folder, for signatures; by default that of this process.

    Raises:
        CheckpointError: if epochs are left, or there is no such checkpoint.
    """
    if not name.removeprefix(PRETRAINED_PREFIX).startswith("//sig/"):
        return
    path = resolve_checkpoint(name, root)
    state = load_checkpoint(path)
    done, cfg = state.get("history"), configuration_of(state, path)
    epochs = (cfg.get("optim") or {}).get("epochs")
    if isinstance(done, list) and isinstance(epochs, int) and len(done) < epochs:
        raise CheckpointError(
            f"{name} is not trained yet: {len(done)} of {epochs} epochs are done; wait for it, or copy {path} and give "
            "the copy"
        )


def check_weights(
    cfg: DictConfig, weights: dict[str, Any], path: Path, build: Callable[[DictConfig], nn.Module]
) -> None:
    """Check that weights fit the network of their configuration, whose size may be any, before it takes memory.

    Raises:
        CheckpointError: naming `path`, if they do not, or no network can be built.
    """
    try:
        with torch.device("meta"), _at_most(_REGISTRATIONS * (len(weights) + 10)):
            own = build(cfg).state_dict()
    except Exception as error:  # whatever a value of the wrong kind leads to: the configuration is the file's
        raise CheckpointError(f"{path} describes no model of this version: {first_line(error)}") from error
    if found := misfit(weights, own):
        raise CheckpointError(f"the weights of {path} do not fit its own configuration: {found}")


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Limit how many modules, parameters and buffers are made; RuntimeError beyond."""
    left = [count]

    def register(module: nn.Module, name: str, value: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("it has more layers than the file has weights")

    registrations = (
        register_module_buffer_registration_hook,
        register_module_module_registration_hook,
        register_module_parameter_registration_hook,
    )
    handles = [registration(register) for registration in registrations]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Models from files: our training checkpoints and exported files, and files exported by AudioCraft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from audiotok.checkpoint import PRETRAINED_PREFIX, load_checkpoint, resolve_checkpoint
from audiotok.errors import CheckpointError

Model = TypeVar("Model", bound=nn.Module)


def load_pretrained(
    name: str | Path, device: torch.device | str = "cpu", *, build: Callable[[DictConfig], Model]
) -> Model:
    """Build the model that a file describes and fill in its best weights, ready for use (eval mode).

    Args:
        name: an exported file, a training checkpoint, a folder with `checkpoint.th`, //sig/SIG, or //pretrained/PATH.
        device: where to put the model.
        build: makes a model of the file's configuration. A parameter, so that this module knows no kind of model.

    Raises:
        CheckpointError: if there is no such file, it cannot be read safely, or its weights do not fit.
    """
    path = resolve_checkpoint(str(name).removeprefix(PRETRAINED_PREFIX))
    state = load_checkpoint(path)
    missing = [key for key in ("best_state", "xp.cfg") if not state.get(key)]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}; give a checkpoint of a compression solver or a file made by "
            "audiotok.utils.export.export_encodec"
        )
    # An exported file, ours or AudioCraft's, holds the weights alone; a checkpoint the best state of each module.
    weights = state["best_state"] if state.get("exported") else state["best_state"].get("model")
    model = build(_configuration(state["xp.cfg"], weights, path))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {path} do not fit its own configuration: {error}") from error
    return model.to(device).eval()


def _configuration(text: Any, weights: Any, path: Path) -> DictConfig:
    if not isinstance(text, str) or not isinstance(weights, dict):
        raise CheckpointError(f"{path} does not hold the configuration as text and the weights as a dict")
    cfg = OmegaConf.create(text)
    if not isinstance(cfg, DictConfig):
        raise CheckpointError(f"{path} holds a configuration that is no mapping; was it written by a solver?")
    return cfg

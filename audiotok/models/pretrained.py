"""Models from files: our exported files and training checkpoints, and files exported by AudioCraft."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from audiotok.checkpoint import load_checkpoint, resolve_checkpoint
from audiotok.errors import CheckpointError
from audiotok.models.builders import get_compression_model
from audiotok.models.encodec import CompressionModel

logger = logging.getLogger(__name__)


def load_pretrained(name: str | Path, device: torch.device | str = "cpu") -> CompressionModel:
    """Build the model that a file describes and fill in its best weights, ready for use (eval mode).

    Args:
        name: an exported file, a training checkpoint, a folder with `checkpoint.th`, or //sig/SIG.
        device: where to put the model.

    Raises:
        CheckpointError: if there is no such file, it cannot be read safely, or its weights do not fit.
    """
    path = resolve_checkpoint(name)
    state = load_checkpoint(path)
    missing = [key for key in ("best_state", "xp.cfg") if not state.get(key)]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}; give a checkpoint of a compression solver or a file made by "
            "audiotok.utils.export.export_encodec"
        )
    weights = state["best_state"] if state.get("exported") else state["best_state"].get("model")
    return _build(state["xp.cfg"], weights, path).to(device).eval()


def _build(cfg_text: Any, weights: Any, path: Path) -> CompressionModel:
    if not isinstance(cfg_text, str) or not isinstance(weights, dict):
        raise CheckpointError(f"{path} does not hold the configuration as text and the weights as a dict")
    cfg = OmegaConf.create(cfg_text)
    if not isinstance(cfg, DictConfig):
        raise CheckpointError(f"{path} holds a configuration that is no mapping; was it written by a solver?")
    model = get_compression_model(cfg)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {path} do not fit its own configuration: {error}") from error
    logger.info("Loaded %s: %d Hz, %d codebooks", path, model.sample_rate, model.num_codebooks)
    return model

"""Small codecs that encode in milliseconds, and files of them."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from audiotok.checkpoint import save_checkpoint
from audiotok.models import EncodecModel, get_compression_model

RATE = 8000  # Hz; 100 frames of 80 samples a second


def config(*, channels: int = 1, bins: int = 64, **changes: Any) -> DictConfig:
    """Of a codec of two codebooks; further keywords go to `encodec` (renormalize) or to `seanet`."""
    own: dict[str, Any] = {key: changes.pop(key) for key in ("renormalize", "quantizer") if key in changes}
    causal = changes.get("causal", False)
    seanet: dict[str, Any] = {
        "channels": channels,
        "dimension": 8,
        "n_filters": 4,
        "n_residual_layers": 1,
        "ratios": [5, 4, 4],
    }
    return OmegaConf.create(
        {
            "compression_model": "encodec",
            "sample_rate": RATE,
            "channels": channels,
            "encodec": {
                "autoencoder": "seanet",
                "quantizer": "rvq",
                "sample_rate": RATE,
                "channels": channels,
                "causal": causal,
                **own,
            },
            "seanet": {**seanet, "lstm": 2, **changes},
            "rvq": {"n_q": 2, "bins": bins, "kmeans_init": True, "kmeans_iters": 2},
            "no_quant": {},
        }
    )


def small_codec(*, seed: int = 0, **changes: Any) -> EncodecModel:
    """A codec with fresh weights; its codebooks are k-means over noise, so that music uses many codes."""
    torch.manual_seed(seed)
    model = get_compression_model(config(**changes))
    assert isinstance(model, EncodecModel)
    model.quantizer.train()
    with torch.no_grad():
        noise = torch.randn(4, model.channels, 2 * RATE) * torch.logspace(-3, 0, 4)[:, None, None]
        model.quantizer(model.encode_latent(noise)[0], 1.0)
    return model.eval()


def save_codec(path: Path, **changes: Any) -> Path:
    """An exported file of a small codec."""
    seed = changes.pop("seed", 0)
    model, cfg = small_codec(seed=seed, **changes), config(**changes)
    content = {"best_state": model.state_dict(), "xp.cfg": OmegaConf.to_yaml(cfg), "exported": True}
    save_checkpoint(content, path)
    return path

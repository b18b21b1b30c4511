"""The generate stage of a language model: clips drawn from it, decoded by the codec of its codes."""

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from audiotok.data.audio import write_audio
from audiotok.data.tokens import TokenSet
from audiotok.distributed import is_source
from audiotok.models.encodec import CompressionModel
from audiotok.models.lm import LMModel, Sampling


def generate_clips(
    lm: LMModel,
    codec: CompressionModel,
    tokens: TokenSet,
    cfg: DictConfig,
    folder: Path,
    epoch: int,
    *,
    after_step: Callable[[], None],
) -> dict[str, float]:
    """Write clips drawn by the parallel head under `samples/epoch_XXXX`; returns no metrics yet."""
    settings, data = cfg.generate.lm, {**cfg.dataset, **cfg.dataset.generate}
    frames = max(1, round(data["segment_duration"] * tokens.frame_rate))
    if is_source():
        device = lm.out_norm.weight.device
        sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
        generator = torch.Generator(device).manual_seed(settings.seed)
        codes = lm.generate(frames, num_samples=data["num_samples"], sampling=sampling, generator=generator)
        for index, wav in enumerate(codec.decode(codes).cpu()):
            path = folder / "samples" / f"epoch_{epoch:04d}" / f"{index:03d}.{cfg.generate.audio.format}"
            write_audio(path, wav, codec.sample_rate, strategy=cfg.generate.audio.strategy)
    after_step()
    return {}

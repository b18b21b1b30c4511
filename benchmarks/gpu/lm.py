"""The language model on a device: updates and generation, in float32 and bfloat16, beside AudioCraft's."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import lm
from benchmarks.gpu.device import Setting, peak_mib, seconds, table

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def language_model(setting: Setting) -> Iterator[list[str]]:
    """Seconds of an update and codes a second of a call of `generate`."""
    modules = lm.load(setting.audiocraft) if setting.audiocraft else None
    training: list[tuple[object, ...]] = []
    generation: list[tuple[object, ...]] = []
    for name, size in lm.SIZES.items():
        size = size | setting.pick({}, {"dim": 32, "bins": 256, "num_heads": 2})
        ours = lm.ours(size).to(setting.device)
        models: dict[str, Any] = {"audiotok": ours}
        if modules is not None:
            models["AudioCraft, sdpa"] = lm.theirs(modules, size, "theirs, sdpa", ours.state_dict()).to(setting.device)
        batch, frames = setting.pick(16, 2), setting.pick(500, 20)
        codes = torch.randint(size["bins"], (batch, lm.K, frames), device=setting.device)
        for program, model in models.items():
            loss = lm.our_loss if program == "audiotok" else lm.their_loss
            for precision, dtype in PRECISIONS.items():
                step = _within(lm.training(model, loss, codes, fused=program == "audiotok"), setting, dtype)
                took = seconds(step, setting.device, 5)
                memory = peak_mib(step, setting.device)
                training.append((name, program, precision, took, codes.numel() / took, memory))
        for program, model in models.items():
            for precision, dtype in PRECISIONS.items():
                for clips in setting.pick((1, 16), (2,)):
                    length = setting.pick(150, 10)
                    run = _within(lm.generation(model, clips, length, greedy=False), setting, dtype)
                    took = seconds(run, setting.device, 2)
                    generation.append((name, program, precision, f"{clips} × {length}", clips * length * lm.K / took))
                yield _tables(f"{batch} × {frames}", training, generation)


def _tables(shape: str, training: list[tuple[object, ...]], generation: list[tuple[object, ...]]) -> list[str]:
    updates = ["model", "program", "precision", f"update of {shape} frames, s", "codes a second", "MiB above the model"]
    calls = ["model", "program", "precision", "clips × frames", "codes a second of generate"]
    return [*table(updates, training), *table(calls, generation)]


def _within(run: Callable[[], object], setting: Setting, dtype: torch.dtype | None) -> Callable[[], object]:
    return partial(_cast, run, setting.device.type, dtype)


def _cast(run: Callable[[], object], device: str, dtype: torch.dtype | None) -> None:
    with torch.autocast(device, dtype, enabled=dtype is not None):
        run()

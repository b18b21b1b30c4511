"""Where the time of `audiotok tokenize` goes, and codes in windows beside those of one pass.

`OMP_NUM_THREADS=1 python -m benchmarks.tokenize CODEC MANIFEST [SECONDS]`: the tracks of a manifest into a token set in
a temporary folder, then the first SECONDS (default 60) of each in windows and in one pass, by the codec and by its
weights in causal layers; in float32 and in float64.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from audiotok.checkpoint import load_checkpoint, resolve_checkpoint
from audiotok.data import read_manifest
from audiotok.data.audio import read_segment
from audiotok.models import CompressionModel, get_compression_model
from audiotok.models.pretrained import configuration_of
from audiotok.models.windows import WindowEncoder
from audiotok.tokenizing import Statistics, tokenize
from benchmarks.machine import where


def causal_like(codec: str, model: CompressionModel) -> CompressionModel:
    """The weights of a codec in causal layers: no good codec, but with latents as spread as those of a trained one."""
    path = resolve_checkpoint(codec)
    cfg = configuration_of(load_checkpoint(path), path)
    cfg.encodec.causal = cfg.seanet.causal = True
    causal = get_compression_model(cfg)
    causal.load_state_dict(model.state_dict())
    return causal.eval()


def in_windows(model: CompressionModel, wav: Tensor, window_s: float) -> Tensor:
    """Codes [K, T] of wav [C, T]."""
    encoder = WindowEncoder(model, window_s)
    lane, count = encoder.begin(), encoder.windows(wav.shape[1])
    for window in range(count):
        start, length = encoder.span(window)
        last = window == count - 1
        encoder.step([lane], [wav[:, start:] if last else wav[:, start : start + length]], [last])
    return lane.all_codes()


def differing(model: CompressionModel, wavs: list[Tensor], window_s: float) -> str:
    """How many codes in windows are not those of one pass."""
    dtype = next(model.parameters()).dtype
    other = total = 0
    for wav in wavs:
        with torch.inference_mode():
            one = model.encode(wav[None].to(dtype))[0][0]
        other += int((in_windows(model, wav.to(dtype), window_s) != one).sum())
        total += one.numel()
    return f"{other} of {total}"


def main(codec: str, manifest: str, seconds: str = "60") -> None:
    """Print the share of the time that the encoder takes, and a table of codes that differ."""
    model, stats = CompressionModel.get_pretrained(codec), Statistics()
    with tempfile.TemporaryDirectory() as folder:
        before, wall = time.process_time(), time.perf_counter()
        tokenize(model, [Path(manifest)], Path(folder) / "tokens", codec=codec, statistics=stats)
        cpu, wall = time.process_time() - before, time.perf_counter() - wall
    print(f"{stats.tracks} tracks, {stats.audio_s / 60:.1f} min, {wall:.1f} s ({cpu:.1f} s of the CPU)")
    print(f"in the encoder: {stats.encoding_s / wall:.1%} of the time, {stats.encoding_cpu_s / cpu:.1%} of the CPU's")
    count, options = round(float(seconds) * model.sample_rate), (model.sample_rate, model.channels)
    wavs = [
        read_segment(meta.path, start_s=0, n_frames=count, sample_rate=options[0], channels=options[1])[0]
        for meta in read_manifest(manifest)
    ]
    print("\n| codec | precision | windows of 1 s | of 10 s |\n| --- | --- | --- | --- |")
    for name, each in ((codec, model), ("causal", causal_like(codec, model))):
        for precision in (torch.float32, torch.float64):
            cells = [differing(each.to(precision), wavs, window_s) for window_s in (1.0, 10.0)]
            print(f"| {name} | {str(precision).removeprefix('torch.')} | {' | '.join(cells)} |", flush=True)
    print("\n" + where("benchmarks.tokenize"))


if __name__ == "__main__":
    main(*sys.argv[1:])

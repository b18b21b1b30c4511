"""How well the estimators of the MMD estimate: `python -m benchmarks.estimators --codec CODEC --music MANIFEST`.

Each estimate is made of clips drawn at random from a pool of streams; without CODEC and MANIFEST, Gaussian ones only.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from audiotok.data import AudioDataset
from audiotok.losses.mmd import RELEASED_SIGMAS, MMDLoss
from audiotok.models import EncodecModel
from audiotok.quantization import ResidualVectorQuantizer
from benchmarks.machine import where, write_page

ESTIMATORS = ("unbiased", "samples", "disjoint", "rff", "closed")
WIDTHS: dict[str, Sequence[float] | str] = {"median": "median", "released": RELEASED_SIGMAS}
FRAMES, POOL, CLIPS, DRAWS = 46, 128, 16, 20
SHUFFLES = 64
COLUMNS = (
    "estimator", "mean, independent", "spread", "mean", "spread", "mean / spread", "mean / spread, independent",
    "cosine, frames", "cosine, layer", "time",
)  # fmt: skip


def gaussian(clips: int, k: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Normal streams [B, K, D, T] whose codebooks have a correlation of 0.1, dimension by dimension."""
    noise = torch.randn(clips, k, d, FRAMES, generator=generator)
    return noise + (1 / 3) * torch.randn(clips, 1, d, FRAMES, generator=generator)


@torch.no_grad()
def of_music(codec: str, manifest: Path) -> dict[str, torch.Tensor]:
    """Residual streams and code vectors [B, K, D, T] of all clips of some music."""
    model = EncodecModel.get_pretrained(codec)
    assert isinstance(model, EncodecModel) and isinstance(model.quantizer, ResidualVectorQuantizer)
    seconds = FRAMES / model.frame_rate
    clips = AudioDataset.from_manifest(
        manifest, segment_s=seconds, sample_rate=model.sample_rate, channels=model.channels, tile=True
    )
    streams: dict[str, list[torch.Tensor]] = {"residual": [], "code": []}
    for i in range(len(clips)):
        wav = clips[i]
        assert isinstance(wav, torch.Tensor)
        latent, _ = model.encode_latent(wav[None])
        for kind, found in streams.items():
            found.append(model.quantizer.streams(latent, kind)[..., :FRAMES])
    return {kind: torch.cat(found) for kind, found in streams.items()}


def independent(pool: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The pool with the frames of each codebook shuffled on their own."""
    b, k, _, t = pool.shape
    frames = pool.permute(1, 0, 3, 2).flatten(1, 2)
    shuffled = [frames[q, torch.randperm(b * t, generator=generator)] for q in range(k)]
    return torch.stack(shuffled).view(k, b, t, -1).permute(1, 0, 3, 2).contiguous()


class Reference:
    """Gradient of the closed form of many samples: at each frame, and of a linear layer that makes each codebook."""

    def __init__(self, pool: torch.Tensor, widths: str) -> None:
        self.frames = gradient(pool, MMDLoss(WIDTHS[widths], "closed", delay=False), torch.Generator())[1]
        self.layer = layer(self.frames, pool)


def layer(frames: torch.Tensor, streams: torch.Tensor) -> torch.Tensor:
    """Gradient [K, D, D] of matrices by which each codebook's streams [B, K, D, T] are multiplied."""
    found: torch.Tensor = torch.einsum("bkdt,bket->kde", frames, streams)
    return found


def gradient(streams: torch.Tensor, loss: MMDLoss, generator: torch.Generator) -> tuple[float, torch.Tensor]:
    """Value, and derivative by the streams."""
    leaf = streams.clone().requires_grad_()
    value = loss(leaf, generator=generator)
    (found,) = torch.autograd.grad(value, leaf)
    return value.item(), found


def cosine(u: torch.Tensor, v: torch.Tensor) -> float:
    """Cosine between two gradients; 0 if one of them vanishes."""
    u, v = u.flatten().double(), v.flatten().double()
    length = float(u.norm() * v.norm())
    return float(u @ v) / length if length else 0.0


def figures(
    pools: tuple[torch.Tensor, torch.Tensor], estimator: str, widths: str, clips: int, draws: int, reference: Reference
) -> list[str]:
    """One row: mean and spread without dependence; mean, spread and z with it; cosines of the gradient; seconds."""
    free, pool = pools
    generator = torch.Generator().manual_seed(0)
    loss = MMDLoss(WIDTHS[widths], estimator, delay=False)
    null, values, at_frames, at_layer, seconds = [], [], [], [], []
    for _ in range(draws):
        chosen = torch.randperm(len(pool), generator=generator)[:clips]
        with torch.no_grad():
            null.append(loss(free[chosen], generator=generator).item())
        start = time.perf_counter()
        value, found = gradient(pool[chosen], loss, generator)
        seconds.append(time.perf_counter() - start)
        values.append(value)
        at_frames.append(cosine(found, reference.frames[chosen]))
        at_layer.append(cosine(layer(found, pool[chosen]), reference.layer))
        loss.seed += 1  # other random features
    mean, without = statistics.mean(values), statistics.mean(null)
    spread, noise = statistics.stdev(values), statistics.stdev(null)
    shown = [f"{value:.2g}" for value in (without, noise, mean, spread)]
    shown += [f"{(mean - without) / (size or math.inf):.1f}" for size in (spread, noise)]
    shown += [f"{statistics.mean(cosines):.3f}" for cosines in (at_frames, at_layer)]
    return [estimator, *shown, f"{statistics.median(seconds):.3g} s"]


def of_shuffles(pool: torch.Tensor, widths: str, clips: int) -> float:
    """Cosine between the gradient of the closed form and the mean over shuffles of that of `disjoint`, same clips."""
    generator = torch.Generator().manual_seed(2)
    closed, disjoint = (MMDLoss(WIDTHS[widths], name, delay=False) for name in ("closed", "disjoint"))
    total = sum((gradient(pool[:clips], disjoint, generator)[1] for _ in range(SHUFFLES)), torch.zeros(()))
    return cosine(total, gradient(pool[:clips], closed, generator)[1])


def section(name: str, pool: torch.Tensor, widths: str, clips: int, draws: int) -> str:
    """The table of one pool and set of widths, and what many shuffles give."""
    lines = [" | ".join(("", *cells, "")).strip() for cells in (COLUMNS, ("---",) * len(COLUMNS))]
    pools = independent(pool, torch.Generator().manual_seed(1)), pool
    reference = Reference(pool, widths)
    for estimator in ESTIMATORS:
        lines.append("| " + " | ".join(figures(pools, estimator, widths, clips, draws, reference)) + " |")
        print(name, widths, lines[-1], file=sys.stderr, flush=True)
    agreement = f"Cosine of `closed` and of the mean over {SHUFFLES} shuffles of `disjoint`, for the same 4 clips: "
    agreement += f"{of_shuffles(pool, widths, 4):.3f}."
    return "\n".join((f"## {name[0].upper()}{name[1:]}, widths: {widths}\n", *lines, "", agreement))


def main() -> None:
    """Write docs/benchmarks/estimators.md and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", help="a model that can be loaded: a checkpoint, //sig/SIG, //pretrained/PATH")
    parser.add_argument("--music", type=Path, help="a manifest of recordings to encode")
    parser.add_argument("--quick", action="store_true", help="few draws of few clips; the page is printed, not written")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    size = 16 if options.quick else POOL
    pools = {"Gaussian streams, correlation 0.1, 4 codebooks of 128 dimensions": gaussian(size, 4, 128, generator)}
    if options.codec and options.music:
        for kind, streams in of_music(options.codec, options.music).items():
            chosen = streams[torch.randperm(len(streams), generator=torch.Generator().manual_seed(3))[:size]]
            pools[f"{kind} streams of music, {chosen.shape[1]} codebooks of {chosen.shape[2]} dimensions"] = chosen
    tables = [
        section(name, pool, widths, *((4, 3) if options.quick else (CLIPS, DRAWS)))
        for name, pool in pools.items()
        for widths in WIDTHS
    ]
    module = "benchmarks.estimators --codec CODEC --music MANIFEST"
    page = TEMPLATE.format(
        where=where(module),
        frames=FRAMES,
        tables="\n\n".join(tables),
        pool=POOL,
        draws=DRAWS,
        clips=CLIPS,
        n=CLIPS * FRAMES,
    )
    if options.quick:
        print(page)
    else:
        write_page("estimators.md", page)


TEMPLATE = """# The MMD: how well it is estimated

{where}

Each estimate is made of clips of {frames} frames, drawn at random from a pool of {pool}: {draws} draws of {clips} clips
(N = {n}), without delay, in float32.

- mean, independent, and its spread over draws: the value where the frames of each codebook are shuffled on their own
- mean and its spread over draws: the value of the streams as they are; clips and shuffles differ between draws
- mean / spread: mean less that of independent codebooks over the spread; mean / spread, independent: over the spread of
  independent codebooks, so how far beyond noise the dependence is
- cosine: between the gradient and that of the closed form of the whole pool, mean over draws. Frames: derivatives by
  the streams at the frames drawn. Layer: by a matrix which each codebook's stream is multiplied by, where the noise of
  the frames averages out as it does in an encoder
- time: median of value and gradient, the machine being shared

{tables}
"""


if __name__ == "__main__":
    main()

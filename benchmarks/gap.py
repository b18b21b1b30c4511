"""The factorisation gap held against known truths: repeated sources, the coverage of its errors, and a control.

python -m benchmarks.gap coverage      # of the meter, recordings that differ; seconds
python -m benchmarks.gap truths 20     # fits to so many draws of each source; minutes
python -m benchmarks.gap control DIR   # of a token set: chain head given codes of other clips; minutes
"""

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audiotok.data.tokens import TokenDataset, TokenSet
from audiotok.metrics import GapFit, GapMeter, factorisation_gap
from audiotok.models.lm import CodeNLL

CLIPS, FRAMES, BINS = 240, 48, 4
FIT = GapFit(
    dim=32,
    num_heads=2,
    num_layers=1,
    depth_dim=32,
    context=48,
    warmup=6,
    batch_size=12,
    lr=1e-2,
    updates=250,
    min_updates=250,
    code_scale=1.0,
)


def main() -> None:
    """Run one of the studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("coverage", "truths", "control"))
    parser.add_argument("argument", nargs="?", default="20", help="repetitions, or a token set")
    parser.add_argument("--pattern", default="parallel")
    parser.add_argument("--updates", type=int, default=400)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    if args.study == "coverage":
        coverage()
    elif args.study == "truths":
        truths(int(args.argument))
    else:
        control(Path(args.argument), args.pattern, args.updates)


def coverage(repetitions: int = 1000) -> None:
    """How often an error, and 1.96 of them, reach from the gap to its truth: recordings with a gap of their own."""
    for number in (5, 10, 18, 40):
        rng, z = np.random.default_rng(number), []
        for _ in range(repetitions):
            clips = rng.integers(1, 12, number)  # of each recording, which has a level of its own
            owners = np.repeat(np.arange(number), clips)
            of_recording = 0.05 + 0.05 * rng.standard_normal(number)
            gaps = of_recording[owners] + 0.1 * rng.standard_normal(len(owners))
            chain = torch.zeros(len(owners), 2, 1, dtype=torch.float64)
            parallel = chain.clone()
            parallel[:, 1, 0] = torch.from_numpy(gaps) * math.log(2)
            meter = GapMeter()
            meter.update(CodeNLL(parallel, chain, torch.ones(2, 1, dtype=torch.bool)), torch.from_numpy(owners))
            found = meter.compute()
            z.append((found["gap"] - 0.05) / found["gap_err"])
        _print_coverage(f"{number} recordings of 1 to 11 clips", z)


def truths(repetitions: int) -> None:
    """Gaps of fits to repeated draws of sources; truths in closed form."""
    copied_bits = 2 + 5 / 8 * math.log2(5 / 8) + 3 / 8 * math.log2(1 / 8)
    change = -0.01 * math.log2(0.01) - 0.99 * math.log2(0.99)
    sources: list[tuple[Callable[[torch.Generator], Tensor], float]] = [
        (independent_past, 0.0),
        (copied, copied_bits),
        (slow_state, change),
    ]
    for source, truth in sources:
        found, begun = [], time.process_time()
        for seed in range(repetitions):
            codes = source(torch.Generator().manual_seed(seed))
            tracks = torch.arange(CLIPS) // 6
            one = factorisation_gap(codes, BINS, tracks=tracks, pattern="parallel", seed=seed, fit=FIT)
            found.append((one["gap"], one["gap_err"]))
        gaps, errors = np.array(found).T
        print(
            f"{source.__name__}: truth {truth:.4f}, mean {gaps.mean():.4f} ± {gaps.std() / math.sqrt(len(gaps)):.4f}, "
            f"spread {gaps.std(ddof=1):.4f}, mean error {errors.mean():.4f}, "
            f"{(time.process_time() - begun) / repetitions:.1f} CPU s a fit"
        )
        # Where no factor but 0 was chosen, gap and error are exactly 0.
        _print_coverage(source.__name__, list((gaps - truth) / np.where(errors > 0, errors, 1.0)))


def independent_past(generator: torch.Generator) -> Tensor:
    """Each codebook follows a table of its own two codes before with probability 3/4, else it is drawn anew."""
    codes = torch.randint(BINS, (CLIPS, 2, FRAMES), generator=generator)
    kept = torch.rand(codes.shape, generator=generator) < 0.75
    tables = torch.randint(BINS, (2, BINS, BINS), generator=generator)
    for t in range(2, FRAMES):
        for k in range(2):
            likely = tables[k][codes[:, k, t - 1], codes[:, k, t - 2]]
            codes[:, k, t] = torch.where(kept[:, k, t], likely, codes[:, k, t])
    return codes


def copied(generator: torch.Generator) -> Tensor:
    """c1[t] is c0[t] with probability 1/2, else drawn anew."""
    codes = torch.randint(BINS, (CLIPS, 2, FRAMES), generator=generator)
    keep = torch.rand(CLIPS, FRAMES, generator=generator) < 0.5
    codes[:, 1] = torch.where(keep, codes[:, 0], codes[:, 1])
    return codes


def slow_state(generator: torch.Generator) -> Tensor:
    """Each codebook is a state of two, which changes in one of 100 frames, and a coin of its own."""
    changes = (torch.rand(CLIPS, FRAMES, generator=generator) < 0.01).long()
    state = (changes.cumsum(dim=1) + torch.randint(2, (CLIPS, 1), generator=generator)) % 2
    return 2 * state[:, None] + torch.randint(2, (CLIPS, 2, FRAMES), generator=generator)


def control(folder: Path, pattern: str, updates: int) -> None:
    """The gap of real codes, and of the same with codebooks that have nothing to do with each other.

    In the second, codebook k of a clip comes from another recording than codebook 0: whatever gap is found is what the
    chain head gains by being a larger network, or loses by learning from noise. The truth is 0.
    """
    tokens, fit = TokenSet.open(folder), GapFit(updates=updates)
    windows = TokenDataset(tokens, frames=480, num_samples=None, shuffle=False, seed=0, tile=True)
    clips = [windows[i][:2] for i in range(len(windows))]
    codes, tracks = torch.stack([clip for clip, _ in clips]), torch.tensor([track for _, track in clips])
    for name, kept in (("real", codes), ("control", _exchanged(codes, tracks.tolist()))):
        begun = time.process_time()
        found = factorisation_gap(kept, tokens.bins, tracks=tracks, pattern=pattern, fit=fit)
        values = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
        print(f"{name}: {values}; {time.process_time() - begun:.0f} CPU s", flush=True)


def _exchanged(codes: Tensor, tracks: Sequence[int]) -> Tensor:
    """Codes [B, K, T] whose codebook k is that of clips half a set and k clips later."""
    shifted = [codes[:, k].roll(k * len(tracks) // codes.shape[1], dims=0) for k in range(codes.shape[1])]
    return torch.stack(shifted, dim=1)


def _print_coverage(name: str, z: Sequence[float]) -> None:
    size = np.abs(z)
    print(f"{name}: within 1 error {np.mean(size < 1):.2f} (0.68), within 1.96 {np.mean(size < 1.96):.2f} (0.95)")


if __name__ == "__main__":
    main()

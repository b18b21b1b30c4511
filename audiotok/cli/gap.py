"""`audiotok gap`: bits per frame that predicting the codebooks of a step side by side costs, for a codec."""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiotok.errors import ConfigError, DataError
from audiotok.text import duration_text

if TYPE_CHECKING:
    from torch import Tensor

    from audiotok.data.tokens import TokenSet
    from audiotok.metrics import GapFit

_EVERY_S = 0.5  # between two lines of progress
_DIGITS = 19  # or more may be no seed of torch, which has 64 bits
_MOST_CLIPS = 20_000  # 50 hours at 50 Hz; a fit reads fewer
_MEANINGS = {
    "gap": "parallel minus chain: what side-by-side prediction costs",
    "bits_parallel": "NLL, codebooks of a step side by side",
    "bits_chain": "NLL, each codebook also given those before it in the step",
    "gap_alone": "the gap without context",
    "bits_alone": "NLL side by side without context",
}


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("gap", help="bits that parallel prediction of a codec's codebooks costs")
    parser.description = (
        "Fit a small language model to the codes of some recordings and measure on others what it loses by predicting "
        "the codebooks of a step side by side: bits per frame, with standard errors over recordings."
    )
    parser.add_argument("codec", metavar="CODEC", help="//sig/SIG, a checkpoint, an exported file, or demo")
    parser.add_argument("--tokens", type=Path, required=True, metavar="DIR", help="its codes, by `audiotok tokenize`")
    text = "codes of other recordings, by the same codec: all of them are measured, and none of --tokens"
    parser.add_argument("--held-out", type=Path, metavar="DIR", help=text)
    parser.add_argument("--pattern", default="delay", metavar="NAME", help="delay (default), parallel, coarse_first")
    text = "one fit each, with parts of its own, such as 0,1,2 (default: 0)"
    parser.add_argument("--seeds", type=_seeds, default=[0], metavar="N,N", help=text)
    parser.add_argument("--updates", type=int, metavar="N", help="of a fit, at most (default: as GapFit has it)")
    text = "frames that the model sees at most (default: 256); a track needs almost twice as many"
    parser.add_argument("--context", type=int, metavar="FRAMES", help=text)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if any")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=_gap)


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    seeds = [int(part) if part.isdecimal() and len(part) < _DIGITS else -1 for part in parts]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(
            f"{text!r}: numbers from 0 of up to 18 digits expected, each once, such as 0,1,2"
        )
    return seeds


def _gap(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from audiotok.data.tokens import TokenSet
    from audiotok.metrics import GapFit, factorisation_gap
    from audiotok.models import CompressionModel
    from audiotok.models.fingerprint import codec_hash
    from audiotok.utils.device import resolve_device

    device = resolve_device(args.device)
    fit = GapFit()
    if args.updates is not None:
        if args.updates < 2:
            raise ConfigError(f"--updates {args.updates}: a fit takes 2 or more.")
        fit = replace(fit, updates=args.updates, min_updates=min(args.updates, fit.min_updates))
    if args.context is not None:
        if args.context < 8:
            raise ConfigError(f"--context {args.context}: a window takes 8 frames or more.")
        fit = replace(fit, context=args.context, warmup=min(fit.warmup, args.context // 4))
    codec = CompressionModel.get_pretrained(args.codec)
    hash_of_codec = codec_hash(codec)
    sets = [TokenSet.open(folder, codec_hash=hash_of_codec) for folder in (args.tokens, args.held_out) if folder]
    for tokens in sets:  # fewer codebooks are those of a codec that used fewer
        if tokens.n_q > codec.total_codebooks or tokens.bins != codec.cardinality or tokens.n_q != sets[0].n_q:
            raise DataError(
                f"{tokens.folder} holds {tokens.n_q} × {tokens.bins} codes; {args.codec} has {codec.total_codebooks} × "
                f"{codec.cardinality}" + f", and {args.tokens} holds {sets[0].n_q}." * (tokens is not sets[0])
            )
    codes, tracks, held_out = _clips(sets, fit)
    found = []
    for seed in args.seeds:
        progress = _progress(seed, args.seeds) if sys.stderr.isatty() else None
        try:
            one = factorisation_gap(
                codes,
                sets[0].bins,
                tracks=tracks,
                pattern=args.pattern,
                seed=seed,
                held_out=held_out,
                fit=fit,
                device=device,
                progress=progress,
            )
        finally:
            if progress is not None:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        found.append(one)
    if args.json:
        of_all = {"codec": args.codec, "codec_hash": hash_of_codec, "tokens": str(args.tokens), "pattern": args.pattern}
        of_all |= {"held_out": None if args.held_out is None else str(args.held_out)}
        fits = [{"seed": seed, **one} for seed, one in zip(args.seeds, found, strict=True)]
        print(json.dumps({**of_all, "frame_rate": sets[0].frame_rate, "fits": fits}, indent=2))
    else:
        print("\n".join(_table(args, sets[0], found, fit)))


def _clips(sets: "Sequence[TokenSet]", fit: "GapFit") -> "tuple[Tensor, Tensor, list[int] | None]":
    """Clips [B, K, T] of all tracks, the recording of each, and the recordings of the second set, if there is one."""
    import torch

    from audiotok.data.tokens import TokenDataset

    if both := {track.path for track in sets[0].tracks} & {track.path for one in sets[1:] for track in one.tracks}:
        raise DataError(f"{min(both)} is in --tokens and in --held-out: what is measured must not be what is fitted.")
    codes, tracks = [], []
    for index, one in enumerate(sets):
        # Of two windows of the fit, which overlap by what is context alone.
        windows = TokenDataset(
            one, frames=2 * fit.context - fit.warmup, num_samples=_MOST_CLIPS, shuffle=False, seed=0, tile=True
        )
        for i in range(len(windows)):
            clip, track, _ = windows[i]
            codes.append(clip)
            tracks.append(index * len(sets[0].tracks) + track)
    owners = torch.tensor(tracks)
    if len(sets) == 1:
        return torch.stack(codes), owners, None
    return torch.stack(codes), owners, sorted({owner for owner in tracks if owner >= len(sets[0].tracks)})


def _table(
    args: argparse.Namespace, tokens: "TokenSet", found: Sequence[Mapping[str, float]], fit: "GapFit"
) -> list[str]:
    """Means over the fits as lines."""
    first = found[0]
    names = ["gap", *(name for name in first if name.startswith("gap_q") and not name.endswith("_err"))]
    names += [name for name in _MEANINGS if name != "gap"]
    several = len(found) > 1
    updates = ", ".join(f"{one['gap_updates']:.0f}" for one in found)
    parts = (int(first[f"gap_recordings{part}"]) for part in ("_fit", "_choose", ""))
    lines = [
        f"{args.codec}, {tokens.n_q} × {tokens.bins} codes at {tokens.frame_rate:g} Hz, pattern {args.pattern}",
        "recordings: {} to fit, {} to choose a state by, {} measured; ".format(*parts) + f"updates: {updates}",
        "",
        f"{'':14}{'bits/frame':>10}   {'error':>7}" + f"  {'of fits':>7}" * several + f"{'bits/s':>9}",
    ]
    for name in names:
        values = [one[name] for one in found]
        mean = statistics.fmean(values)
        # Fits share recordings: the error of their mean is hardly below that of one.
        error = math.sqrt(statistics.fmean(one.get(f"{name}_err", math.nan) ** 2 for one in found))
        line = f"{name:14}{mean:10.3f} ± {error:7.3f}"
        if several:
            line += f"  {statistics.stdev(values):7.3f}"
        lines.append(f"{line}{mean * tokens.frame_rate:9.1f}  {_MEANINGS.get(name, '')}".rstrip())
    lacking = [f"{seed}" for seed, one in zip(args.seeds, found, strict=True) if not one["gap_converged"]]
    if lacking:
        lines += ["", f"not converged: seed {', '.join(lacking)}; the gap may still change, give more --updates"]
    if statistics.fmean(one["bits_parallel"] - one["bits_alone"] for one in found) > 0:
        lines += [
            "",
            "no finding: the past makes the codes harder to predict (bits_parallel above bits_alone), as where a model",
            "has learned its recordings by heart; give more of them",
        ]
    fewest, usual = min(one["gap_updates"] for one in found), type(fit)().min_updates
    if fewest < usual:  # a curve that is flat may be one that has not begun to fall
        lines += ["", f"a first look: {fewest:.0f} updates are too few to judge by, a fit takes {usual} or more"]
    if (fall := max(one["gap_alone_fall"] for one in found)) > fit.tolerance:
        lines += [
            f"gap_alone is too low: without context the NLL still fell by {fall:.3f} bits/frame in the last fifth"
        ]
    return lines


def _progress(seed: int, seeds: Sequence[int]) -> Callable[[int, int], None]:
    """A line that a terminal shows in its place: updates done, and the time that is left at most."""
    started = shown = time.monotonic()
    which = f"seed {seed}: " if len(seeds) > 1 else ""

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < _EVERY_S:
            return
        shown = now
        bar = "#" * (30 * done // total)
        left = duration_text((total - done) * (now - started) / done)
        line = f"\r\x1b[K{which}[{bar:30}] {done} of at most {total} updates, {left} left"
        print(line, end="", file=sys.stderr, flush=True)

    return show

"""`audiotok tokenize`: the tracks of manifests as a token set of a codec."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from audiotok.cli.progress import clear_line, hours_line
from audiotok.errors import ConfigError
from audiotok.text import duration_text

if TYPE_CHECKING:
    from audiotok.tokenizing import Statistics


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("tokenize", help="codes of whole tracks by a codec, for a language model")
    parser.description = (
        "Encode the tracks of manifests into a token set. The same command goes on with one that was interrupted, and "
        "does nothing with one that is complete."
    )
    parser.add_argument("codec", metavar="CODEC", help="//sig/SIG, a checkpoint, an exported file, or demo")
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST", help="of `audiotok data prepare`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the token set")
    parser.add_argument("--label", metavar="NAME", help="`folder` of each track, or a field of the manifests' lines")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if there is one"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read audio (default: 2)")
    text = "tracks encoded side by side (default: 4; 16 on CUDA)"
    parser.add_argument("--batch-size", type=int, metavar="N", help=text)
    text = "seconds of a track at once (default: 10): memory, not codes, depends on it"
    parser.add_argument("--window", type=float, metavar="SECONDS", help=text)
    text = "only this part of the tracks, such as 1/4; whoever ends last joins the parts (default: by a SLURM array)"
    parser.add_argument("--part", type=_part, metavar="I/N", help=text)
    parser.set_defaults(run=_tokenize)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise argparse.ArgumentTypeError(f"{text!r}: I/N expected with I from 1 to N, such as 1/4")


def part_of_array(environ: Mapping[str, str]) -> tuple[int, int]:
    """Which part of all a task of a SLURM array is; (1, 1) elsewhere.

    Raises:
        ConfigError: if the indices of the array do not follow each other.
    """
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 1, 1
    names = ("ID", "COUNT", "MIN", "MAX")
    try:
        index, count, least, most = (int(environ[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
    except (KeyError, ValueError):
        raise ConfigError(
            "SLURM_ARRAY_TASK_ID is set, and COUNT, MIN or MAX is not a number: give --part I/N."
        ) from None
    if most - least + 1 != count or not least <= index <= most:
        raise ConfigError(
            f"the SLURM array has {count} tasks from {least} to {most}, not one after the other: give --part I/N."
        )
    return index - least + 1, count


def _tokenize(args: argparse.Namespace) -> int:
    from audiotok.models import CompressionModel
    from audiotok.models.pretrained import check_trained
    from audiotok.tokenizing import WINDOW_S, Statistics, tokenize_part
    from audiotok.utils.device import resolve_device

    part = args.part or part_of_array(os.environ)
    check_trained(args.codec)
    model = CompressionModel.get_pretrained(args.codec, resolve_device(args.device))
    stats = Statistics()
    try:
        tokens = tokenize_part(
            model,
            args.manifests,
            args.out,
            codec=args.codec,
            label=args.label,
            part=part,
            batch_size=args.batch_size,
            window_s=WINDOW_S if args.window is None else args.window,
            workers=args.workers,
            progress=hours_line(),
            statistics=stats,
        )
    except KeyboardInterrupt:
        print(f"\ninterrupted: {_done(stats)}; the same command goes on from there", file=sys.stderr)
        return 130
    finally:
        clear_line()
    if stats.tracks:
        print(_done(stats))
    if tokens is not None:
        seconds = sum(track.duration for track in tokens.tracks)
        frames = sum(track.frames for track in tokens.tracks)
        labels = f", labels: {len(tokens.labels)}" if tokens.labels else ""
        print(
            f"{args.out}: {len(tokens.tracks)} tracks, {seconds / 3600:.3g} h, {frames * tokens.n_q} tokens "
            f"({tokens.n_q} × {tokens.bins} at {tokens.frame_rate:g} Hz){labels}"
        )
    return 0


def _done(stats: "Statistics") -> str:
    rate = stats.audio_s / stats.elapsed_s if stats.elapsed_s else 0.0
    return (
        f"{stats.tracks} tracks, {stats.audio_s / 3600:.3g} h encoded in {duration_text(stats.elapsed_s)}, "
        f"{rate:.3g} times as fast as they play"
    )

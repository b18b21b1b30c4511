"""`audiotok data prepare` and `audiotok data demo`: manifests of music."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from audiotok.cli.progress import clear_line, hours_line
from audiotok.errors import ConfigError

if TYPE_CHECKING:
    from audiotok.data.convert import Conversion


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser of `audiotok`."""
    data = commands.add_parser("data", help="prepare audio for training")
    data_commands = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    parser = data_commands.add_parser("prepare", help="manifests of the audio files of some folders")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of audio files")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the manifests go")
    text = "share of the tracks in one manifest; repeat it for each; they sum to 1 (default: train=0.8 valid=0.1 ...)"
    parser.add_argument("--split", action="append", type=_split, metavar="NAME=FRACTION", help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    text = "keep the tracks of a folder, or of an artist (or album) by their tags, in one split"
    parser.add_argument("--group-by", choices=("folder", "tag"), help=text)
    parser.add_argument("--list-skipped", action="store_true", help="name each file that is left out, with the reason")
    text = "copy the tracks into DIR/audio, decoded once, and list the copies: training reads them several times faster"
    parser.add_argument("--convert", choices=("flac", "wav"), help=text)
    text = "of the copies; tracks of a lower rate keep theirs (default: all do)"
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help=text)
    text = "of the copies: 1 mixes stereo down (default: as they are)"
    parser.add_argument("--channels", type=int, choices=(1, 2), help=text)
    parser.add_argument("--workers", type=int, metavar="N", help="threads that convert (default: one for each core)")
    parser.set_defaults(run=_prepare)
    parser = data_commands.add_parser("demo", help="fetch a small free music collection and prepare it")
    parser.add_argument("--output", type=Path, default=Path("data/demo"), metavar="DIR", help="default: data/demo")
    parser.set_defaults(run=_demo)


def _split(text: str) -> tuple[str, float]:
    name, separator, fraction = text.partition("=")
    try:
        value = float(fraction)
    except ValueError:
        value = -1.0
    if not name or not separator or not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=FRACTION expected, such as valid=0.1, above 0")
    return name, value


def _prepare(args: argparse.Namespace) -> int:
    from audiotok.data.prepare import SPLITS, prepare

    splits = dict(args.split) if args.split else SPLITS
    if args.split and len(splits) < len(args.split):
        raise ConfigError("--split names a manifest twice; give each name once.")
    options = {"splits": splits, "seed": args.seed, "group_by": args.group_by, "convert": _conversion(args)}
    try:
        report = prepare(args.folders, args.output, **options)
    except KeyboardInterrupt:
        clear_line()
        print("interrupted; the same command goes on with the copies that are made", file=sys.stderr)
        return 130
    finally:
        clear_line()
    if args.list_skipped and (listing := report.listing()):
        print(listing)
    print(report)
    return 0


def _conversion(args: argparse.Namespace) -> "Conversion | None":
    from audiotok.data.convert import Conversion

    if args.convert:
        return Conversion(args.convert, args.sample_rate, args.channels, args.workers, hours_line())
    for name in ("sample_rate", "channels", "workers"):
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is about copies: add --convert flac or --convert wav, or leave it out.")
    return None


def _demo(args: argparse.Namespace) -> None:
    from audiotok.data.demo import SPLITS, fetch_demo
    from audiotok.data.prepare import prepare

    print(prepare([fetch_demo(args.output)], args.output, splits=SPLITS))

"""`audiotok data prepare` and `audiotok data demo`: manifests of music."""

import argparse
import math
from pathlib import Path

from audiotok.errors import ConfigError


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


def _prepare(args: argparse.Namespace) -> None:
    from audiotok.data.prepare import SPLITS, prepare

    splits = dict(args.split) if args.split else SPLITS
    if args.split and len(splits) < len(args.split):
        raise ConfigError("--split names a manifest twice; give each name once.")
    report = prepare(args.folders, args.output, splits=splits, seed=args.seed, group_by=args.group_by)
    if args.list_skipped and (listing := report.listing()):
        print(listing)
    print(report)


def _demo(args: argparse.Namespace) -> None:
    from audiotok.data.demo import SPLITS, fetch_demo
    from audiotok.data.prepare import prepare

    print(prepare([fetch_demo(args.output)], args.output, splits=SPLITS))

"""The `audiotok` command: thin commands over the library, each importing only what it needs.

Data goes to stdout, everything else to stderr. A mistake of the user is one line and exit code 2.
"""

import argparse
import io
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from audiotok import __version__
from audiotok.errors import AudiotokError, ConfigError, ResultsError

logger = logging.getLogger(__name__)

EXIT_INCOMPLETE = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments, default those of the process.

    Returns:
        Exit code: 0, 1 for a failed check, 2 for a mistake of the user, 130 if interrupted, 141 if stdout is closed.
    """
    args = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without é still gets its table
    try:
        code: int = args.run(args) or 0
        sys.stdout.flush()
    except AudiotokError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:  # `audiotok results GRID | head`: no word, nor when Python flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="audiotok", description="Grids of neural audio codec experiments.")
    parser.add_argument("--version", action="version", version=f"audiotok {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_results(commands.add_parser("results", help="table of a grid: parameters, states, metrics"))
    data = commands.add_parser("data", help="prepare audio for training")
    data_commands = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_prepare(data_commands.add_parser("prepare", help="manifests of the audio files of some folders"))
    _add_demo(data_commands.add_parser("demo", help="fetch a small free music collection and prepare it"))
    return parser


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print a grid as a table; without GRID, the names of the grids there are."
    parser.add_argument("grid", nargs="?", metavar="GRID", help="name as given to `dora grid`")
    parser.add_argument("--root", metavar="DIR", help="results folder (default: $AUDIOTOK_OUTPUT_DIR or ./outputs)")
    parser.add_argument("--format", choices=("table", "csv", "markdown"), default="table")
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        help="names or patterns, such as 'sig,seed,valid.*' (default: the headline ones; csv: all)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of stdout")
    parser.add_argument("--samples", action="store_true", help="then say where the reconstructed samples lie")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every experiment has completed")
    parser.set_defaults(run=_results)


def _results(args: argparse.Namespace) -> int:
    from audiotok import results

    if args.grid is None:
        print("".join(f"{name}\n" for name in results.list_grids(args.root)), end="")
        return 0
    experiments = results.load_grid(args.grid, args.root)
    columns = None if args.format == "csv" else results.headline_columns(experiments)
    if args.columns is not None:
        columns = [name.strip() for name in args.columns.split(",")]
    table = results.format_table(experiments.runs, args.format, columns)
    logger.info("%r", experiments)
    _write(table, args.output)
    if args.samples:
        for record in experiments.records:
            for folder in sorted(record.folder.glob("samples/*")):
                logger.info("samples: %s", folder)
    incomplete = [record for record in experiments.records if record.state != "COMPLETED"]
    if args.check and incomplete:
        for record in incomplete:
            logger.error("not completed: %s %s %s", record.sig, record.state, record.reason)
        return EXIT_INCOMPLETE
    return 0


def _write(table: str, output: Path | None) -> None:
    if output is None:
        print(table, end="", flush=True)
        return
    try:
        output.write_text(table, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write {output}: {error.strerror}.") from error
    logger.info("wrote %s", output)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of audio files")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the manifests go")
    parser.add_argument(
        "--split",
        action="append",
        type=_split,
        metavar="NAME=FRACTION",
        help="share of the tracks in one manifest; repeat it for each (default: train=0.8 valid=0.1 ...)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.set_defaults(run=_prepare)


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
    print(prepare(args.folders, args.output, splits=splits, seed=args.seed))


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("data/demo"), metavar="DIR", help="default: data/demo")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    from audiotok.data.demo import SPLITS, fetch_demo
    from audiotok.data.prepare import prepare

    print(prepare([fetch_demo(args.output)], args.output, splits=SPLITS))


if __name__ == "__main__":
    sys.exit(main())

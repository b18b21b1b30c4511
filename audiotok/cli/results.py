"""`audiotok results`: a grid as a table."""

import argparse
import logging
from pathlib import Path

from audiotok.errors import ResultsError

logger = logging.getLogger(__name__)

EXIT_INCOMPLETE = 1


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("results", help="table of a grid: parameters, states, metrics")
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

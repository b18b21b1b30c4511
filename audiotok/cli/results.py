"""`audiotok results`: grids as a table of their runs, of conditions over seeds, or of differences between them."""

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiotok.cli.votes import show_votes
from audiotok.errors import ResultsError
from audiotok.status import State
from audiotok.terminal import in_colour, size_of
from audiotok.text import clean_text

if TYPE_CHECKING:
    import pandas as pd

    from audiotok.results import Experiment, Experiments

logger = logging.getLogger(__name__)

EXIT_INCOMPLETE = 1
WATCH_S = 10.0
HOME_AND_CLEAR = "\x1b[H\x1b[J"


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("results", help="table of a grid: parameters, states, metrics, statistics over seeds")
    parser.description = "Print a grid as a table; without GRID, the names of the grids there are."
    parser.add_argument("grid", nargs="*", metavar="GRID", help="names as given to `dora grid`, or signatures")
    parser.add_argument("--root", metavar="DIR", help="results folder (default: $AUDIOTOK_OUTPUT_DIR or ./outputs)")
    parser.add_argument("--format", choices=("table", "csv", "markdown", "latex", "parquet"), default="table")
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        help="names or patterns, such as 'sig,losses.mmd,valid.*' (default: the headline ones; csv, parquet: all)",
    )
    add_filters(parser)
    parser.add_argument("--width", type=int, metavar="N", help="characters of a line (default: the terminal's; 0: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of stdout")
    parser.add_argument(
        "--runs", action="store_true", help="a row per run, where runs build on codecs and a row per codec is shown"
    )
    parser.add_argument("--samples", action="store_true", help="then list where the reconstructed samples lie")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every experiment has completed")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"print it again every SECONDS (default: {WATCH_S:.0f}) until nothing waits or runs",
    )
    parser.add_argument("--published", action="store_true", help="then published numbers of other codecs, with source")
    parser.add_argument(
        "--votes", type=Path, metavar="DIR", help="pool the answers of blind tests in the CSV files there"
    )
    _add_statistics(parser.add_argument_group("statistics over seeds"))
    parser.set_defaults(run=_results)


def _add_statistics(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--by", metavar="NAMES", help="one row per condition: parameters such as losses.mmd,rvq.n_q")
    group.add_argument(
        "--metric", metavar="NAMES", help="such as evaluate.sisdr,evaluate.mi (default: the headline ones)"
    )
    group.add_argument("--seeds", metavar="NAMES", help="parameters averaged over (default: seed,codec.seed)")
    group.add_argument("--pivot", metavar="NAME", help="one of --by, whose values become columns")
    group.add_argument(
        "--baseline", metavar="NAME=VALUE", action="append", help="compare each condition with this one, paired by seed"
    )
    group.add_argument(
        "--pooled", action="store_true", help="test whether each of --by matters, over all runs that differ in it alone"
    )
    group.add_argument("--best-by", metavar="METRIC", help="take the epoch that is best by this metric, not the last")
    group.add_argument("--interval", choices=("bootstrap", "t"), default="t", help="confidence interval (default: t)")
    group.add_argument(
        "--importance",
        metavar="METRIC",
        help="how much of the spread of METRIC each parameter explains (default: all that differ, else those of --by)",
    )
    group.add_argument("--unfinished", action="store_true", help="count runs that have not completed, too")


def _results(args: argparse.Namespace) -> int:
    if args.votes is not None:
        return show_votes(args)
    from audiotok import results
    from audiotok.results.declared import declare_options
    from audiotok.results.folders import output_root

    declare_options(args.direction)
    if not args.grid:
        names = results.list_grids(args.root)
        print("".join(f"{name}\n" for name in names), end="")
        if not names:
            root = output_root(args.root)
            logger.info("no grid has run in %s yet; `audiotok plan` lists grids, `dora grid NAME` runs one", root)
        return 0
    if args.by is None and args.importance is None:
        options = ("metric", "pivot", "baseline", "best_by", "pooled")
        given = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name) not in (None, False)]
        if given:
            raise ResultsError(f"{', '.join(given)} needs --by, such as --by losses.mmd.")
    elif args.runs:
        raise ResultsError("--runs is a row per run and --by a row per condition; give one of them.")
    if args.published and (args.output is not None or args.format not in ("table", "markdown", "latex")):
        raise ResultsError("--published goes to stdout as table, markdown or latex: they are not numbers of this grid.")
    if args.width is not None and args.width < 0:
        raise ResultsError(f"--width {args.width}: a number of characters from 0 on expected.")
    experiments = _load(args)
    while args.watch is not None and any(map(_may_change, experiments.records)):
        _show(args, experiments, clear=in_colour(sys.stdout))
        time.sleep(max(args.watch, 0.1))
        experiments = _load(args)
    _show(args, experiments, clear=args.watch is not None and in_colour(sys.stdout))
    if args.samples:
        for record in experiments.records:
            for folder in sorted(record.folder.glob("samples/*")):
                logger.info("samples: %s", clean_text(str(folder)))
    incomplete = [record for record in experiments.records if record.state != "COMPLETED"]
    if args.check and incomplete:
        for record in incomplete:
            logger.error("not completed: %s", clean_text(f"{record.sig} {record.state} {record.reason}"))
        return EXIT_INCOMPLETE
    return 0


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Options that choose runs and their order, of `results` and of `best`."""
    example = "'losses.mmd>0 and state==COMPLETED'"
    parser.add_argument("--where", metavar="CONDITION", help=f"only runs for which this holds, such as {example}")
    parser.add_argument(
        "--sort", metavar="NAMES", help="columns, as NAME, NAME:asc or NAME:desc (default of a metric: the best first)"
    )
    parser.add_argument(
        "--direction",
        metavar="NAME=WAY",
        action="append",
        default=[],
        help="which way a metric is better: higher, lower, near_zero or neutral; repeatable",
    )
    parser.add_argument("--top", type=int, metavar="N", help="the first N rows only")


def chosen(experiments: "Experiments", condition: str | None) -> "Experiments":
    """The runs for which a condition holds."""
    from audiotok.results.query import where

    if condition is None:
        return experiments
    found = experiments.take(where(experiments.runs, condition).tolist())
    logger.info("%d of %d runs: %s", len(found.runs), len(experiments.runs), clean_text(condition))
    return found


def in_order(table: "pd.DataFrame", sort: str | None, top: int | None) -> "pd.DataFrame":
    """The first rows of a table in an order."""
    from audiotok.results.query import ordered

    if top is not None and top < 1:
        raise ResultsError(f"--top {top}: a number of rows from 1 on expected.")
    table = table if sort is None else ordered(table, _names(sort))
    return (table if top is None else table.head(top)).reset_index(drop=True)


def _load(args: argparse.Namespace) -> "Experiments":
    from audiotok.results.experiments import load_named

    return chosen(load_named(args.grid, args.root), args.where)


def _may_change(record: "Experiment") -> bool:
    state = State.of(record.state)
    return state.live or state is State.NOT_STARTED


def _show(args: argparse.Namespace, experiments: "Experiments", *, clear: bool) -> None:
    """Print or write the requested table."""
    from audiotok.results.amended import amended_lines
    from audiotok.results.codecs import is_joined
    from audiotok.results.joined import code_lines, codec_rows, counts_codecs
    from audiotok.results.metrics import setting_lines, unmeasured
    from audiotok.results.protocols import protocol_lines
    from audiotok.results.selection import counted_line
    from audiotok.results.tables import EXACT, fitting_columns, format_table, headline_columns, write_table

    if args.importance is not None:
        table, columns = _importance(args, experiments), None
    elif args.by is not None:
        table, columns = _statistics(args, experiments), None
    elif is_joined(experiments.runs) and not args.runs:
        table = codec_rows(experiments, seeds=_seeds(args), unfinished=args.unfinished)
        columns = None if args.format in EXACT else headline_columns(experiments, table)
    else:
        table = experiments.runs
        columns = None if args.format in EXACT else headline_columns(experiments)
    table = in_order(table, args.sort, args.top)
    if args.columns is not None:
        columns = _names(args.columns)
        of_runs = [name for name in columns if name not in table and name in experiments.runs]
        if of_runs and args.by is None:
            raise ResultsError(f"--columns {', '.join(of_runs)}: of runs, not of codecs; --runs shows a row per run.")
    if args.output is not None:
        write_table(
            table, args.output, args.format, columns, bold=True, unfinished=args.unfinished, source=experiments.runs
        )
        logger.info("wrote %s", args.output)
    else:
        bold = args.format != "table" or in_colour(sys.stdout)
        width, left_out = size_of(sys.stdout).columns if args.width is None else args.width, list[str]()
        if args.format == "table" and args.columns is None and width:
            every = list(table.columns) if columns is None else columns
            kept = [name.partition(":")[0] for name in _names(args.sort or "")] + ["n", "codecs"] * bool(args.by)
            columns = fitting_columns(table, every, width, kept)
            left_out = [name for name in every if name not in columns]
        source = experiments.runs
        text = format_table(table, args.format, columns, bold=bold, unfinished=args.unfinished, source=source)
        print(HOME_AND_CLEAR * clear + text, end="", flush=True)
        if args.baseline is not None:
            things = "codecs" if counts_codecs(experiments.runs, _names(args.by)) else "runs"
            if table.empty:
                logger.info("no condition but the baseline has runs that count: nothing is compared yet")
            for row in table.to_dict("records"):
                logger.info("%s", clean_text(_in_words(row, _names(args.by), things)))
        if left_out:
            logger.info("no room for %s; --columns NAMES chooses", ", ".join(left_out))
    if args.published:
        _show_published(args, experiments)
    logger.info("%r", experiments)
    plain = args.by is None and args.importance is None and args.format not in EXACT
    if plain and (line := counted_line(experiments.runs, unfinished=args.unfinished)):
        logger.info("for means and bold values %s", line)
    if args.by is None and args.importance is None:  # these print the lines themselves
        for line in setting_lines(experiments.runs, [name for name in columns or () if name in experiments.metrics]):
            logger.info("%s", line)
    if args.output is None and (line := unmeasured(experiments)):
        logger.info("%s", line)
    for line in amended_lines(experiments):
        logger.warning("%s", line)
    lines = protocol_lines(experiments)
    for line in code_lines(experiments):
        logger.info("%s", line)
    for line in lines:
        logger.log(logging.WARNING if len(lines) > 1 else logging.INFO, "%s", line)


def _show_published(args: argparse.Namespace, experiments: "Experiments") -> None:
    from audiotok.results.published import REMARK, published_table
    from audiotok.results.tables import format_table

    table = published_table(experiments.metrics)
    if table.empty and args.watch is not None:
        return  # not measured yet
    if table.empty:
        measured = "evaluate.sisdr, evaluate.mel_distance"
        raise ResultsError(f"--published: no run of {experiments.name} has a metric of the published ones: {measured}.")
    print("\n" + format_table(table, args.format), end="", flush=True)
    logger.info("%s", REMARK)


def _statistics(args: argparse.Namespace, experiments: "Experiments") -> "pd.DataFrame":
    """Rows of conditions rather than of runs."""
    from audiotok.results.conclusions import against_baseline, over_design
    from audiotok.results.joined import counts_codecs, replicates
    from audiotok.results.metrics import HEADLINE, known_metric, metric_values, selection_line, setting_lines
    from audiotok.results.selection import counted, counted_line
    from audiotok.results.statistics import summarize
    from audiotok.results.tables import require_columns, summary_table

    by, seeds = _names(args.by), _seeds(args)
    headline = [name for name in HEADLINE if name in experiments.metrics and not name.endswith("_err")]
    if args.pooled or args.baseline:  # whether a p-value differs means little, unless it is requested
        headline = [name for name in headline if (known := known_metric(name)) and known.direction != "neutral"]
    metrics = _names(args.metric) if args.metric else headline
    if not metrics:
        command = f"audiotok results {' '.join(args.grid)}"
        raise ResultsError(f"nothing of {experiments.name} has been measured yet; see `{command}`.")
    values = {name: metric_values(experiments, name, best_by=args.best_by).to_numpy() for name in metrics}
    runs = experiments.runs.assign(**values)
    require_columns(runs, [*by, *(seeds if args.seeds else ())])
    for line in [*setting_lines(runs, metrics), selection_line(args.best_by, metrics)]:
        if line:
            logger.warning("%s", line)
    codecs = counts_codecs(runs, by)
    if line := counted_line(runs, unfinished=args.unfinished):
        logger.warning("%s", line)
    mixed = [name for name in experiments.swept if name not in (*by, *seeds)]
    if mixed and not args.pooled:
        logger.warning("averaged over %s too; add to --by to keep them apart", ", ".join(mixed))
    if codecs:
        logger.info("n counts codecs: runs of one codec are no independent replicates, their mean counts once")
    if args.pooled:
        if args.baseline or args.pivot:
            raise ResultsError("--pooled compares all values of a parameter; it takes no --baseline and no --pivot.")
        options: dict[str, Any] = {"parameters": experiments.swept, "unfinished": args.unfinished}
        found = over_design(runs, by, metrics, seeds=seeds, **options)
    elif args.baseline is None:
        own = replicates(counted(runs, unfinished=args.unfinished), by, metrics, codecs=codecs)
        table = summary_table(summarize(own, by, metrics, interval=args.interval), by, args.pivot)
        return table.rename(columns={"n": "codecs"}) if codecs else table
    else:
        baseline = dict(_condition(text, experiments) for text in args.baseline)
        if args.pivot is not None or (args.seeds and len(seeds) != 1):
            raise ResultsError("--baseline pairs runs by one seed parameter and takes no --pivot.")
        options = {"parameters": experiments.swept, "unfinished": args.unfinished, "interval": args.interval}
        found = against_baseline(runs, by, metrics, baseline, seeds=seeds[0] if args.seeds else None, **options)
    for line in found.warnings:
        logger.warning("%s", clean_text(line))
    for line in found.remarks:
        logger.info("%s", clean_text(line))
    return found.table


def _importance(args: argparse.Namespace, experiments: "Experiments") -> "pd.DataFrame":
    """Shares of the parameters in the spread of a metric; what they mean goes to the log."""
    from audiotok.results.importance import grid_importance, importance_lines
    from audiotok.results.metrics import selection_line, setting_lines
    from audiotok.results.selection import counted_line

    options = ("baseline", "pivot", "pooled", "metric")
    if given := [f"--{name}" for name in options if getattr(args, name)]:
        raise ResultsError(f"--importance METRIC takes no {', '.join(given)}; leave one of them out.")
    lines = selection_line(args.best_by, [args.importance]), counted_line(experiments.runs, unfinished=args.unfinished)
    for line in [*setting_lines(experiments.runs, [args.importance]), *filter(None, lines)]:
        logger.warning("%s", line)
    parameters = _names(args.by) if args.by else None
    more: dict[str, Any] = {"seeds": _seeds(args), "best_by": args.best_by, "unfinished": args.unfinished}
    table, runs = grid_importance(experiments, args.importance, parameters, **more)
    for line in importance_lines(args.importance, runs):
        logger.info("%s", line)
    return table


def _seeds(args: argparse.Namespace) -> list[str]:
    from audiotok.results.codecs import CODEC_SEED

    return _names(args.seeds) if args.seeds else ["seed", CODEC_SEED]


def _in_words(row: Mapping[Any, Any], by: list[str], things: str = "runs") -> str:
    """A row of a comparison as a sentence: whether the condition differs from its baseline, beyond the error."""
    from audiotok.results.metrics import known_metric
    from audiotok.results.tables import format_value

    condition = ", ".join(f"{name}={format_value(row[name])}" for name in by)
    difference, low, high, pairs = (row[name] for name in ("difference", "low", "high", "n"))
    known = known_metric(row["metric"])
    found = f"{difference:+.3g} {known.unit if known else ''}".rstrip()
    of_pairs = f"1 pair of {things}" if pairs == 1 else f"{pairs} pairs of {things}"
    if pairs == 0:
        verdict = "no pair with a baseline"
    elif not low <= high:
        why = ", too few for an error" if pairs == 1 else " that differ alike, so no error is known"
        verdict = of_pairs + why + (f" ({found})" if pairs else "")
    else:
        clear = "no clear difference" if low <= 0 <= high else "lower" if difference < 0 else "higher"
        verdict = f"{clear} ({found}, 95 % interval {low:+.3g} to {high:+.3g}, {of_pairs}"
        # Of many intervals some leave out 0 by chance.
        chance = not low <= 0 <= high and row["p_holm"] >= 0.05
        verdict += f"; not clear among all rows, p_holm {row['p_holm']:.2g})" if chance else ")"
    return f"{condition} against the baseline: {row['metric']} {verdict}"


def _condition(text: str, experiments: "Experiments") -> tuple[str, Any]:
    """NAME=VALUE with the value that the runs have, whatever its type; null for a missing one."""
    from audiotok.results.baseline import shown
    from audiotok.results.query import is_value

    name, separator, given = text.partition("=")
    if not separator or name not in experiments.parameters:
        known = ", ".join(experiments.parameters)
        raise ResultsError(f"--baseline {text}: NAME=VALUE expected; parameters are: {known}.")
    values = list(dict.fromkeys(experiments.runs[name]))
    for value in values:
        if is_value(value, given):
            return name, value
    known = ", ".join(dict.fromkeys(shown(value) for value in values))
    raise ResultsError(f"--baseline {text}: no run has it; {name} is one of: {known}.")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))

"""`audiotok best`: the runs of grids that are best by a metric, with its error, and where their checkpoints are."""

import argparse
import json
import logging
import math
from typing import TYPE_CHECKING, Any

from audiotok.cli.results import add_filters, chosen, in_order
from audiotok.errors import ResultsError
from audiotok.text import clean_text

if TYPE_CHECKING:
    import pandas as pd

    from audiotok.results import Experiments

logger = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.th"  # of the solver; `audiotok.checkpoint` imports torch


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("best", help="the best run of a grid by a metric: value, error, checkpoint")
    parser.description = (
        "Print the run of a grid that is best by a metric: signature, last value with its error over recordings where "
        "that was measured, and checkpoint. Values of runs that differ less than by their errors or seeds are no order."
    )
    parser.add_argument("grid", nargs="+", metavar="GRID", help="names as given to `dora grid`, or signatures")
    parser.add_argument("metric", metavar="METRIC", help="such as evaluate.sisdr")
    parser.add_argument("--root", metavar="DIR", help="results folder (default: $AUDIOTOK_OUTPUT_DIR or ./outputs)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--unfinished", action="store_true", help="count runs that have not completed, too")
    add_filters(parser)
    parser.set_defaults(run=_best)


def _best(args: argparse.Namespace) -> int:
    from audiotok.results.declared import declare_options
    from audiotok.results.experiments import load_named
    from audiotok.results.metrics import metric_in, not_compared, require_metric
    from audiotok.results.protocols import protocol_lines
    from audiotok.results.selection import counted_line
    from audiotok.results.tables import format_table

    declare_options(args.direction)
    experiments = chosen(load_named(args.grid, args.root), args.where)
    metric = require_metric(experiments, args.metric)
    counted = experiments.counted(unfinished=args.unfinished)
    known, apart = metric_in(counted.runs, metric), not_compared(counted.runs, metric)
    if args.sort is None and (known is None or known.direction == "neutral"):
        give = f"give one: --sort {metric}:asc or --sort {metric}:desc"
        why = f"{apart}; choose runs that were measured alike with --where, or {give}" if apart else None
        raise ResultsError(f"{metric} {why or f'has no better direction; {give}'}.")
    protocols = protocol_lines(counted) if metric.startswith("evaluate.") else []
    lines = [counted_line(experiments.runs, unfinished=args.unfinished), *(protocols if len(protocols) > 1 else [])]
    for line in filter(None, lines):
        logger.warning("%s", line)
    ranked = _ranked(counted, metric)
    table = in_order(ranked, args.sort or metric, 1 if args.top is None else args.top)
    if line := _ties_line(ranked, metric):
        logger.info("%s", line)
    if table.empty:
        raise ResultsError(f"no run of {experiments.name} that counts has measured {metric}.")
    if args.format == "json":
        rows = [{name: _json(value) for name, value in row.items()} for row in table.to_dict("records")]
        print(json.dumps(rows, indent=1))
    else:
        print(format_table(table, args.format), end="")
    for row in table.to_dict("records"):
        if row["checkpoint"] is None:
            logger.warning("%s has no %s in its folder", clean_text(row["sig"]), _CHECKPOINT)
    return 0


def _ranked(experiments: "Experiments", metric: str) -> "pd.DataFrame":
    """Runs that have measured a metric: what sets them apart, value, error, its mean over seeds, checkpoint."""
    from audiotok.results.codecs import CODEC_SEED
    from audiotok.results.tables import Estimate

    error, runs = f"{metric}_err", experiments.runs
    swept = [name for name in experiments.swept if name not in ("seed", CODEC_SEED)]
    names = ["sig", *experiments.swept, metric, *([error] if error in runs.columns else [])]
    files = [record.folder / _CHECKPOINT for record in experiments.records]
    checkpoints = [str(file) if file.is_file() else None for file in files]
    table = runs[[*names, *(["grid"] if "grid" in runs.columns else [])]]
    measured = table[metric].where(table[metric].map(math.isfinite))
    if len(swept) < len(experiments.swept):
        keys: Any = [runs[name] for name in swept] or [0] * len(runs)
        groups = measured.groupby(keys, dropna=False)
        each = zip(groups.transform("mean"), groups.transform("std"), groups.transform("count"), strict=True)
        over_seeds: dict[str, Any] = {f"{metric} over seeds": [Estimate(mean, std, int(n)) for mean, std, n in each]}
        table = table.assign(**over_seeds)
    last: dict[str, Any] = {"checkpoint": checkpoints}
    return table.assign(**last).loc[measured.notna()]


def _ties_line(ranked: "pd.DataFrame", metric: str) -> str:
    """How many conditions do not differ from the best one beyond their seeds; empty where all do, or without seeds."""
    from audiotok.results.metrics import metric_in
    from audiotok.results.tables import best_rows

    known, column = metric_in(ranked, metric), f"{metric} over seeds"
    if known is None or column not in ranked.columns:
        return ""
    estimates = list(dict.fromkeys(ranked[column]))  # one of each condition
    tied = len(best_rows(estimates, known.direction))
    return f"over seeds {tied} of {len(estimates)} conditions are not told apart from the best mean" if tied > 1 else ""


def _json(value: Any) -> Any:
    """A value as JSON has it: null for what is missing, an estimate by its parts."""
    fields = getattr(value, "_fields", None)
    if fields is not None:
        return {name: _json(part) for name, part in zip(fields, value, strict=True)}
    return None if isinstance(value, float) and not math.isfinite(value) else value

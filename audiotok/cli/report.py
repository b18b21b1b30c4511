"""`audiotok report`: a grid as a folder of pages."""

import argparse
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiotok.errors import ResultsError

if TYPE_CHECKING:
    from audiotok.report import PageModel, ReportOptions
    from audiotok.results import Experiments

logger = logging.getLogger(__name__)

_BEST = ""  # --with-model without a name


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("report", help="pages of a grid: table, plots, statistics, players, blind test")
    parser.description = "Write a grid as a folder of pages that opens from disk, without a network."
    parser.add_argument("grid", metavar="GRID", help="name as given to `dora grid`")
    parser.add_argument("--root", metavar="DIR", help="results folder (default: $AUDIOTOK_OUTPUT_DIR or ./outputs)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default: ./reports/GRID)")
    parser.add_argument("--by", metavar="NAMES", help="parameters of a condition (default: those that differ)")
    parser.add_argument("--metric", metavar="NAMES", help="metrics, such as 'evaluate.sisdr,evaluate.mi_groups'")
    parser.add_argument(
        "--direction", metavar="NAME=WAY", action="append", default=[], help="which way a metric is better; repeatable"
    )
    parser.add_argument("--seeds", default="seed", metavar="NAME", help="parameter to average over (default: seed)")
    parser.add_argument(
        "--baseline", metavar="KEY=VALUE", action="append", help="condition to compare with; repeatable"
    )
    parser.add_argument("--unfinished", action="store_true", help="count runs that have not completed, too")
    parser.add_argument("--clips", type=int, default=8, metavar="N", help="clips of each run (default: 8)")
    parser.add_argument("--audio-mb", type=float, default=200.0, metavar="MB", help="audio in all (default: 200)")
    parser.add_argument(
        "--single-file", action="store_true", help="one file to mail: ./reports/GRID.html, without pages of runs"
    )
    parser.add_argument("--max-mb", type=float, default=20.0, metavar="MB", help="largest single file (default: 20)")
    parser.add_argument(
        "--with-model",
        nargs="?",
        const=_BEST,
        metavar="MODEL",
        help="a codec inside the page, for sounds of the reader's own: a signature of the grid, or what "
        "CompressionModel.get_pretrained takes (default: the run that is best by the first metric of --metric, else of "
        "evaluate)",
    )
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from audiotok import report, results
    from audiotok.results.declared import declare_options

    declare_options(args.direction)

    options = report.ReportOptions(
        by=_names(args.by),
        metrics=_names(args.metric),
        seeds=args.seeds,
        baseline=_baseline(args.baseline),
        clips=args.clips,
        audio_mb=args.audio_mb,
        unfinished=args.unfinished,
    )
    experiments = results.load_grid(args.grid, args.root)
    logger.info("%r", experiments)
    if args.with_model is not None:
        model = _model(experiments, options, args.with_model)
        options = replace(options, model=model)
    if args.single_file:
        output = args.output or Path("reports", f"{args.grid}.html")
        listening, size = report.write_single_file(experiments, output, options, limit_mb=args.max_mb)
        logger.info("one file of %.1f MB; the pages of the runs are not in it", size / 1e6)
    else:
        output = args.output or Path("reports", args.grid)
        listening = report.write_report(experiments, output, options)
    if options.model:
        logger.info(
            "model %s (%s): %.1f MB in the page, and %.1f MB of ONNX Runtime Web %s",
            options.model.name,
            options.model.reason,
            options.model.model_mb,
            options.model.runtime_mb,
            options.model.runtime_version,
        )
    for problem in listening.problems:
        logger.warning("audio: %s", problem)
    if listening.left_out:
        logger.info("%d reconstructions left out; see --clips and --audio-mb", listening.left_out)
    logger.info("%d clips, %.1f MB of audio and spectrograms", len(listening.clips), listening.size / 1e6)
    print(output if args.single_file else output / "index.html")
    return 0


def _model(experiments: "Experiments", options: "ReportOptions", name: str) -> "PageModel":
    """The codec of a name, or of the best run, as ONNX files in memory."""
    from audiotok.export.onnx import write_onnx
    from audiotok.models.encodec import CompressionModel, EncodecModel
    from audiotok.report import PageModel

    name, reason = (name, "named by --with-model") if name else _best(experiments, options)
    folders = {record.sig: record.folder for record in experiments.records}
    model = CompressionModel.get_pretrained(folders.get(name, name))
    if not isinstance(model, EncodecModel):
        raise ResultsError(f"{name} is no EnCodec; name one with --with-model.")
    with tempfile.TemporaryDirectory() as scratch:
        write_onnx(model, Path(scratch))
        return PageModel.read(Path(scratch), Path(name).name, reason)


def _best(experiments: "Experiments", options: "ReportOptions") -> tuple[str, str]:
    """Signature of the best run with a checkpoint, and why.

    By the first metric that has a better direction, of those named, else of evaluate: what a training minimises, such
    as the MMD, says little about what is heard.
    """
    from audiotok.checkpoint import LAST
    from audiotok.results.codecs import is_joined
    from audiotok.results.metrics import metric_in
    from audiotok.results.query import ordered

    if is_joined(experiments.runs):
        raise ResultsError(f"the runs of {experiments.name} are no codecs; name one: --with-model //sig/SIG.")
    metrics = options.judged(experiments)
    if options.metrics is None:
        metrics = sorted(metrics, key=lambda name: (not name.startswith("evaluate."), not name.startswith("valid.")))
    runs = experiments.counted(unfinished=options.unfinished).runs
    directed = [name for name in metrics if (known := metric_in(runs, name)) and known.direction != "neutral"]
    if not directed:
        raise ResultsError(
            f"no metric of {experiments.name} has a better direction and was measured alike in all runs; name a run: "
            "--with-model SIG."
        )
    there = {record.sig for record in experiments.records if (record.folder / LAST).is_file()}
    runs = runs[runs["sig"].isin(there) & runs[directed[0]].notna()]
    if runs.empty:
        raise ResultsError(
            f"no run of {experiments.name} that counts has {directed[0]} and a {LAST}; name a model: "
            "--with-model SIG, or --with-model demo."
        )
    return str(ordered(runs, [directed[0]]).iloc[0]["sig"]), f"the run that is best by {directed[0]}"


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _baseline(items: list[str] | None) -> dict[str, Any] | None:
    from audiotok.results.read import hashable, parse_value

    values = {}
    for item in items or ():
        key, separator, value = item.partition("=")
        if not key or not separator:
            raise ResultsError(f"--baseline {item!r}: expected KEY=VALUE, such as losses.mmd=0.")
        values[key.strip()] = hashable(parse_value(value))
    return values or None

"""The report: everything about a grid collected, and written into one folder as pages."""

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from audiotok import __version__
from audiotok.errors import ResultsError
from audiotok.report.chart_data import chart_data, curve_metrics
from audiotok.report.charts import HEIGHT, WIDTH, RunCharts
from audiotok.report.folder import INDEX, staged
from audiotok.report.listening import ANCHOR, LOWEST_HZ, RANGE_DB, REFERENCE, Listening, choose_clips, write_clips
from audiotok.report.matrix import codebook_matrix
from audiotok.report.own_sound import PageModel
from audiotok.report.own_sound import script as own_sound_script
from audiotok.report.runs import Run, run_pages
from audiotok.report.table import (
    Column,
    codec_columns,
    compare_conditions,
    condition_columns,
    pooled_columns,
    published_columns,
    run_columns,
)
from audiotok.results.amended import amended_lines
from audiotok.results.baseline import shown
from audiotok.results.codecs import CODEC_SEED, is_joined
from audiotok.results.experiments import Experiments
from audiotok.results.joined import code_lines, counts_codecs
from audiotok.results.metrics import CODEC, HEADLINE, known_metric, require_metric, setting_lines, unmeasured
from audiotok.results.protocols import protocol_lines
from audiotok.results.published import REMARK
from audiotok.results.selection import counted, counted_line
from audiotok.text import clean_text

ASSETS = Path(__file__).parent / "assets"
CHARTS = ("charts.js", "chart_tradeoff.js", "chart_parallel.js", "chart_curves.js", "chart_heatmap.js", "chart_bars.js")
SCRIPT = (  # in this order
    *("page.js", *CHARTS, "filter.js", "table.js", "audio.js", "deck.js", "player.js"),
    *("chance.js", "votes.js", "kinds.js", "tests.js", "keys.js"),
)
LIBRARY = "vendor/echarts.min.js"  # Apache ECharts as published
MAX_CHARTS = 100  # metrics that have a chart on each page of a run, besides those that the report judges by
PLAIN_ROWS = 100  # runs up to which the table can be read without JavaScript


@dataclass(frozen=True)
class ReportOptions:
    """Choices of the reader."""

    by: Sequence[str] | None = None  # parameters of a condition; None: those that differ, without `seeds`
    metrics: Sequence[str] | None = None  # `stage.metric` names to judge by; None: the headline ones
    seeds: str = "seed"  # parameter that is averaged over, and that pairs the runs of two conditions
    baseline: Mapping[str, Any] | None = None  # values of some of `by`; the condition that the others are compared with
    clips: int = 8  # clips to listen to per run
    audio_mb: float = 200.0  # megabytes of audio and spectrograms in all
    unfinished: bool = False  # whether runs that have not completed count, too
    model: PageModel | None = None  # a codec for sounds of the reader's own, inside the page

    def __post_init__(self) -> None:
        if self.clips < 0 or not self.audio_mb >= 0:
            raise ResultsError(f"clips={self.clips}, audio_mb={self.audio_mb}; neither may be negative.")

    def conditions(self, experiments: Experiments) -> list[str]:
        """Parameters that make a condition.

        Raises:
            ResultsError: if the grid does not have one of them.
        """
        if self.by is None:
            several = len(experiments.runs) > 1
            return [name for name in experiments.swept if name not in (self.seeds, CODEC_SEED)] if several else []
        missing = [name for name in self.by if name not in experiments.parameters]
        if missing:
            known = ", ".join(experiments.parameters) or "none"
            raise ResultsError(f"no parameter {', '.join(missing)} in {experiments.name}; there are: {known}.")
        return list(dict.fromkeys(self.by))

    def check_baseline(self, experiments: Experiments, by: Sequence[str]) -> None:
        """Check that there is something to compare, and by what to pair it.

        Raises:
            ResultsError: if the baseline names no condition, or the runs have no seeds to pair them by.
        """
        unknown = [name for name in self.baseline or () if name not in by]
        if unknown:
            raise ResultsError(f"baseline {', '.join(unknown)} is not among the conditions: {', '.join(by) or 'none'}.")
        if self.baseline and self.seeds not in experiments.parameters and not counts_codecs(experiments.runs, by):
            raise ResultsError(
                f"no parameter {self.seeds!r} in {experiments.name} to pair the runs of two conditions by; "
                "name it with seeds (--seeds), or leave the baseline out."
            )

    def judged(self, experiments: Experiments) -> list[str]:
        """Metrics to show.

        Raises:
            ResultsError: if no run has one of them.
        """
        if self.metrics is None:
            return [name for name in HEADLINE if name in experiments.metrics]
        return [require_metric(experiments, name) for name in dict.fromkeys(self.metrics)]


def write_report(experiments: Experiments, output: Path, options: ReportOptions | None = None) -> Listening:
    """Write a grid as a folder of pages that opens from disk.

    Args:
        experiments: the grid.
        output: folder to make, or that of an earlier report, which is replaced; other files in it are left alone.
        options: what to show.

    Returns:
        What there is to listen to, and what was left out.

    Raises:
        ResultsError: if an option names what the grid does not have, or the folder cannot be written.
    """
    options = options or ReportOptions()
    by, metrics = options.conditions(experiments), options.judged(experiments)
    options.check_baseline(experiments, by)
    runs = list(run_pages(experiments))
    columns = run_columns(experiments, metrics, unfinished=options.unfinished)
    statistics = _statistics(experiments, by, metrics, options)
    seeds = options.seeds if options.seeds in experiments.parameters else "runs"
    charts = chart_data(experiments, by, metrics, [options.seeds, CODEC_SEED], unfinished=options.unfinished)
    script = _script(options.model, with_charts=charts is not None)
    averaged = "codecs, each the mean of its runs" if counts_codecs(experiments.runs, by) else seeds
    with staged(output) as stage:
        for name in ("assets", "runs"):
            (stage / name).mkdir()
        styles = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "charts.css"))
        (stage / "assets" / "report.css").write_text(styles, encoding="utf-8")
        clips, left_out = choose_clips(experiments.samples, options.clips)
        listening = write_clips(clips, stage, options.audio_mb * 1e6)
        listening.left_out += left_out
        _write_run_pages(experiments, runs, metrics, stage, unfinished=options.unfinished)
        page = (
            _environment()
            .get_template("index.html")
            .render(
                _shared(experiments),
                runs=runs,
                unfinished=[run for run in runs if run.state != "COMPLETED" or run.problems],
                columns=columns,
                plain=len(runs) <= PLAIN_ROWS,
                codecs=_codecs(experiments, metrics, options),
                counted=counted_line(experiments.runs, unfinished=options.unfinished) if runs else "",
                notes=[
                    line for line in (unmeasured(experiments), *code_lines(experiments), *_of_runs(experiments)) if line
                ],
                published=published_columns(experiments),
                remark=REMARK,
                charts=charts,
                by=by,
                seeds=averaged,
                listening=listening,
                data=_page_data(experiments, runs, columns, listening)
                | {"charts": charts, "model": options.model.data() if options.model else None},
                model=options.model,
                inlined=options.model.inlined if options.model else [],
                script=script,
                script_hash=_hash(script),
                **statistics,
            )
        )
        (stage / INDEX).write_text(page, encoding="utf-8")
    return listening


def _codecs(experiments: Experiments, metrics: list[str], options: ReportOptions) -> list[Column]:
    if not is_joined(experiments.runs):
        return []
    return codec_columns(experiments, metrics, options.seeds, unfinished=options.unfinished)


def _statistics(experiments: Experiments, by: list[str], metrics: list[str], options: ReportOptions) -> dict[str, Any]:
    directed = [name for name in metrics if (known := known_metric(name)) and known.direction != "neutral"]
    metrics = metrics if options.metrics else directed  # the mean of a p-value means little, unless it is requested
    unfinished = options.unfinished
    measured = bool(metrics) and not counted(experiments.runs, unfinished=unfinished).empty
    compared, lines = list[Any](), list[str]()
    if options.baseline:
        compared, lines = compare_conditions(
            experiments, by, metrics, options.baseline, options.seeds, unfinished=unfinished
        )
    columns, pooled_lines = pooled_columns(experiments, by, metrics, options.seeds, unfinished=unfinished)
    baseline = ", ".join(f"{name}={shown(value)}" for name, value in (options.baseline or {}).items())
    return {
        "conditions": condition_columns(experiments, by, metrics, unfinished=unfinished) if measured else [],
        "setting_lines": [clean_text(line) for line in setting_lines(experiments.runs, metrics)],
        "comparisons": compared,
        "comparison_lines": lines,
        "pooled": columns,
        "pooled_lines": pooled_lines,
        "baseline": clean_text(baseline),
    }


def _write_run_pages(
    experiments: Experiments, runs: list[Run], metrics: list[str], stage: Path, *, unfinished: bool
) -> None:
    template = _environment().get_template("run.html")
    measured = [
        name
        for name in experiments.metrics
        if name.count("_q") == 0 and not name.endswith((".duration", ".protocol")) and not name.startswith(CODEC)
    ]
    every = [name for name in measured if name not in metrics]
    rest = every[:MAX_CHARTS]
    charts, more_charts = (
        RunCharts(experiments, curve_metrics(experiments, names), unfinished=unfinished) for names in (metrics, rest)
    )
    paired = [name for name in experiments.metrics if name.startswith("evaluate.mi_q")]
    evaluated = experiments.runs[paired].notna().any(axis=1).tolist() if paired else [False] * len(runs)
    shared = _shared(experiments)
    for place, run in enumerate(runs):
        matrix = codebook_matrix(experiments, run.sig) if evaluated[place] else None
        page = template.render(
            shared,
            run=run,
            charts=charts.of(run.sig),
            more_charts=more_charts.of(run.sig),
            left_out=len(every) - len(rest),
            counted=counted_line(experiments.runs, unfinished=unfinished),
            width=WIDTH,
            height=HEIGHT,
            matrix=matrix,
            earlier=runs[place - 1].sig if place else "",
            later=runs[place + 1].sig if place + 1 < len(runs) else "",
        )
        (stage / "runs" / f"{run.sig}.html").write_text(page, encoding="utf-8")


def _shared(experiments: Experiments) -> dict[str, Any]:
    counts = experiments.runs["state"].value_counts().to_dict() if not experiments.runs.empty else {}
    return {
        "grid": clean_text(experiments.name),
        "roots": [clean_text(str(root.absolute())) for root in experiments.roots],
        "counts": [(clean_text(str(state)), count) for state, count in counts.items()],
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": __version__,
    }


def _page_data(
    experiments: Experiments, runs: list[Run], columns: list[Column], listening: Listening
) -> dict[str, Any]:
    """What the script of the page works on."""
    labels = {run.sig: run.label for run in runs}
    takes = {take["run"] for clip in listening.clips for take in clip["takes"]}
    of_heads = [take.split(" ") for take in sorted(takes) if " " in take]
    heads = {f"{sig} {head}": ", ".join(filter(None, (labels[sig], f"{head} head"))) for sig, head in of_heads}
    return {
        "grid": clean_text(experiments.name),
        "lowest_hz": LOWEST_HZ,
        "range_db": RANGE_DB,
        "reference": REFERENCE,
        "anchor": ANCHOR,
        "runs": labels | heads,
        "table": [column.data() for column in columns] if runs else [],
        "words": [" ".join([run.reason, *run.problems]) for run in runs],  # that the search finds besides the cells
        "tones": {run.state: _tone(run.state) for run in runs},
        "clips": listening.clips,
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tone"] = _tone
    return environment


def _of_runs(experiments: Experiments) -> list[str]:
    """Lines about what the numbers of some runs do not compare with."""
    return [*amended_lines(experiments), *protocol_lines(experiments)]


def _tone(state: str) -> str:
    """Class of a state: how it is coloured."""
    going = state in ("RUNNING", "PENDING", "NOT_STARTED", "REQUEUED", "EXTENDED")
    return "good" if state == "COMPLETED" else "going" if going else "bad"


def _script(model: PageModel | None, *, with_charts: bool) -> str:
    """The page's only script: the library of the charts, then its own parts in one scope of theirs."""
    library = [(ASSETS / LIBRARY).read_text(encoding="utf-8")] if with_charts else []
    parts = [(ASSETS / name).read_text(encoding="utf-8") for name in SCRIPT]
    if model:
        parts.append(own_sound_script())
    return "\n".join([*library, '(() => {\n"use strict";\n', *parts, "})();\n"])


def _hash(script: str) -> str:
    """What the page's policy knows its only script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

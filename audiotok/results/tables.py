"""DataFrame of runs to text: a terminal table, Markdown, LaTeX or CSV; or to a Parquet file.

What comes from files (labels, reasons, names) is made harmless: escape sequences and control characters never
reach the terminal, pipes never break a Markdown row, and LaTeX sees no command. CSV and Parquet keep every value, at
full precision.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.metrics import CODEC, HEADLINE, Direction, Floats, goodness, known_metric, metric_in
from audiotok.results.selection import counted
from audiotok.text import clean_text, spoken_duration

if TYPE_CHECKING:
    from audiotok.results.experiments import Experiments

TableFormat = Literal["table", "csv", "markdown", "latex", "parquet"]
EXACT: tuple[str, ...] = ("csv", "parquet")  # formats for programs: every column, every digit
MISSING = "-"
_MAX_TEXT = 60
_MAX_LISTED = 20  # names of columns in a message
_MAX_CLEANED = 1000  # of a text of megabytes, of which so few are shown
_SAME = 1e-12  # of a mean: a spread below it is rounding of equal values
_SMALL = 1e-3  # numbers below it, an MMD for example, are in scientific notation
_DECIMALS = 6  # at most, but for means with a small spread
_SHORT_NUMBER = 7  # characters: a number as short as that was typed by a person, and is shown as it is
_MEASURED = ("train", "valid", "evaluate", "generate")
_RISK = 0.05  # that the row which is best in truth is not marked
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_MARKDOWN = re.compile(r"[\\|<`*]")
_MINUS = re.compile(r"(?<!\{)-(?=[0-9])")  # those of powers are within $…$ already
_POWER = re.compile(r"(?<=[0-9])e\+?(-?)0*([0-9]+)")
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
}
_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "near_zero": r"$\to 0$"}


def format_table(
    runs: pd.DataFrame,
    fmt: str = "table",
    columns: Sequence[str] | None = None,
    *,
    bold: bool = False,
    unfinished: bool = False,
    source: pd.DataFrame | None = None,
) -> str:
    """Write runs as text.

    Args:
        runs: `Experiments.runs`, a summary, or any DataFrame.
        fmt: `table` (aligned, rounded), `markdown` (rounded), `latex` (booktabs, rounded) or `csv` (full precision).
        columns: names or patterns such as `valid.*`, in this order; default all.
        bold: mark the best values of every metric that has a better direction (`best_rows`); for `table`, with terminal
            escapes.
        unfinished: whether runs that have not completed can be best.
        source: the runs that the table summarises, whose settings decide which values compare; default `runs`.

    Returns:
        Lines, the last one ended too.

    Raises:
        ResultsError: if the format or a column does not exist, or the format is no text.
    """
    if fmt not in get_args(TableFormat):
        raise ResultsError(f"no table format {fmt!r}; choose one of: {', '.join(get_args(TableFormat))}.")
    if fmt == "parquet":
        raise ResultsError("parquet is not text; give a file with output (--output FILE).")
    frame = runs if columns is None else runs[_select_columns(runs.columns, columns)]
    if fmt == "csv":
        return _plain(frame).to_csv(index=False, lineterminator="\n")  # by repr of numbers, which loses nothing
    headers = [clean_text(str(name)) for name in frame.columns]
    values = [frame.iloc[:, index].tolist() for index in range(len(headers))]
    counts = _counts(frame)
    cells = [_texts(*column, counts) for column in zip(headers, values, strict=True)]
    numeric = [all(map(is_numeric, items)) for items in values]
    directions = [_direction(str(name), runs if source is None else source) for name in frame.columns]
    errors = [own_errors(runs, str(name)) for name in frame.columns]
    ranked = _ranked(runs, values, unfinished=unfinished)
    best = [best_rows(*column) if bold else set() for column in zip(ranked, directions, errors, strict=True)]
    if fmt == "latex":
        arrows = [_ARROWS.get(direction, "") for direction in directions]
        headers = [f"{_for_latex(header)} {arrow}".rstrip() for header, arrow in zip(headers, arrows, strict=True)]
        return _latex(headers, cells, numeric, best)
    return {"table": _terminal, "markdown": _markdown}[fmt](headers, cells, numeric, best)


def fitting_columns(
    table: pd.DataFrame, columns: Sequence[str] | None, width: int, kept: Sequence[str] = ()
) -> list[str]:
    """The columns that fit a terminal of this width: the first one, those kept, and the others from the left."""
    every = list(table.columns) if columns is None else list(columns)
    chosen, room = list[str](), width
    for name in dict.fromkeys([*every[:1], *(name for name in kept if name in table.columns), *every]):
        cells = _texts(name, table[name].tolist(), _counts(table))
        needs = max(map(_text_width, (clean_text(name), *cells))) + 2 * bool(chosen)
        if needs <= room or not chosen:
            chosen.append(name)
            room -= needs
    return sorted(chosen, key=[*every, *chosen].index)


def write_table(
    runs: pd.DataFrame,
    path: Path,
    fmt: str = "table",
    columns: Sequence[str] | None = None,
    *,
    bold: bool = False,
    unfinished: bool = False,
    source: pd.DataFrame | None = None,
) -> None:
    """Write runs to a file; see `format_table`. Parquet holds lists as JSON text.

    Raises:
        ResultsError: if the format or a column does not exist, or the file cannot be written.
    """
    try:
        if fmt == "parquet":
            frame = runs if columns is None else runs[_select_columns(runs.columns, columns)]
            _plain(frame).convert_dtypes().to_parquet(path, index=False)
        else:
            text = format_table(runs, fmt, columns, bold=bold and fmt != "table", unfinished=unfinished, source=source)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}.") from error


def _select_columns(available: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Expand names and shell patterns to columns, without repeats.

    Raises:
        ResultsError: if one matches nothing; the message holds the nearest names.
    """
    names = [str(name) for name in available]
    selected: dict[str, None] = {}
    for pattern in patterns:
        found = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            near = get_close_matches(pattern, names, n=5, cutoff=0.3) or names
            raise ResultsError(f"no column {pattern!r}; there are: {', '.join(near)} ({len(names)} in all).")
        selected |= dict.fromkeys(found)
    return list(selected)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The last part of each name, and the whole name where two would be the same."""
    last = {name: name.rpartition(".")[2] for name in names}
    shared = list(last.values())
    return {name: short if shared.count(short) == 1 else name for name, short in last.items()}


def condition_text(names: Sequence[str], values: Sequence[Any]) -> str:
    """A condition in a legend, `mmd=0.5, n_q=4`: without its missing values, unless all of them are."""
    pairs = list(zip(names, values, strict=True))
    there = [(name, value) for name, value in pairs if not _is_missing(value)]
    return ", ".join(f"{name}={format_value(value)}" for name, value in there or pairs)


def require_columns(runs: pd.DataFrame, names: Iterable[str]) -> None:
    """Check that columns exist.

    Raises:
        ResultsError: naming those that do not, and the nearest that do.
    """
    missing = [name for name in names if name not in runs.columns]
    if missing:
        names = list(map(str, runs.columns))
        names = list(dict.fromkeys([*get_close_matches(missing[0], names, n=5, cutoff=0.3), *names]))
        more = f", ... ({len(names) - _MAX_LISTED} more)" * (len(names) > _MAX_LISTED)
        raise ResultsError(f"no column {', '.join(missing)}; there are: {', '.join(names[:_MAX_LISTED])}{more}.")


def headline_columns(experiments: "Experiments", table: pd.DataFrame | None = None) -> list[str]:
    """Columns worth reading first: what was swept, how it went, and the headline metrics.

    Args:
        experiments: the runs.
        table: of them, whose columns are chosen from; default `runs`. One of codecs has a column `n`.
    """
    runs = experiments.runs if table is None else table
    notes = [name for name in ("reason", "problems") if name in runs and (runs[name] != "").any()]
    measured = [column for column in HEADLINE if column in runs.columns]
    first = ["sig", "grid", f"{CODEC}sig", *experiments.swept, "state", "n", "epochs", "duration"]
    return [name for name in [*first, *measured, *notes] if name in runs.columns]


def summary_table(summary: pd.DataFrame, by: Sequence[str], pivot: str | None = None) -> pd.DataFrame:
    """Turn the tidy rows of `statistics.summarize` into a table to read.

    Args:
        summary: what `summarize` returned.
        by: the columns it was grouped by.
        pivot: one of `by`, whose values become columns.

    Returns:
        One row per group (without `pivot`): its parameters, `n` (runs; of the metric, or value of `pivot`, that has
        most), and one column of `Estimate` per metric (and value of `pivot`).

    Raises:
        ResultsError: if `pivot` is not one of `by`, or is the only one.
    """
    rows = [name for name in by if name != pivot]
    if pivot is not None and (pivot not in by or not rows):
        raise ResultsError(f"pivot={pivot!r}; choose one of: {', '.join(by)}, and leave another one for the rows.")
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in summary.to_dict("records"):
        key = tuple(None if _is_missing(record[name]) else record[name] for name in rows)  # NaN is no key
        row = table.setdefault(key, dict(zip(rows, key, strict=True)))
        where = "" if pivot is None else f"{pivot.rpartition('.')[2]}={format_column([record[pivot]])[0]}"
        row["n"] = max(row.get("n", 0), record["n"])
        row[f"{record['metric']} {where}".rstrip()] = Estimate(record["mean"], record["std"], record["n"])
    return pd.DataFrame(list(table.values()))


def best_rows(items: Sequence[Any], direction: Direction, errors: Sequence[float] | None = None) -> set[int]:
    """Rows with the best finite value, and those that do not differ from it beyond their errors.

    With at least 95 % of probability the row that is best in truth is among them: each other row is compared with the
    best one by a one-sided test, at Bonferroni's share of 5 % (Gupta's subset selection, 1965).

    Args:
        items: numbers, or `Estimate`s, whose errors follow from the spread of all rows together (all are taken for
            equally noisy, since two seeds hardly measure the noise of one condition).
        direction: of the metric; of a neutral one no row is best. With `near_zero` rows within their error of 0 are
            all best, if any is.
        errors: standard error of each number; by default none, and only equal values are best together.

    Returns:
        Indices; empty where there is no choice, for fewer than two values are finite.
    """
    numbers = np.array([number_of(value) for value in items], np.float64)
    finite = np.isfinite(numbers)
    if direction == "neutral" or finite.sum() < 2:
        return set()
    scores = np.where(finite, goodness(numbers, direction), -np.inf)
    best = int(np.argmax(scores))
    spread, degrees = _errors(items) if errors is None else (np.nan_to_num(np.array(errors, np.float64)), None)
    reach = _quantile(1 - _RISK / (finite.sum() - 1), degrees) * np.hypot(spread, spread[best])
    equal = scores >= scores[best] - reach
    if direction == "near_zero" and equal[best] and -scores[best] <= _quantile(1 - _RISK / 2, degrees) * spread[best]:
        equal |= -scores <= _quantile(1 - _RISK / 2, degrees) * spread
    return set(np.flatnonzero(finite & equal).tolist())


def own_errors(runs: pd.DataFrame, column: str) -> list[float] | None:
    """Error of each run's own value of a metric that is better near 0, where it was measured (`evaluate.mmd_err`).

    Of other metrics the error is over recordings, which all runs share: it is not the error of a difference.
    """
    metric = known_metric(column)
    if metric is None or metric.direction != "near_zero" or f"{column}_err" not in runs.columns:
        return None
    if any(isinstance(value, Estimate) for value in runs[column]):
        return None  # the spread over seeds covers more
    return [number_of(value) for value in runs[f"{column}_err"]]


def _errors(items: Sequence[Any]) -> tuple[Floats, int | None]:
    """Standard error of the mean of each row, from the spread within all rows; and its degrees of freedom."""
    estimates = [value for value in items if isinstance(value, Estimate) and value.n > 1 and math.isfinite(value.std)]
    degrees = sum(value.n - 1 for value in estimates)
    if not degrees:
        return np.zeros(len(items)), None
    std = math.sqrt(sum((value.n - 1) * value.std**2 for value in estimates) / degrees)
    return np.array([std / math.sqrt(getattr(value, "n", 0) or 1) for value in items]), degrees


def _quantile(probability: float, degrees: int | None) -> float:
    from scipy import special  # here: it takes longer to import than a table to print

    return float(special.ndtri(probability) if degrees is None else special.stdtrit(degrees, probability))


def _direction(header: str, runs: pd.DataFrame) -> Direction:
    """Which way a column is better; neutral where its values do not compare."""
    name = header.partition(" ")[0]  # `losses.mmd` is a parameter, `evaluate.mmd` is measured
    metric = metric_in(runs, name) if name.removeprefix(CODEC).partition(".")[0] in _MEASURED else None
    return "neutral" if metric is None else metric.direction


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of their parts instead of estimates; lists as JSON."""
    columns: dict[str, Any] = {}
    for name, items in frame.items():
        if any(isinstance(value, Estimate) for value in items):
            for part in Estimate._fields:
                columns[f"{name}.{part}"] = [getattr(value, part, None) for value in items]
        else:
            columns[str(name)] = items.array
    return pd.DataFrame(columns).map(lambda value: json.dumps(value) if isinstance(value, tuple) else value)


def _terminal(headers: list[str], cells: list[list[str]], numeric: list[bool], best: list[set[int]]) -> str:
    columns = [[header, *column] for header, column in zip(headers, cells, strict=True)]
    for index, column in enumerate(columns):
        width = max(map(_text_width, column))
        spaces = [" " * (width - _text_width(text)) for text in column]
        padded = [s + text if numeric[index] else text + s for s, text in zip(spaces, column, strict=True)]
        marked = [f"{_BOLD}{text}{_PLAIN}" if row - 1 in best[index] else text for row, text in enumerate(padded)]
        columns[index] = [marked[0], "-" * width, *marked[1:]]
    return "".join("  ".join(row).rstrip() + "\n" for row in zip(*columns, strict=True))


def _markdown(headers: list[str], cells: list[list[str]], numeric: list[bool], best: list[set[int]]) -> str:
    columns = []
    for header, column, right, winners in zip(headers, cells, numeric, best, strict=True):
        escaped = [_MARKDOWN.sub(r"\\\g<0>", text) for text in [header, *column]]
        marked = [f"**{text}**" if row in winners else text for row, text in enumerate(escaped[1:])]
        columns.append([escaped[0], "---:" if right else "---", *marked])
    return "".join(f"| {' | '.join(row)} |\n" for row in zip(*columns, strict=True))


def _latex(headers: list[str], cells: list[list[str]], numeric: list[bool], best: list[set[int]]) -> str:
    columns = []
    for header, column, right, winners in zip(headers, cells, numeric, best, strict=True):
        escaped = list(enumerate(map(_for_latex, column)))
        if right:
            powers = [(row, _POWER.sub(r"$\\cdot 10^{\1\2}$", text)) for row, text in escaped]
            escaped = [(row, _MINUS.sub("$-$", text)) for row, text in powers]
        columns.append([header, *(rf"\textbf{{{text}}}" if row in winners else text for row, text in escaped)])
    lines = [f"{' & '.join(row)} \\\\\n" for row in zip(*columns, strict=True)]
    alignment = "".join("r" if right else "l" for right in numeric)
    begin = f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule\n"
    return begin + lines[0] + "\\midrule\n" + "".join(lines[1:]) + "\\bottomrule\n\\end{tabular}\n"


def _ranked(runs: pd.DataFrame, values: list[list[Any]], *, unfinished: bool) -> list[list[Any]]:
    """Values that can be best: of a table of runs those of runs that count."""
    if "sig" not in runs.columns or "state" not in runs.columns:
        return values
    count = runs.index.isin(counted(runs, unfinished=unfinished).index)
    return [[value if here else None for value, here in zip(items, count, strict=True)] for items in values]


def _counts(table: pd.DataFrame) -> list[Any] | None:
    """Runs, or codecs, of each row, where the table has them."""
    return next((table[name].tolist() for name in ("n", "codecs") if name in table.columns), None)


def _texts(header: str, items: Sequence[Any], counts: Sequence[Any] | None = None) -> list[str]:
    """Text of every value of a column; durations as people write them, estimates of fewer runs than others with n."""
    if header.rpartition(".")[2] == "duration" and not any(isinstance(value, Estimate) for value in items):
        return [spoken_duration(number_of(value)) for value in items]
    texts = format_column(items)
    if counts is None:
        return texts
    fewer = [isinstance(value, Estimate) and 0 < value.n < n for value, n in zip(items, counts, strict=True)]
    return [f"{text} (n = {value.n})" if less else text for text, value, less in zip(texts, items, fewer, strict=True)]


def _for_latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


class Estimate(NamedTuple):
    """A mean over runs; shown as `mean ± std`."""

    mean: float  # NaN if no run has the value
    std: float  # NaN for fewer than two runs
    n: int  # runs


def format_column(items: Sequence[Any]) -> list[str]:
    """Text of every value of a column, numbers with as many decimals as the column needs."""
    estimates = [value for value in items if isinstance(value, Estimate)]
    if estimates:
        decimals = _estimate_decimals(estimates)
        return [_format_estimate(value, decimals) if isinstance(value, Estimate) else MISSING for value in items]
    digits = _decimals([value for value in items if isinstance(value, float) and math.isfinite(value)])
    return [format_value(value, digits) for value in items]


def format_value(value: Any, decimals: int | None = None) -> str:
    """Text of one value: no more digits than a reader uses, lists in brackets, long texts cut."""
    if _is_missing(value):
        return MISSING
    if isinstance(value, tuple | list):
        return "[" + ", ".join("null" if item is None else format_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if decimals is not None and math.isfinite(value):
            return f"{value:.{decimals}f}"
        short = f"{value:g}"
        if len(short) <= _SHORT_NUMBER and float(short) == value:
            return short
        if 0 < abs(value) < _SMALL:
            return f"{value:.3e}"
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"
    text = clean_text(str(value)[:_MAX_CLEANED])
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _is_missing(value: object) -> bool:
    """Whether there is nothing to show."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def is_numeric(value: object) -> bool:
    """Whether a cell is aligned to the right."""
    return _is_missing(value) or (isinstance(value, int | float | Estimate) and not isinstance(value, bool))


def number_of(value: object) -> float:
    """What a cell is ranked by; NaN if it is no number."""
    if isinstance(value, Estimate):
        return value.mean
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _text_width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _decimals(floats: Sequence[float]) -> int | None:
    """Digits after the point for a whole column; None where each number is better written on its own."""
    sizes = [abs(value) for value in floats if value]
    if not sizes or all(len(f"{value:g}") <= _SHORT_NUMBER and float(f"{value:g}") == value for value in floats):
        return None
    if max(sizes) < _SMALL:
        return None  # in scientific notation, where four digits of each fit
    decimals = min(max(3 - math.floor(math.log10(max(sizes))), 0), _DECIMALS)
    return decimals if min(sizes) >= 10.0 ** (1 - decimals) else None


def _estimate_decimals(estimates: Sequence[Estimate]) -> int:
    """Two digits of the typical spread, or four of the largest mean where there is no spread."""
    spreads = sorted(
        value.std for value in estimates if math.isfinite(value.std) and value.std > _SAME * abs(value.mean)
    )
    means = [abs(value.mean) for value in estimates if math.isfinite(value.mean) and value.mean]
    size, digits = (spreads[len(spreads) // 2], 1) if spreads else (max(means, default=1.0), 3)
    return min(max(digits - math.floor(math.log10(size)), 0), 8)


def _format_estimate(value: Estimate, decimals: int) -> str:
    if not math.isfinite(value.mean):
        return MISSING
    if 0 < abs(value.mean) < _SMALL and decimals > _DECIMALS:
        spread = value.std if math.isfinite(value.std) and value.std > 0 else abs(value.mean) / 100
        digits = min(max(math.floor(math.log10(abs(value.mean))) - math.floor(math.log10(spread)) + 1, 1), 6)
        mean = f"{value.mean:.{digits}e}"
        return mean if not math.isfinite(value.std) else f"{mean} ± {value.std:.1e}"
    mean = f"{value.mean:.{decimals}f}"
    return mean if not math.isfinite(value.std) else f"{mean} ± {value.std:.{decimals}f}"

"""Answers of blind tests, as the page of a report saves them: read from the files of several listeners, and pooled.

Files come from others and are data: what is damaged, foreign or huge is left out, with a line that names it.

ABX and preference: shares with the interval of Korn and Graubard (1998, Survey Methodology 24), that of Clopper and
Pearson with as many trials as the answers of listeners who differ from one another are worth; it is the exact binomial
interval where they do not differ, and widens with the variance between them as for a beta-binomial. Rating: the mean of
a listener over clips counts once; Student's interval over listeners, after the post-screening of ITU-R BS.1534-3.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from audiotok.errors import ResultsError
from audiotok.files import UnreadableError, read_bytes
from audiotok.text import clean_text

REFERENCE = "reference"  # condition of a rating test that is the hidden reference
NONE = "none"  # answer without a preference
ABX, PREFERENCE, RATING = "abx", "preference", "mushra"
MISSED_BELOW = 90.0  # score of a hidden reference that was not recognised
MISSED_SHARE = 0.15  # of the items, above which a listener is left out
COLUMNS = (
    *("file", "grid", "listener", "kind", "test", "trial", "trials", "clip", "loudness"),
    *("a", "b", "x", "answer", "correct", "condition", "position", "score"),
)
_REQUIRED = ("test", "trial", "clip", "listener")
_CONFIDENCE = 0.95
_MAX_BYTES = 8 * 2**20  # of a file: forty thousand answers
_MAX_FILES = 10_000
_MAX_ANSWERS = 200_000  # in all
_MAX_REFUSED = 1000  # of a file, before the rest of it is left out
_KEY = ("grid", "listener", "kind", "test", "trial", "clip", "condition")
_GIVEN = ("a", "b", "x", "answer", "score")

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Pooled:
    """Results over listeners; a table without rows where there were no answers of its kind."""

    abx: pd.DataFrame  # grid, loudness, a, b, listeners, trials, correct, share, low, high, p
    preference: pd.DataFrame  # grid, loudness, a, b, listeners, for_a, for_b, none, share_b, low, high, p, p_listeners
    rating: pd.DataFrame  # grid, loudness, condition, listeners, ratings, mean, std, low, high
    remarks: list[str]  # listeners that were left out, and what limits the numbers


def read_votes(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the answers in the CSV files of a folder.

    An answer that is in several files counts once, as it is in the first. A listener without a name is called by the
    first file that has an answer in common with this one.

    Args:
        folder: folder of files that the page has saved, or one such file.

    Returns:
        A row per answer (per signal, of a rating) with COLUMNS, and a line for each file that lost some or all.

    Raises:
        ResultsError: if there is no such folder, or it holds no answers.
    """
    if not folder.exists():
        raise ResultsError(f"--votes {folder}: there is no such folder; it holds the CSV files that listeners saved.")
    paths = sorted(folder.glob("*.csv")) if folder.is_dir() else [folder]
    problems = [f"only the first {_MAX_FILES} of {len(paths)} files are read"] if len(paths) > _MAX_FILES else []
    answers: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in paths[:_MAX_FILES]:
        rows, problem = _file(path)
        problems += [clean_text(f"{path.name}: {problem}")] if problem else []
        keyed = [(tuple(row[name] for name in _KEY), row) for row in rows]
        earlier = (answers[key]["listener"] for key, row in keyed if not row["listener"] and key in answers)
        nameless = next(earlier, f"({_text(path.stem)})")
        differ = 0
        for key, row in keyed:
            row["listener"] = row["listener"] or nameless
            kept = answers.setdefault(key, row)
            differ += any(str(kept[name]) != str(row[name]) for name in _GIVEN)
        if differ:
            contradict = f"{differ} of {len(rows)} answers differ from earlier ones of the same trial, which count"
            problems.append(clean_text(f"{path.name}: {contradict}"))
        if len(answers) > _MAX_ANSWERS:
            problems.append(clean_text(f"more than {_MAX_ANSWERS} answers: the files after {path.name} are left out"))
            break
    if not answers:
        found = "; ".join(problems) if problems else "there are no .csv files"
        raise ResultsError(f"--votes {folder}: no answers of blind tests ({found[:300]}).")
    return pd.DataFrame(list(answers.values()), columns=list(COLUMNS)), problems


def _file(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Answers in a file, and what was left out, or an empty text."""
    try:
        text = read_bytes(path, limit=_MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnreadableError) as error:
        return [], f"left out: {getattr(error, 'reason', error)}"
    except UnicodeDecodeError:
        return [], "left out: no text in UTF-8"
    head = text.partition("\n")[0]
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if ";" in head and "," not in head else ",")
    rows, refused, first = list[dict[str, Any]](), 0, ""
    try:
        missing = [name for name in _REQUIRED if name not in (lines.fieldnames or ())]
        if missing:
            return [], f"left out: no answers of a blind test (no column {', '.join(missing)})"
        for line in lines:
            try:
                rows.append(_row(line, path))
            except ValueError as error:
                refused += 1
                first = first or f"line {lines.line_num}, {error}"
                if refused == _MAX_REFUSED:
                    return rows, f"{refused} answers and all after line {lines.line_num} left out: {first[:150]}"
    except csv.Error as error:
        refused += 1
        first = first or f"line {lines.line_num} and all after it, {error}"
    return rows, f"{refused} of {refused + len(rows)} answers left out: {first[:150]}" if refused else ""


def _row(line: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """An answer with its values checked.

    Raises:
        ValueError: if it is none.
    """
    texts = {name: _text(line.get(name)) for name in COLUMNS}
    row: dict[str, Any] = texts | {"file": _text(path.name), "kind": texts["kind"] or ABX}
    row["loudness"] = texts["loudness"] or "as is"
    row["trial"] = _number(texts["trial"], "trial", 1, 1e6)
    row["trials"] = _number(texts["trials"], "trials", 1, 1e6) if texts["trials"] else math.nan
    row["score"] = row["correct"] = math.nan
    if row["kind"] == RATING:
        row["score"] = _number(texts["score"], "score", 0, 100)
        if not texts["condition"]:
            raise ValueError("a rating without its condition")
    elif row["kind"] in (ABX, PREFERENCE):
        pair = (texts["a"], texts["b"])
        if not all(pair) or pair[0] == pair[1]:
            raise ValueError(f"a {pair[0]!r} and b {pair[1]!r} are no two conditions")
        if texts["answer"] not in (*pair, *([NONE] if row["kind"] == PREFERENCE else [])):
            raise ValueError(f"answer {texts['answer']!r} is not one of a and b")
        if row["kind"] == ABX:
            row["correct"] = _number(texts["correct"], "correct", 0, 1)
            if texts["x"] not in pair or row["correct"] != (texts["x"] == texts["answer"]):
                raise ValueError(
                    f"x {texts['x']!r}, answer {texts['answer']!r} and correct {texts['correct']} do not fit"
                )
    else:
        raise ValueError(f"kind {texts['kind']!r} is none of {ABX}, {PREFERENCE}, {RATING}")
    return row


def _text(value: object) -> str:
    """A cell as text that can be shown; a quote keeps a spreadsheet from taking it for a formula, as the page does."""
    text = value if isinstance(value, str) else ""
    text = (text if text.isprintable() else clean_text(text)).strip()
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _number(text: str, name: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(f"{name} {text!r} is no number from {low:g} to {high:g}")
    return value


def pool_votes(votes: pd.DataFrame) -> Pooled:
    """Pool answers over listeners, each grid and each setting of loudness apart.

    Args:
        votes: the first of `read_votes`.

    Returns:
        Tables of the three kinds, and remarks.
    """
    remarks: list[str] = []
    ended = (
        votes.groupby(["listener", "kind", "test"])["trial"].max()
        < votes.groupby(["listener", "kind", "test"])["trials"].max()
    )
    if count := int(ended.sum()):
        remarks.append(
            f"{count} test{'s' * (count != 1)} ended before the last trial; p holds if answers did not decide when"
        )
    kinds = {kind: votes[votes["kind"] == kind] for kind in (ABX, PREFERENCE, RATING)}
    tests = _ordered(votes[votes["kind"] != RATING]).groupby(["grid", "loudness", "kind", "a", "b", "listener"])["test"]
    numbers = tests.nunique()
    if count := numbers[numbers > 1].index.get_level_values("listener").nunique():
        remarks.append(
            f"{count} listener{'s' * (count != 1)} repeated a test of the same two; p is of all answers, and holds if "
            "they did not decide whether to go on"
        )
    abx = [_abx(group, rows) for group, rows in _pairs(kinds[ABX])]
    preference = [_preference(group, rows) for group, rows in _pairs(kinds[PREFERENCE])]
    rating = [
        row for group, rows in _groups(kinds[RATING], ["grid", "loudness"]) for row in _ratings(group, rows, remarks)
    ]
    if any(row["listeners"] == 1 for row in (*abx, *preference, *rating)):
        remarks.append("of one listener the result is about this listener alone; an interval over listeners needs two")
    return Pooled(pd.DataFrame(abx), pd.DataFrame(preference), pd.DataFrame(rating), remarks)


def _groups(votes: pd.DataFrame, by: list[str]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    yield from votes.groupby(by, sort=True)  # type: ignore[misc]


def _pairs(votes: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    yield from _groups(_ordered(votes), ["grid", "loudness", "a", "b"])


def _ordered(votes: pd.DataFrame) -> pd.DataFrame:
    """Answers about pairs of conditions, each pair in one order, whichever of them was called A."""
    swapped = votes["a"] > votes["b"]
    return votes.assign(a=votes["a"].mask(swapped, votes["b"]), b=votes["b"].mask(swapped, votes["a"]))


def _abx(group: Sequence[str], votes: pd.DataFrame) -> dict[str, Any]:
    """Share of right answers. That all guess makes every answer a fair coin, so p is exact whatever the listeners."""
    by_listener = votes.groupby("listener")["correct"].agg(["sum", "size"])
    right, trials = int(by_listener["sum"].sum()), len(votes)
    low, high = share_interval(by_listener["sum"].to_numpy(float), by_listener["size"].to_numpy(float))
    p = stats.binomtest(right, trials, alternative="greater").pvalue
    own = {"listeners": len(by_listener), "trials": trials, "correct": right, "share": right / trials}
    return dict(zip(("grid", "loudness", "a", "b"), group, strict=True)) | own | {"low": low, "high": high, "p": p}


def _preference(group: Sequence[str], votes: pd.DataFrame) -> dict[str, Any]:
    """Share that prefers b of those who prefer one; exact sign tests, of the answers and of the listeners."""
    keys = dict(zip(("grid", "loudness", "a", "b"), group, strict=True))
    decided = votes[votes["answer"] != NONE]
    by_listener = (decided["answer"] == keys["b"]).groupby(decided["listener"]).agg(["sum", "size"])
    wins, answers = by_listener["sum"].to_numpy(float), by_listener["size"].to_numpy(float)
    low, high = share_interval(wins, answers)
    for_a, for_b = int((answers - wins).sum()), int(wins.sum())
    found = {
        "listeners": votes["listener"].nunique(),
        "for_a": for_a,
        "for_b": for_b,
        "none": len(votes) - len(decided),
        "share_b": for_b / len(decided) if len(decided) else math.nan,
    }
    majority_b, majority_a = int((2 * wins > answers).sum()), int((2 * wins < answers).sum())
    p = {"p": _sign_test(for_a, for_b), "p_listeners": _sign_test(majority_a, majority_b)}
    return keys | found | {"low": low, "high": high} | p


def _sign_test(one: int, other: int) -> float:
    return float(stats.binomtest(one, one + other).pvalue) if one + other else math.nan


def _ratings(group: Sequence[str], votes: pd.DataFrame, remarks: list[str]) -> Iterator[dict[str, Any]]:
    """Mean of each condition over the listeners that recognise the hidden reference."""
    hidden = votes[votes["condition"] == REFERENCE].groupby("listener")["score"]
    missed, items = (hidden.agg(how) for how in (lambda scores: (scores < MISSED_BELOW).sum(), "size"))
    listeners = sorted(votes["listener"].unique())
    kept = []
    for name in listeners:
        if name not in items:
            remarks.append(clean_text(f"listener {name} is left out: no rating of a hidden reference"))
        elif missed[name] > MISSED_SHARE * items[name]:
            counts = f"below {MISSED_BELOW:g} in {missed[name]} of {items[name]} items, more than {MISSED_SHARE:.0%}"
            remarks.append(clean_text(f"listener {name} is left out: hidden reference {counts}").replace("%", " %"))
        else:
            kept.append(name)
    votes = votes[votes["listener"].isin(kept)]
    means = votes.groupby(["condition", "listener"])["score"].mean()
    sizes = votes.groupby("condition").size()
    for condition in sorted(sizes.index, key=lambda name: -means[name].mean()):
        values = means[condition].to_numpy(float)
        low, high = _student(values)
        yield {
            **dict(zip(("grid", "loudness"), group, strict=True)),
            **{"condition": condition, "listeners": len(values), "ratings": int(sizes[condition])},
            **{
                "mean": values.mean(),
                "std": values.std(ddof=1) if len(values) > 1 else math.nan,
                "low": low,
                "high": high,
            },
        }


def _student(values: Floats) -> tuple[float, float]:
    """Student's interval of a mean, within the scale of ratings."""
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return max(0.0, values.mean() - half), min(100.0, values.mean() + half)


def share_interval(hits: Floats, trials: Floats) -> tuple[float, float]:
    """95 % interval of a share of answers that come from several listeners (Korn and Graubard, 1998).

    Args:
        hits: number of hits of each listener [L].
        trials: number of trials of each listener [L].

    Returns:
        Lower and upper end, within 0 to 1; nan without trials.
    """
    total, listeners = float(trials.sum()), len(trials)
    if not total:
        return math.nan, math.nan
    share, effective = hits.sum() / total, total
    variance = ((hits - share * trials) ** 2).sum() * listeners / max(1, listeners - 1) / total**2
    if listeners > 1 and total > 2 and variance > 0 and 0 < share < 1:
        ratio = stats.t.ppf((1 + _CONFIDENCE) / 2, total - 1) / stats.t.ppf((1 + _CONFIDENCE) / 2, listeners - 1)
        effective = min(total, share * (1 - share) / variance * ratio**2)
    successes, tail = share * effective, (1 - _CONFIDENCE) / 2
    low = stats.beta.ppf(tail, successes, effective - successes + 1) if successes > 0 else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, effective - successes) if successes < effective else 1.0
    return float(low), float(high)

"""Answers of blind tests: what is read of files of others, and what is pooled, held against SciPy and simulations."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from audiotok.cli import main
from audiotok.errors import ResultsError
from audiotok.results.votes import COLUMNS, pool_votes, read_votes, share_interval

Row = Mapping[str, Any]


def save(path: Path, rows: Sequence[Row], *, encoding: str = "utf-8", delimiter: str = ",") -> Path:
    """Write answers as the page saves them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[1:], delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def abx(listener: str, correct: Sequence[int], **other: Any) -> list[Row]:
    common = {"grid": "g", "kind": "abx", "test": f"t-{listener}", "trials": len(correct), "loudness": "as is"}
    common |= {"a": "s1", "b": "s2", "x": "s1", "clip": "c", "listener": listener, **other}
    return [
        {**common, "trial": n, "correct": right, "answer": "s1" if right else "s2"}
        for n, right in enumerate(correct, 1)
    ]


def preferences(listener: str, answers: str) -> list[Row]:
    names = {"a": "s1", "b": "s2", "-": "none"}
    common = {
        "grid": "g",
        "kind": "preference",
        "test": listener,
        "a": "s1",
        "b": "s2",
        "clip": "c",
        "listener": listener,
    }
    return [{**common, "trial": n, "answer": names[answer]} for n, answer in enumerate(answers, 1)]


def ratings(listener: str, trials: Sequence[Mapping[str, float]]) -> list[Row]:
    common = {"grid": "g", "kind": "mushra", "test": listener, "listener": listener}
    return [
        {**common, "trial": n, "clip": f"c{n}", "condition": name, "score": score}
        for n, scores in enumerate(trials, 1)
        for name, score in scores.items()
    ]


def values_of(table: pd.DataFrame, condition: str, *names: str) -> list[Any]:
    row = table.to_dict("index")[condition]
    return [row[name] for name in names]


def test_abx_is_pooled_by_the_exact_binomial_test(tmp_path: Path) -> None:
    save(tmp_path / "1.csv", abx("anna", [1] * 12 + [0] * 4))
    swapped = [{**row, "a": row["b"], "b": row["a"]} for row in abx("ben", [1] * 9 + [0] * 7)]
    save(tmp_path / "2.csv", swapped)
    votes, problems = read_votes(tmp_path)
    (row,) = pool_votes(votes).abx.to_dict("records")
    assert problems == []
    assert [row[name] for name in ("a", "b", "listeners", "trials", "correct")] == ["s1", "s2", 2, 32, 21]
    assert row["p"] == pytest.approx(stats.binomtest(21, 32, alternative="greater").pvalue)
    assert row["low"] < row["share"] == 21 / 32 < row["high"]


def test_settings_of_loudness_and_grids_are_not_mixed(tmp_path: Path) -> None:
    rows = [*abx("anna", [1, 0]), *abx("ben", [1, 1], loudness="equal"), *abx("carl", [0, 0], grid="h")]
    votes, _ = read_votes(save(tmp_path / "1.csv", rows))
    table = pool_votes(votes).abx
    assert list(zip(table["grid"], table["loudness"], table["correct"], strict=True)) == [
        ("g", "as is", 1), ("g", "equal", 2), ("h", "as is", 0)
    ]  # fmt: skip


def test_the_interval_of_one_listener_or_of_like_ones_is_that_of_clopper_and_pearson() -> None:
    for hits, trials in ([[12], [16]], [[8, 8, 8], [16, 16, 16]], [[16, 16], [16, 16]], [[0, 0], [5, 5]]):
        exact = stats.binomtest(sum(hits), sum(trials)).proportion_ci(method="exact")
        found = share_interval(np.array(hits, float), np.array(trials, float))
        assert found == pytest.approx((exact.low, exact.high))
    assert np.isnan(share_interval(np.zeros(0), np.zeros(0))).all()


def test_the_interval_of_listeners_who_differ_has_the_variance_of_a_regression_with_clusters() -> None:
    hits, trials = np.array([15, 9, 12, 4, 14]), np.array([16, 16, 20, 8, 16])
    listener = np.repeat(np.arange(5), trials)
    right = np.concatenate([np.arange(n) < k for n, k in zip(trials, hits, strict=True)]).astype(float)
    fit = sm.OLS(right, np.ones(len(right))).fit(cov_type="cluster", cov_kwds={"groups": listener})
    share, variance = float(fit.params[0]), float(fit.cov_params()[0, 0])
    ratio = stats.t.ppf(0.975, len(right) - 1) / stats.t.ppf(0.975, 4)  # Korn and Graubard
    worth = min(len(right), share * (1 - share) / variance * ratio**2)
    assert worth < 50
    expected = proportion_confint(share * worth, worth, method="beta")
    assert share_interval(hits.astype(float), trials.astype(float)) == pytest.approx(expected)


def guessed(kind: str, shares: np.ndarray[Any, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Answers of 16 trials that are right, or for b, with a probability [draws, listeners]; a draw is a grid."""
    draws, listeners = shares.shape
    hit = rng.random((draws, listeners, 16)) < shares[..., None]
    draw, listener, trial = (part.ravel() for part in np.indices(hit.shape))
    names = {
        "grid": draw.astype(str),
        "listener": listener.astype(str),
        "trial": trial + 1.0,
    }
    same: dict[str, Any] = {
        "kind": kind,
        "test": "t",
        "trials": 16.0,
        "loudness": "as is",
        "a": "s1",
        "b": "s2",
        "clip": "c",
    }
    answers = np.where(hit.ravel(), "s2", "s1")
    columns = {**names, "answer": answers, "correct": hit.ravel() * 1.0, "condition": "", "score": np.nan}
    return pd.DataFrame(columns).assign(**same)


def test_listeners_who_guess_are_rarely_taken_for_ones_who_hear() -> None:
    rng = np.random.default_rng(2)
    draws, listeners = 200, 4
    fair = np.full((draws, listeners), 0.5)
    differ = rng.beta(5.1, 5.1, (draws, 7))  # taste: a standard deviation of 0.15
    abx = pool_votes(guessed("abx", fair, rng)).abx
    preference = pool_votes(guessed("preference", fair, rng)).preference
    tastes = pool_votes(guessed("preference", differ, rng)).preference
    assert len(abx) == len(preference) == len(tastes) == draws
    for table, name in ((abx, "p"), (preference, "p"), (preference, "p_listeners"), (tastes, "p_listeners")):
        for level in (0.05, 0.2, 0.5):
            most = stats.binom.ppf(0.999, draws, level) / draws
            assert (table[name] <= level).mean() <= most, (name, level)
    for table in (abx, preference, tastes):
        assert ((table["low"] <= 0.5) & (table["high"] >= 0.5)).mean() > 0.92
    assert (tastes["p"] <= 0.05).mean() > 0.1  # of these listeners it holds, not of others: see the docs


@pytest.mark.parametrize(("spread", "listeners"), [(0.0, 6), (0.15, 6), (0.15, 20)])
def test_the_interval_covers_the_mean_of_listeners_who_differ(spread: float, listeners: int) -> None:
    rng = np.random.default_rng(1)
    mean, trials = 0.7, np.full(listeners, 16.0)
    concentration = mean * (1 - mean) / spread**2 - 1 if spread else np.inf
    draws = 400
    shares = np.full((draws, listeners), mean)
    if spread:
        shares = rng.beta(mean * concentration, (1 - mean) * concentration, (draws, listeners))
    hits = rng.binomial(16, shares).astype(float)
    covered = sum(low <= mean <= high for low, high in (share_interval(row, trials) for row in hits)) / draws
    assert covered > 0.92  # of 95 %; Clopper and Pearson alone cover 77 % with this spread


def test_a_rating_is_a_mean_over_listeners_with_students_interval(tmp_path: Path) -> None:
    scores = {"anna": [60, 70], "ben": [40, 50], "carl": [55, 85]}
    for name, values in scores.items():
        trials = [{"reference": 100, "anchor": 20, "s1": value} for value in values]
        save(tmp_path / f"{name}.csv", ratings(name, trials))
    votes, _ = read_votes(tmp_path)
    pooled = pool_votes(votes)
    table = pooled.rating.set_index("condition")
    assert list(table.index) == ["reference", "s1", "anchor"] and pooled.remarks == []
    means = [65.0, 45.0, 70.0]
    expected = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    assert values_of(table, "s1", "listeners", "ratings", "mean") == [3, 6, pytest.approx(60.0)]
    assert values_of(table, "s1", "low", "high") == [pytest.approx(end) for end in expected]
    assert values_of(table, "reference", "low", "high") == [100, 100]


def test_who_misses_the_hidden_reference_in_more_than_15_percent_is_left_out(tmp_path: Path) -> None:
    def trials(missed: int, of: int) -> list[dict[str, float]]:
        return [{"reference": 89 if n < missed else 90, "s1": 10.0 if missed > 3 else 50.0} for n in range(of)]

    save(tmp_path / "kept.csv", ratings("kept", trials(3, 20)))  # 15 % exactly
    save(tmp_path / "out.csv", ratings("out", trials(4, 20)))
    save(tmp_path / "none.csv", ratings("none", [{"s1": 99}]))
    pooled = pool_votes(read_votes(tmp_path)[0])
    assert values_of(pooled.rating.set_index("condition"), "s1", "listeners", "mean") == [1, 50]
    assert pooled.remarks[:2] == [
        "listener none is left out: no rating of a hidden reference",
        "listener out is left out: hidden reference below 90 in 4 of 20 items, more than 15 %",
    ]
    everyone = pool_votes(read_votes(tmp_path / "out.csv")[0])
    assert everyone.rating.empty


def test_preferences_are_tested_by_sign_tests_of_answers_and_of_listeners(tmp_path: Path) -> None:
    rows = [
        *preferences("anna", "bbbb-"),
        *preferences("ben", "bba"),
        *preferences("carl", "aab"),
        *preferences("dora", "ab"),
    ]
    (row,) = pool_votes(read_votes(save(tmp_path / "1.csv", rows))[0]).preference.to_dict("records")
    assert [row[name] for name in ("listeners", "for_a", "for_b", "none")] == [4, 4, 8, 1]
    assert row["p"] == pytest.approx(stats.binomtest(4, 12).pvalue)
    assert row["p_listeners"] == pytest.approx(stats.binomtest(1, 3).pvalue)  # dora prefers neither
    (row,) = pool_votes(read_votes(save(tmp_path / "2.csv", preferences("e", "--")))[0]).preference.to_dict("records")
    assert np.isnan([row["p"], row["share_b"], row["low"]]).all()


def test_an_answer_that_was_saved_twice_counts_once(tmp_path: Path) -> None:
    rows = abx("", [1, 0, 1])
    save(tmp_path / "a.csv", abx("anna", [1, 0]))
    save(tmp_path / "b.csv", abx("anna", [1, 0, 1]))
    save(tmp_path / "c.csv", rows)  # without a name: the file's
    votes, _ = read_votes(tmp_path)
    assert votes.groupby("listener").size().to_dict() == {"(c)": 3, "anna": 3}


def test_a_listener_without_a_name_who_saves_again_is_the_same_one(tmp_path: Path) -> None:
    first, second = abx("", [1] * 6, test="t1"), abx("", [1, 0], test="t2")
    save(tmp_path / "a.csv", first)
    save(tmp_path / "b.csv", [*first, *second])  # the page saves all answers each time
    save(tmp_path / "c.csv", abx("", [0], test="t3"))
    pooled = pool_votes(read_votes(tmp_path)[0])
    (row,) = pooled.abx.to_dict("records")
    assert [row[name] for name in ("listeners", "trials", "correct")] == [2, 9, 7]
    (remark,) = pooled.remarks
    assert remark.startswith("1 listener repeated a test of the same two; p is of all answers, and holds if ")


def test_answers_that_contradict_earlier_ones_are_stated_and_do_not_count(tmp_path: Path) -> None:
    save(tmp_path / "a.csv", abx("anna", [1, 0, 1]))
    save(tmp_path / "b.csv", abx("anna", [1, 1, 1, 1]))
    votes, problems = read_votes(tmp_path)
    assert votes["correct"].sum() == 3 and len(votes) == 4
    assert problems == ["b.csv: 1 of 4 answers differ from earlier ones of the same trial, which count"]


def test_files_full_of_rubbish_end_soon_and_so_do_too_many_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = ",".join(COLUMNS[1:])
    (tmp_path / "a.csv").write_text(f"{header}\n" + "1\n" * 1_000_000)
    for name in "bcd":
        save(tmp_path / f"{name}.csv", abx(name, [1, 0]))
    monkeypatch.setattr("audiotok.results.votes._MAX_ANSWERS", 3)
    votes, problems = read_votes(tmp_path)
    assert set(votes["listener"]) == {"b", "c"}
    assert problems[0].startswith("a.csv: 1000 answers and all after line 1001 left out: line 2, ")
    assert problems[1:] == ["more than 3 answers: the files after c.csv are left out"]


def test_texts_of_others_steer_no_terminal_and_no_spreadsheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = abx("\x00=1+1", [1], clip="\x1b[2Jc\u202e", b="-s2")
    save(tmp_path / "=1+1.csv", rows)
    save(tmp_path / "\udcff.csv", abx("", [1], test="t"))
    assert main(["results", "--votes", str(tmp_path), "--format", "csv"]) == 0
    one, other = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [one[name] for name in ("file", "listener", "clip", "b")] == ["'=1+1.csv", "'=1+1", "c", "'-s2"]
    assert other["file"] == ".csv"


def test_files_of_earlier_pages_and_of_spreadsheets_are_read(tmp_path: Path) -> None:
    old = [
        {name: row[name] for name in ("listener", "test", "trial", "clip", "a", "b", "x", "answer", "correct")}
        for row in abx("=anna", [1, 0])
    ]
    with (tmp_path / "old.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(old[0]))
        writer.writeheader()
        writer.writerows(old)
    save(tmp_path / "excel.csv", abx("ben", [1, 1]), encoding="utf-8-sig", delimiter=";")
    votes, problems = read_votes(tmp_path)
    assert problems == [] and votes.groupby("listener").size().to_dict() == {"'=anna": 2, "ben": 2}
    assert set(votes["kind"]) == {"abx"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "mushra", "condition": "s1", "score": "101"}, "score '101' is no number from 0 to 100"),
        ({"kind": "mushra", "condition": "s1", "score": "nan"}, "score 'nan' is no number"),
        ({"kind": "mushra", "condition": "", "score": "50"}, "a rating without its condition"),
        ({"kind": "poll"}, "kind 'poll' is none of"),
        ({"answer": "s3"}, "answer 's3' is not one of a and b"),
        ({"b": "s1"}, "are no two conditions"),
        ({"correct": "0"}, "do not fit"),
        ({"correct": "1e400"}, "correct '1e400' is no number"),
        ({"trial": "first"}, "trial 'first' is no number"),
    ],
)
def test_a_damaged_answer_is_left_out_and_stated(tmp_path: Path, change: Row, reason: str) -> None:
    good, bad = abx("anna", [1, 1])
    votes, (problem,) = read_votes(save(tmp_path / "1.csv", [good, {**bad, **change}]))
    assert len(votes) == 1
    assert problem.startswith("1.csv: 1 of 2 answers left out: line 3, ") and reason in problem


def test_foreign_damaged_and_huge_files_are_one_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "good.csv", abx("anna", [1, 0, 1]))
    (tmp_path / "foreign.csv").write_text("name,price\nx,1\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "folder.csv").mkdir()
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(2**40)  # sparse
    header = ",".join(COLUMNS[1:])
    (tmp_path / "long.csv").write_text(f"{header}\n" + "x" * 200_000 + "\n")
    (tmp_path / "\x1b[31mred.csv").write_text("a\n")
    with caplog.at_level(logging.INFO):
        assert main(["results", "--votes", str(tmp_path)]) == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(text.partition(":")[0] for text in warnings) == [
        "binary.csv", "empty.csv", "folder.csv", "foreign.csv", "huge.csv", "long.csv", "red.csv"
    ]  # fmt: skip
    assert all("\n" not in text and len(text) < 200 for text in warnings)
    assert "67" in capsys.readouterr().out  # 2 of 3


def test_what_cannot_be_pooled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="there is no such folder"):
        read_votes(tmp_path / "missing")
    with pytest.raises(ResultsError, match=r"there are no \.csv files"):
        read_votes(tmp_path)
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(ResultsError, match=r"x\.csv: left out: no answers of a blind test \(no column test"):
        read_votes(tmp_path)


def test_the_command_prints_tables_or_every_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*abx("anna", [1, 1], trials=4), *preferences("anna", "ab"), *ratings("anna", [{"reference": 95, "s1": 50}])]
    save(tmp_path / "1.csv", rows)
    with caplog.at_level(logging.INFO):
        assert main(["results", "--votes", str(tmp_path), "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert out.count("| loudness |") == 3 and "grid" not in out
    assert "1 test ended before the last trial" in caplog.text and "this listener alone" in caplog.text
    assert (
        main(["results", "g", "--votes", str(tmp_path), "--format", "csv", "--output", str(tmp_path / "all.txt")]) == 0
    )
    with (tmp_path / "all.txt").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    for options in (["--by", "seed"], ["--where", "seed==1"], ["--best-by", "valid.msspec"], ["--pooled"]):
        assert main(["results", "g", "--votes", str(tmp_path), *options]) == 2
        assert f"{options[0]} is about runs and --votes about answers" in capsys.readouterr().err
    assert main(["results", "h", "--votes", str(tmp_path)]) == 2
    assert "no answers about h; there are some about: g." in capsys.readouterr().err

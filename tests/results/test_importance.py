"""Importance of parameters: held against statsmodels, closed forms, and the truth of a simulation."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from audiotok import cli
from audiotok.errors import ResultsError
from audiotok.results.importance import MAX_LEVELS, REST, importance, importance_lines


def factorial(seed: int = 0, a: float = 1.0, b: float = 1.0) -> pd.DataFrame:
    """48 runs over a (4 values), b (3), c (2) and two seeds; `y` = a's effect + b's effect + noise of variance 1."""
    runs = pd.DataFrame(itertools.product(range(4), range(3), range(2), range(2)), columns=list("abcs"))
    effects = a * runs["a"] + b * np.array([0, 0.5, -0.5])[runs["b"]]
    return runs.assign(y=effects + np.random.default_rng(seed).normal(size=len(runs)))


@pytest.mark.parametrize("left_out", [[], [0, 1, 5, 17, 30, 31]])
def test_it_is_the_analysis_of_variance_of_statsmodels(left_out: list[int]) -> None:
    runs = factorial().drop(index=left_out)
    table: Any = importance(runs, "y", ["a", "b", "c"]).set_index("parameter")
    expected: Any = anova_lm(ols("y ~ C(a) + C(b) + C(c)", runs).fit(), typ=2)
    noise = expected.loc["Residual", "sum_sq"] / expected.loc["Residual", "df"]
    total = ((runs["y"] - runs["y"].mean()) ** 2).sum()
    for name in "abc":
        row = expected.loc[f"C({name})"]
        assert np.isclose(table.loc[name, "share"], max(0, (row["sum_sq"] - row["df"] * noise) / total))
        assert np.isclose(table.loc[name, "p"], row["PR(>F)"])
    assert np.isclose(table.loc[REST, "share"], noise / total * (len(runs) - 1))
    assert (table.index[0], table.index[-1]) == ("a", REST)
    assert list(table["values"])[:3] == [{"a": 4, "b": 3, "c": 2}[name] for name in table.index[:3]]


def test_intervals_cover_the_truth_and_a_test_without_effect_keeps_its_rate() -> None:
    spread: dict[str, float] = {"a": float(np.var(np.arange(4))), "b": float(np.var([0, 0.5, -0.5])), "c": 0.0}
    covered, rejected = dict.fromkeys("abc", 0), 0
    for seed in range(200):
        table: Any = importance(factorial(seed), "y", ["a", "b", "c"]).set_index("parameter")
        for name, variance in spread.items():
            truth = variance / (spread["a"] + spread["b"] + 1)
            covered[name] += bool(table.loc[name, "low"] <= truth + 1e-12 and truth <= table.loc[name, "high"])
        rejected += bool(table.loc["c", "p"] < 0.05)
    assert all(count >= 180 for count in covered.values()), covered  # of 190 on average
    assert rejected <= 20  # of 10 on average


def test_what_cannot_be_told_apart_and_what_is_missing() -> None:
    runs = factorial().assign(twin=lambda table: table["a"] * 10, one=1, none=[np.nan, 1.0] * 24)
    table: Any = importance(runs, "y", ["a", "twin", "one", "none"]).set_index("parameter")
    assert table.loc[["a", "twin", "one"], "share"].isna().all()  # a and twin follow from each other
    assert table.loc["none", "values"] == 2 and np.isfinite(table.loc["none", "share"])
    runs.loc[3, "y"] = np.nan
    assert importance(runs, "y", ["a"]).equals(importance(runs.drop(index=3), "y", ["a"]))


def test_an_exact_formula_and_a_random_search() -> None:
    exact = factorial().assign(y=lambda table: table["a"] * 2.0)
    table: Any = importance(exact, "y", ["a", "b"]).set_index("parameter")
    assert np.allclose(table.loc["a", ["share", "low", "high", "p"]].to_numpy(float), [1, 1, 1, 0])
    assert np.allclose(table.loc["b", ["share", "low", "high", "p"]].to_numpy(float), [0, 0, 0, 1])
    rates = np.random.default_rng(1).uniform(size=60)
    table = importance(pd.DataFrame({"lr": rates, "y": rates}), "y", ["lr"])
    assert table.loc[0, "values"] == 4 < MAX_LEVELS and table.loc[0, "share"] > 0.9


def test_what_has_no_importance() -> None:
    with pytest.raises(ResultsError, match="same in all 48 runs"):
        importance(factorial().assign(y=1.0), "y", ["a"])
    with pytest.raises(ResultsError, match="4 runs with y are too few for 3 effects"):
        importance(factorial().iloc[[0, 12, 24, 36]], "y", ["a"])
    with pytest.raises(ResultsError, match="same in all 0 runs"):
        importance(factorial().iloc[:0], "y", ["a"])
    with pytest.raises(ResultsError, match="between 0 and 1"):
        importance(factorial(), "y", ["a"], confidence=95)
    with pytest.raises(ResultsError, match="nope"):
        importance(factorial(), "y", ["nope"])
    assert "main effects" in importance_lines("y", 48)[0]


def test_the_command(
    root: Path,
    make_experiment: Callable[..., Path],
    done: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    for index, (weight, n_q, seed) in enumerate(itertools.product((0, 10), (2, 4), (1, 2))):
        argv = [f"losses.mmd={weight}", f"rvq.n_q={n_q}", f"seed={seed}"]
        status = {**done, "state": "FAILED"} if index == 7 else done
        history = [{"evaluate": {"sisnr": 5.0 + weight + 0.1 * seed + 0.01 * index**2}}]
        make_experiment(f"0000000{index}", argv, history, status=status)
    command = ["results", "compression.encodec_mmd_demo", "--root", str(root), "--importance", "evaluate.sisnr"]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] in ("losses.mmd", "rvq.n_q", "rest:")] == [
        "losses.mmd",
        "rvq.n_q",
        "rest:",
    ]
    assert "over 7 runs" in caplog.text and "main effects" in caplog.text
    assert cli.main([*command, "--unfinished"]) == 0 and "over 8 runs" in caplog.text
    assert cli.main([*command, "--by", "losses.mmd", "--baseline", "losses.mmd=0"]) == 2
    assert cli.main([*command[:-1], "evaluate.sisn"]) == 2
    assert "evaluate.sisnr" in capsys.readouterr().err

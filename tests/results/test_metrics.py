"""Which number stands for a run, held against plain loops over its history."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiotok.errors import ResultsError
from audiotok.metrics.gap import GapMeter
from audiotok.models.lm import CodeNLL
from audiotok.results import Experiments, load_grid
from audiotok.results.metrics import known_metric, metric_values, pareto_front, require_metric, unmeasured
from audiotok.solvers.lm_evaluation import mean_entropies, with_bits
from audiotok.solvers.lm_generation import _METRICS

GRID = "compression.encodec_mmd_demo"
NAN = math.nan
# valid.msspec (lower is better) and valid.sisnr (higher), every epoch; evaluate.mi at some.
HISTORIES: dict[str, list[tuple[float, float, float | None]]] = {
    "00000001": [(3.0, 1.0, None), (1.0, 5.0, 0.3), (2.0, 4.0, 0.2), (1.5, 9.0, None)],
    "00000002": [(2.0, NAN, 0.5), (2.0, 3.0, 0.4)],
    "00000003": [(NAN, 1.0, None)],
}


@pytest.fixture
def experiments(root: Path, make_experiment: Callable[..., Path], done: dict[str, Any]) -> Experiments:
    for sig, epochs in HISTORIES.items():
        history = [
            {"valid": {"msspec": a, "sisnr": b}} | ({"evaluate": {"mi": c}} if c is not None else {})
            for a, b, c in epochs
        ]
        make_experiment(sig, [f"seed={int(sig)}"], history, status=done)
    return load_grid(GRID, root)


def test_the_last_value(experiments: Experiments) -> None:
    assert metric_values(experiments, "evaluate.mi").to_dict() == pytest.approx(
        {"00000001": 0.2, "00000002": 0.4, "00000003": NAN}, nan_ok=True
    )
    assert metric_values(experiments, "valid.sisnr").tolist() == [9.0, 3.0, 1.0]


def test_the_best_epoch_among_those_that_measured_both(experiments: Experiments) -> None:
    assert metric_values(experiments, "evaluate.mi", best_by="valid.msspec").tolist()[:2] == [
        0.3,
        0.5,
    ]  # first of equals
    assert metric_values(experiments, "evaluate.mi", best_by="valid.sisnr").tolist()[:2] == [0.3, 0.4]
    assert metric_values(experiments, "valid.sisnr", best_by="valid.sisnr").tolist() == [9.0, 3.0, 1.0]
    assert math.isnan(metric_values(experiments, "valid.sisnr", best_by="valid.msspec")["00000003"])


def test_mistakes(experiments: Experiments) -> None:
    with pytest.raises(ResultsError, match=r"evaluate\.mel.*evaluate\.mi"):
        metric_values(experiments, "evaluate.mel")
    with pytest.raises(ResultsError, match=r"valid\.mi"):
        metric_values(experiments, "valid.sisnr", best_by="valid.mi")
    with pytest.raises(ResultsError, match="better direction"):
        metric_values(experiments, "valid.sisnr", best_by="valid.duration")


values = st.sampled_from([0.0, 1.0, 2.0, 3.0, NAN])


@given(st.lists(st.tuples(values, values), max_size=9))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    frame = pd.DataFrame(points, columns=["evaluate.mi", "evaluate.sisnr"], dtype=np.float64)
    found = pareto_front(frame, "evaluate.mi", "evaluate.sisnr")
    for i, (mi, sisnr) in enumerate(points):
        known = not (math.isnan(mi) or math.isnan(sisnr))
        beaten = any(
            m <= mi and s >= sisnr and (m < mi or s > sisnr) for m, s in itertools.chain(points[:i], points[i + 1 :])
        )
        assert found.iloc[i] == (known and not beaten)


def test_the_earlier_modules_have_the_same_functions() -> None:
    from audiotok.results import drawing, metrics, plots, selection

    assert (selection.metric_values, selection.pareto_front) == (metrics.metric_values, metrics.pareto_front)
    assert (drawing.save_figure, drawing.metric_label) == (plots.save_figure, plots.metric_label)


def test_dependence_that_was_left_out_is_counted_and_its_reason_has_a_place(
    root: Path, make_experiment: Callable[..., Path], done: dict[str, Any]
) -> None:
    whole = {"usage": 0.5, "mi_groups": 0.1, "mmd": 0.1, "mmd_p": 0.5}
    for sig, values in {
        "00000001": whole,
        "00000002": {"usage": 0.5, "mi_groups": 0.1, "mmd": 0.1},
        "00000003": {"usage": 0.5},
        "00000004": {"sisnr": 1.0},
    }.items():
        make_experiment(sig, [f"seed={int(sig)}"], [{"evaluate": values}], status=done)
    found = unmeasured(load_grid(GRID, root))
    counts = "evaluate.mi_groups of 1, evaluate.mmd of 1, evaluate.mmd_p of 2"
    assert found.startswith(f"not measured in 3 evaluated runs: {counts}. ") and found.endswith("log says why.")
    with pytest.raises(ResultsError, match=r"has the metric 'evaluate.mi_p'.*the run's log says why\.$"):
        require_metric(load_grid(GRID, root), "evaluate.mi_p")


def test_nothing_is_said_where_all_was_measured_or_nothing(
    root: Path, make_experiment: Callable[..., Path], done: dict[str, Any]
) -> None:
    assert unmeasured(load_grid(GRID, root)) == ""
    whole = {"usage": 0.5, "mi_groups": 0.1, "mmd": 0.1, "mmd_p": 0.5}
    make_experiment("00000001", [], [{"evaluate": whole}], status=done)
    make_experiment("00000002", [], [{"valid": {"sisnr": 1.0}}], status=done)
    assert unmeasured(load_grid(GRID, root)) == ""


def test_what_a_language_model_measures_is_declared() -> None:
    nll = CodeNLL(torch.rand(2, 3, 8), torch.rand(2, 3, 8), torch.ones(3, 8, dtype=torch.bool))
    names = set(with_bits({name: float(value) for name, value in mean_entropies(nll).items()}, 50.0))
    meter = GapMeter()
    meter.update(nll, torch.arange(2), nll)
    names |= set(meter.compute())
    parts = itertools.product(_METRICS, ("", "_prompted"), ("", "_chain", "_gap"), ("", "_err"))
    names |= {"".join(part) for part in parts}
    assert {"gap_q2_err", "ce_q3", "bits_chain", "fmd_prompted_gap_err"} <= names
    assert {name for name in names if known_metric(f"evaluate.{name}") is None} == set()

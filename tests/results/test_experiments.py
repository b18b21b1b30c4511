"""Records to DataFrames, held against the JSON read plainly."""

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from audiotok.errors import ResultsError
from audiotok.results import METRICS, load_all, load_grid, load_sigs, metric_direction

GRID = "compression.encodec_mmd_demo"
Make = Callable[..., Path]


def _histories(seed: int, epochs: int) -> list[dict[str, dict[str, float]]]:
    """Random histories of a solver that evaluates every third epoch only."""
    rng = random.Random(seed)
    history: list[dict[str, dict[str, float]]] = []
    for epoch in range(1, epochs + 1):
        stages = {
            "train": {"l1": rng.random(), "mmd": rng.gauss(0, 1e-3), "duration": rng.uniform(9, 11)},
            "valid": {"msspec": rng.random(), "sisnr": rng.gauss(5, 3), "duration": rng.uniform(1, 2)},
        }
        if epoch % 3 == 0:
            stages["evaluate"] = {"sisnr": rng.gauss(5, 3), "mel": rng.random()}
        history.append(stages)
    return history


@pytest.fixture
def grid(root: Path, make_experiment: Make, done: dict[str, Any]) -> Path:
    """Weights by seeds, made in an order that is not theirs."""
    combinations = [(weight, seed) for weight in (100, 0, 1000.5, 20) for seed in (11, 2)]
    for index, (weight, seed) in enumerate(combinations):
        argv = ["solver=compression/demo", f"seed={seed}", f"losses.mmd={weight}", "mmd.sigmas=[0.1, 1]"]
        make_experiment(f"{index:08x}", argv, _histories(index, 4 + index), status=done)
    return root


def test_every_number_of_the_history_is_there_and_no_other(grid: Path) -> None:
    history = load_grid(GRID, grid).history
    found = {
        (row["sig"], row["epoch"], row["stage"], name): row[name]
        for row in history.to_dict("records")
        for name in history.columns[3:]
        if not math.isnan(row[name])
    }
    expected = {
        (folder.name, epoch, stage, name): value
        for folder in (grid / "xps").iterdir()
        for epoch, stages in enumerate(json.loads((folder / "history.json").read_text()), 1)
        for stage, metrics in stages.items()
        for name, value in metrics.items()
    }
    assert found == expected
    assert set(history.dtypes[3:]) == {np.dtype("float64")}
    assert not history.duplicated(["sig", "epoch", "stage"]).any()
    keys = history[["sig", "stage", "epoch"]].values.tolist()
    order = {stage: place for place, stage in enumerate(["train", "valid", "evaluate"])}
    assert keys == sorted(
        keys, key=lambda key: (list(history["sig"].cat.categories).index(key[0]), order[key[1]], key[2])
    )
    assert history.dtypes[:3].map(str).to_dict() == {"sig": "category", "stage": "category", "epoch": "int32"}


def test_last_values_best_epochs_and_durations(grid: Path) -> None:
    runs = load_grid(GRID, grid).runs.set_index("sig")
    for folder in (grid / "xps").iterdir():
        history = json.loads((folder / "history.json").read_text())
        row = runs.loc[folder.name]
        evaluated = [stages for stages in history if "evaluate" in stages]
        assert row["valid.msspec"] == history[-1]["valid"]["msspec"]
        if evaluated:
            assert row["evaluate.sisnr"] == evaluated[-1]["evaluate"]["sisnr"]
        else:
            assert pd.isna(row["evaluate.sisnr"])
        distances = [stages["valid"]["msspec"] for stages in history]
        assert row["best_epoch"] == distances.index(min(distances)) + 1
        assert row["epochs"] == row["last_epoch"] == len(history)
        seconds = sum(stages[s]["duration"] for stages in history for s in ("train", "valid"))
        assert row["duration"] == pytest.approx(seconds, rel=1e-12)
        assert (row["host"], row["state"], row["problems"]) == ("n1", "COMPLETED", "")


def test_the_best_epoch_follows_the_direction_of_the_metric(grid: Path) -> None:
    runs = load_grid(GRID, grid, best_by="evaluate.sisnr").runs.set_index("sig")
    for folder in (grid / "xps").iterdir():
        history = json.loads((folder / "history.json").read_text())
        ratios = {n: s["evaluate"]["sisnr"] for n, s in enumerate(history, 1) if "evaluate" in s}
        best = max(ratios, key=lambda n: ratios[n])
        assert runs.loc[folder.name, "best_epoch"] == best
    with pytest.raises(ResultsError, match="no better direction"):
        load_grid(GRID, grid, best_by="valid.bandwidth")
    with pytest.raises(ResultsError, match="scatters around 0"):
        load_grid(GRID, grid, best_by="evaluate.mmd")
    with pytest.raises(ResultsError, match="not a known"):
        load_grid(GRID, grid, best_by="msspec")


def test_rows_and_columns_are_in_a_natural_order(grid: Path) -> None:
    experiments = load_grid(GRID, grid)
    runs = experiments.runs
    assert experiments.parameters == ("solver", "losses.mmd", "mmd.sigmas", "seed")
    assert experiments.swept == ["losses.mmd", "seed"]
    expected = [(weight, seed) for weight in (0, 20, 100, 1000.5) for seed in (2, 11)]
    assert list(zip(runs["losses.mmd"], runs["seed"], strict=True)) == expected
    assert [record.sig for record in experiments.records] == runs["sig"].tolist()
    assert [str(name) for name in runs.columns] == [
        "sig", "solver", "losses.mmd", "mmd.sigmas", "seed",
        "state", "reason", "epochs", "last_epoch", "best_epoch", "duration", "gpu_hours", "host", "commit",
        "train.l1", "train.mmd", "train.duration", "valid.sisnr", "valid.msspec", "valid.duration",
        "evaluate.sisnr", "evaluate.mel", "problems",
    ]  # fmt: skip
    assert runs.groupby(["mmd.sigmas", "losses.mmd"]).size().tolist() == [2, 2, 2, 2]
    assert "8 COMPLETED" in repr(experiments)


def test_mixed_values_are_sorted_without_an_error(root: Path, make_experiment: Make) -> None:
    values = ["null", "n2", "n10", "3", "-1.5", "true", "[2, 1]", "[10]", "[a]", "{a: 1}"]
    for index, value in enumerate(random.Random(0).sample(values, len(values))):
        make_experiment(f"{index:08x}", [f"label={value}"])
    labels = load_grid(GRID, root).runs["label"].tolist()
    assert labels == [None, -1.5, True, 3, "n2", "n10", '{"a": 1}', (2, 1), (10,), ("a",)]


def test_a_parameter_that_is_not_overridden_comes_from_the_configuration(root: Path, make_experiment: Make) -> None:
    config = "seed: 2036\nlosses: {mmd: 0.0}\n"
    make_experiment("00000001", ["seed=1", "solver=compression/a"])
    make_experiment("00000002", ["losses.mmd=5"], config=config, choices={"solver": "compression/b"})
    make_experiment("00000003", ["seed=3"], config="seed: [")
    runs = load_grid(GRID, root).runs.set_index("sig")
    assert runs["seed"].to_dict() == {"00000001": 1, "00000002": 2036, "00000003": 3}
    assert runs["solver"].to_dict()["00000002"] == "compression/b"
    assert runs["losses.mmd"].to_dict()["00000002"] == 5
    assert runs.loc[["00000001", "00000003"], "losses.mmd"].isna().all()
    assert (runs["problems"] != "").to_dict() == {"00000001": False, "00000002": False, "00000003": True}


def test_nan_and_infinity_are_kept_and_never_best(root: Path, make_experiment: Make) -> None:
    text = '[{"valid": {"msspec": Infinity}}, {"valid": {"msspec": 2.0}}, {"valid": {"msspec": NaN}}]'
    make_experiment("0a1b2c3d", [], text)
    experiments = load_grid(GRID, root)
    assert experiments.runs["valid.msspec"].isna().tolist() == [True]  # the last value is a NaN, and is told
    assert experiments.runs["best_epoch"].tolist() == [2]
    np.testing.assert_array_equal(experiments.history["msspec"], [math.inf, 2.0, math.nan])


def test_experiments_without_a_history(root: Path, make_experiment: Make, done: dict[str, Any]) -> None:
    make_experiment("00000001")
    make_experiment("00000002", status=done)
    runs = load_grid(GRID, root).runs.set_index("sig")
    assert runs["epochs"].tolist() == [0, 0] and runs["last_epoch"].tolist() == [0, 0]
    assert runs["best_epoch"].isna().all()
    assert runs["duration"].isna().tolist() == [True, False]
    assert runs.loc["00000002", "duration"] == pytest.approx(60)
    assert runs["state"].tolist() == ["NOT_STARTED", "COMPLETED"]


def test_an_empty_grid(root: Path) -> None:
    experiments = load_grid(GRID, root)
    assert len(experiments.runs) == len(experiments.history) == 0
    assert {"sig", "state", "best_epoch"} <= set(experiments.runs.columns)
    assert list(experiments.history.columns) == ["sig", "stage", "epoch"]
    assert experiments.swept == [] and "0 experiments" in repr(experiments)


def test_names_that_collide_stay_apart(root: Path, make_experiment: Make) -> None:
    history = [{"evaluate": {"every": 1.0}, "train": {"epoch": 7.0}}]
    make_experiment("0a1b2c3d", ["state=3", "evaluate.every=25", "label=x"], history)
    experiments = load_grid(GRID, root)
    row = experiments.runs.iloc[0]
    assert (row["param.state"], row["param.evaluate.every"], row["label"]) == (3, 25, "x")
    assert (row["state"], row["evaluate.every"]) == ("NOT_STARTED", 1.0)
    assert experiments.parameters == ("param.state", "param.evaluate.every", "label")
    assert experiments.history[["epoch", "metric.epoch"]].values.tolist()[0] == [1, 7.0]


def test_strange_texts_are_no_error(root: Path, make_experiment: Make, done: dict[str, Any]) -> None:
    argv = ["label=\ud800é", '+a="\\ud83d"', "b=[\udfff]"]
    status = done | {"state": "FAILED", "reason": "\x1b[31m\udc80"}
    make_experiment("0a1b2c3d", argv, '[{"\\ud800": {"\\udfff": 1.0}}]', status=status)
    experiments = load_grid(GRID, root)
    texts = [*experiments.runs.columns, *experiments.runs.iloc[0], *experiments.history.columns]
    assert "?" in "".join(map(str, texts)).encode("utf-8").decode()


def test_signatures_and_everything(grid: Path) -> None:
    whole = load_grid(GRID, grid)
    pd.testing.assert_frame_equal(load_all(grid).runs, whole.runs)
    pd.testing.assert_frame_equal(load_all(grid).history, whole.history)
    assert load_sigs(["00000003", "00000001"], grid).runs["seed"].tolist() == [2, 2]
    with pytest.raises(ResultsError, match="no experiment"):
        load_sigs(["ffffffff"], grid)


def test_a_copy_gives_the_same_tables(grid: Path, tmp_path: Path) -> None:
    before = load_grid(GRID, grid)
    shutil.move(grid, tmp_path / "elsewhere")  # every link of the grid is broken now
    after = load_grid(GRID, tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(before.runs, after.runs)
    pd.testing.assert_frame_equal(before.history, after.history)


def test_every_metric_has_a_direction() -> None:
    directed = {name for name, metric in METRICS.items() if metric.direction != "neutral"}
    assert {name: metric_direction(f"valid.{name}") for name in ("sisnr", "msspec", "mel", "l1")} == {
        "sisnr": "higher", "msspec": "lower", "mel": "lower", "l1": "lower",
    }  # fmt: skip
    for name in ("train.mmd", "valid.mmd", "evaluate.mmd"):  # estimates that may be negative, where nothing is left
        with pytest.raises(ResultsError, match="scatters around 0"):
            metric_direction(name)
    assert directed.isdisjoint({"bandwidth", "adv", "feat", "d_loss", "g_loss", "penalty", "duration"})


def test_importing_results_is_light() -> None:
    heavy = ("torch", "torchaudio", "dora", "hydra", "omegaconf", "submitit", "flashy", "scipy", "matplotlib")
    code = f"import sys, audiotok.results; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

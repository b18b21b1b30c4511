"""Runs that were extended: their true length, in columns and in lines; runs of different length stay apart."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from audiotok.cli import main
from audiotok.results import load_grid
from audiotok.results.amended import amended_lines
from tests.results.conftest import GRID

A, B, C = "aaaaaaaa", "bbbbbbbb", "cccccccc"
CONFIG = "optim: {epochs: 2}\nevaluate: {every: 25}\n"
MakeExperiment = Callable[..., Path]


def amend(folder: Path, **keys: list[Any]) -> None:
    pairs = {name.replace("__", "."): pair for name, pair in keys.items()}
    one: Mapping[str, Any] = {"time": 5e9, "user": "ada@here", "epochs_done": 2, "keys": pairs}
    (folder / "amended.json").write_text(json.dumps({"sig": folder.name, "amendments": [one]}))


def make(make_experiment: MakeExperiment, sig: str, done: dict[str, Any], *argv: str, epochs: int = 2) -> Path:
    history = [{"valid": {"msspec": 1.0 / epoch}} for epoch in range(1, epochs + 1)]
    status = {**done, "epoch": epochs, "epochs": epochs}
    return make_experiment(sig, [*argv], history, status=status, config=CONFIG)


def test_an_extended_run_shows_its_length_and_is_a_condition_of_its_own(
    root: Path, make_experiment: MakeExperiment, done: dict[str, Any], rest: Callable[[], None]
) -> None:
    longer = make(make_experiment, A, done, "seed=1", epochs=3)
    make(make_experiment, B, done, "seed=2")
    rest()
    before = load_grid(GRID, root)
    assert "amended" not in before.runs and "optim.epochs" not in before.parameters and amended_lines(before) == []
    amend(longer, optim__epochs=[2, 3], evaluate__every=[25, 5])  # the cache sees it
    grid = load_grid(GRID, root)
    runs = grid.runs.set_index("sig")
    assert runs["optim.epochs"].to_dict() == {A: 3, B: 2} and runs["epochs"].to_dict() == {A: 3, B: 2}
    assert runs.loc[A, "amended"] == "optim.epochs 2 → 3, evaluate.every 25 → 5" and runs.loc[B, "amended"] == ""
    assert grid.swept == ["optim.epochs", "seed"] and "evaluate.every" not in grid.parameters
    assert amended_lines(grid) == [f"amended since: {A} (optim.epochs 2 → 3, evaluate.every 25 → 5)"]


def test_a_key_that_others_override_has_the_value_of_now(
    root: Path, make_experiment: MakeExperiment, done: dict[str, Any]
) -> None:
    amend(make(make_experiment, A, done, "seed=1"), evaluate__every=[25, 5])
    make(make_experiment, B, done, "seed=2", "evaluate.every=7")
    amend(make(make_experiment, C, done, "seed=3", "evaluate.every=7"), evaluate__every=[7, 9])
    assert load_grid(GRID, root).runs.set_index("sig")["evaluate.every"].to_dict() == {A: 5, B: 7, C: 9}


def test_runs_that_came_to_one_length_in_two_ways_are_named(
    root: Path, make_experiment: MakeExperiment, done: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    amend(make(make_experiment, A, done, "seed=1", epochs=3), optim__epochs=[2, 3])
    make(make_experiment, B, done, "seed=1", "optim.epochs=3", epochs=3)
    make(make_experiment, C, done, "seed=2", "optim.epochs=3", epochs=3)
    caplog.set_level(logging.WARNING)
    assert main(["results", GRID, "--root", str(root)]) == 0
    assert f"{A} and {B} have equal parameters, but are no replicates of each other" in caplog.text
    assert C not in caplog.text


def test_what_was_extended_and_has_not_gone_on_does_not_count(
    root: Path, make_experiment: MakeExperiment, done: dict[str, Any]
) -> None:
    amend(make(make_experiment, A, done, "seed=1"), optim__epochs=[2, 3])
    make(make_experiment, B, done, "seed=2")
    grid = load_grid(GRID, root)
    assert grid.runs["state"].tolist() == ["COMPLETED", "EXTENDED"]  # 2 and 3 epochs
    assert grid.runs["reason"].tolist()[1] == "2 of 3 epochs are done"
    assert grid.counted().runs["sig"].tolist() == [B]


def test_a_codec_that_went_on_is_named_beside_what_builds_on_it(
    root: Path, make_experiment: MakeExperiment, done: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    codec = make(make_experiment, A, done, "seed=1", epochs=3)
    (root / "grids" / GRID / A).unlink()
    make(make_experiment, B, done, f"compression_model_checkpoint=//sig/{A}")
    load_grid(GRID, root)
    assert "was extended" not in caplog.text
    amend(codec, optim__epochs=[2, 3])
    load_grid(GRID, root)
    assert f"codec {A} of {B} was extended since" in caplog.text

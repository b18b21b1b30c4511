"""Clips of the evaluate stage and their recordings, whatever the ranks; settings of runs that were frozen before."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from audiotok.solvers import CompressionSolver, evaluation

Enter = Callable[..., AbstractContextManager[CompressionSolver]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_clips_come_in_the_order_of_recordings_once_each(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [("b", 0.0), ("b", 1.0), ("a", 2.0), ("a", 0.5), ("b", 10.0), ("b", 0.0)]  # the first one again
    clips = torch.arange(6)[:, None]
    own = places[::ranks]
    monkeypatch.setattr(evaluation, "gather_clips", lambda _: clips)  # dealt out and gathered again
    monkeypatch.setattr(evaluation, "gather_objects", lambda _: [places[rank::ranks] for rank in range(ranks)])
    found, tracks = evaluation._by_recording([clips[::ranks]], own)
    assert found[:, 0].tolist() == [3, 2, 0, 1, 4]
    assert tracks == [0, 0, 1, 1, 1]


def test_the_shuffle_of_earlier_runs_is_one_that_holds(caplog: pytest.LogCaptureFixture) -> None:
    cfg = OmegaConf.create({"mmd": {"shuffle": "clips"}, "dependence": {"shuffle": "frames"}, "old": {}})
    assert evaluation._settings(cfg, "dependence") == {"shuffle": "frames"}
    assert evaluation._settings(cfg, "old") == {}
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        assert evaluation._settings(cfg, "mmd") == {"shuffle": "shifts"}
    assert "metrics.mmd.shuffle=clips" in caplog.text


@pytest.mark.slow
def test_evaluate_gives_p_values_where_recordings_are_long_enough_and_a_reason_elsewhere(
    tmp_path: Path, solver_in: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["metrics.dependence.num_shuffles=39", "metrics.mmd.num_permutations=39"]
    options += [f"dataset.{name}segment_duration=0.2" for name in ("", "evaluate.")]
    with solver_in(tmp_path, *options, "dataset.evaluate.num_samples=1000") as solver:
        solver.build_dataloaders()
        dataset = solver.dataloaders["evaluate"].dataset
        assert len({meta.path for meta, _ in dataset._tiles}) == len(dataset.metas)
        solver.run()
        found = solver.history[-1]["evaluate"]
    assert {"mi", "mi_groups", "mi_p", "mi_p_groups_delay", "mmd", "mmd_p"} <= found.keys()
    caplog.clear()
    with solver_in(tmp_path, *options, "dataset.evaluate.num_samples=2") as solver:
        solver.run()
        found = solver.history[-1]["evaluate"]
    assert "sisdr" in found and not {"mi_p", "mi_err", "mmd_p", "mmd_err"} & found.keys()

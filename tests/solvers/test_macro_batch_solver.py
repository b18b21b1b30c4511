"""The MMD step inside the solver: its weight by epoch, and what it does when the quantiser drops codebooks."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from audiotok.errors import ConfigError
from audiotok.models.encodec import EncodecModel
from audiotok.solvers import CompressionSolver, builders
from audiotok.solvers.averages import MetricAverages
from audiotok.solvers.macro_batch import MacroBatch

pytestmark = pytest.mark.slow
Enter = Callable[..., AbstractContextManager[CompressionSolver]]
Calls = list[tuple[float, int | None]]
SMALL = [
    "mmd.num_batches_mmd=1",
    "optim.updates_per_epoch=2",
    "dataset.batch_size=2",
    "dataset.segment_duration=0.4",
    "rvq.kmeans_iters=3",
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Weight and number of codebooks of every MMD step."""
    seen: Calls = []
    value = MacroBatch.value

    def watched(self: MacroBatch, model: EncodecModel, weight: float, n_q: int | None = None) -> torch.Tensor:
        seen.append((weight, n_q))
        return value(self, model, weight, n_q)

    monkeypatch.setattr(MacroBatch, "value", watched)
    return seen


def train(solver: CompressionSolver) -> None:
    """Train stages only."""
    for _ in range(solver.cfg.optim.epochs):
        solver.averages = MetricAverages()
        solver.run_stage("train", solver.train)
        solver.commit(save_checkpoint=False)


def test_the_weight_grows_over_the_epochs_from_its_start(tmp_path: Path, solver_in: Enter, calls: Calls) -> None:
    overrides = ["losses.mmd=8", "mmd.start_epoch=2", "mmd.ramp_epochs=2", "optim.epochs=4"]
    with solver_in(tmp_path, *SMALL, *overrides) as solver:
        train(solver)
        updates = solver.updates_per_epoch
        assert all("mmd" in epoch["train"] for epoch in solver.history)
    assert [weight for weight, _ in calls] == [weight for weight in (0.0, 4.0, 8.0, 8.0) for _ in range(updates)]


def test_with_dropout_a_step_compares_the_codebooks_it_used(tmp_path: Path, solver_in: Enter, calls: Calls) -> None:
    drawn: list[int] = []
    overrides = ["rvq.q_dropout=true", "rvq.n_q=3", "losses.mmd=1", "optim.epochs=6"]
    with solver_in(tmp_path, *SMALL, *overrides) as solver:
        solver.model.quantizer.register_forward_hook(lambda module, args, result: drawn.append(result.codes.shape[1]))
        train(solver)
    assert set(drawn) == {1, 2, 3}
    assert [n_q for _, n_q in calls] == [n_q for n_q in drawn if n_q > 1]


def test_epochs_that_cannot_be_are_refused(tmp_path: Path, solver_in: Enter) -> None:
    with pytest.raises(ConfigError, match=r"mmd\.start_epoch=0"), solver_in(tmp_path, "mmd.start_epoch=0"):
        pass


@pytest.mark.parametrize("between", ["dimensions", "frames"])
def test_other_variables_than_codebooks_are_trained_on(tmp_path: Path, solver_in: Enter, between: str) -> None:
    overrides = ["mmd.estimator=closed", f"mmd.between={between}", "mmd.delay=false", "optim.epochs=1"]
    values = []
    for weight in (0, 1000):
        with solver_in(tmp_path / str(weight), *SMALL, f"losses.mmd={weight}", *overrides) as solver:
            train(solver)
            values.append(solver.history[0]["train"]["mmd"])
    assert all(math.isfinite(value) for value in values)
    assert values[0] != values[1]  # the first step is the same, the second one has been trained


@pytest.mark.parametrize(
    ("overrides", "most", "measure", "trained"),
    [
        (["mmd.estimator=unbiased"], 8, "closed", 4),
        (["mmd.estimator=disjoint"], 8, "disjoint", 4),
        (["mmd.estimator=clips"], None, "clips", 2),  # its value depends on the number of clips: all, but rarely
        (["mmd.estimator=unbiased", "mmd.between=dimensions", "mmd.delay=false"], None, "unbiased", 2),
        (["mmd.estimator=clips", "mmd.max_samples=null"], None, "clips", 4),
    ],
    ids=["unbiased", "disjoint", "clips", "dimensions", "all"],
)
def test_a_baseline_measures_in_a_way_that_its_number_and_its_time_are_small(
    tmp_path: Path, solver_in: Enter, calls: Calls, overrides: list[str], most: int | None, measure: str, trained: int
) -> None:
    """Steps in two epochs of two macro-batches each, and in a valid stage."""
    overrides = ["losses.mmd=0", "optim.epochs=2", "mmd.max_samples=8", *overrides]
    with solver_in(tmp_path, *SMALL, *overrides) as solver:
        macro = solver.macro_batch
        assert macro is not None and (macro.max_samples, macro.measure.estimator) == (most, measure)
        train(solver)
        assert all(math.isfinite(epoch["train"]["mmd"]) for epoch in solver.history)
        assert len(calls) == trained
        solver.run_stage("valid", solver.valid)
    valid = len(calls) - trained
    assert valid == (1 if trained == 2 else len(solver.dataloaders["valid"]))


def test_a_costly_measure_is_taken_once_an_epoch_of_accumulated_batches_too(
    tmp_path: Path, solver_in: Enter, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update holds three macro-batches; one that is skipped takes its measure with it."""
    more = ["losses.mmd=0", "mmd.estimator=clips", "optim.accumulate=3", "optim.epochs=2", "optim.max_skipped=1"]
    with solver_in(tmp_path, *SMALL, *more) as solver:
        train(solver)
        assert len(calls) == 2
        assert all(math.isfinite(epoch["train"]["mmd"]) for epoch in solver.history)
        resumed = builders.get_macro_batch(solver.cfg)
        resumed.load_state_dict(solver.state_dict()["macro_batch"])
        assert resumed.once and resumed.epoch == 2  # in a checkpoint of this epoch it is measured already
        calls.clear()
        factors = iter([1.0, 1.0, math.nan, 1.0, 1.0, 1.0])  # of an epoch's batches
        run_step = solver.run_step
        monkeypatch.setattr(solver, "run_step", lambda batch: run_step(batch * next(factors)))
        solver.averages = MetricAverages()
        assert solver.run_stage("train", solver.train)["skipped"] == 0.5
    assert len(calls) == 2


@pytest.mark.parametrize("weighting", ["share", "absolute"])
def test_the_weight_of_accumulated_batches(tmp_path: Path, solver_in: Enter, calls: Calls, weighting: str) -> None:
    """A share holds clip by clip, and an absolute weight once for all batches of an update."""
    more = [f"mmd.weighting={weighting}", "mmd.estimator=closed", "losses.mmd=0.5", "optim.epochs=1"]
    more += ["mmd.num_batches_mmd=2", "optim.accumulate=4", "rvq.kmeans_init=false"]
    with solver_in(tmp_path, *SMALL, *more) as solver:
        train(solver)
        [epoch] = solver.history
        assert solver.macro_batch is not None
        assert [weight for weight, _ in calls] == [0.5 if weighting == "share" else 1.0] * 4
        if weighting == "share":
            assert epoch["train"]["mmd_share"] == pytest.approx(0.5)
            assert solver.macro_batch.reached == pytest.approx(0.5)

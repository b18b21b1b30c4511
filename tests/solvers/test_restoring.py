"""What is refused instead of restored, in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiotok.checkpoint import load_checkpoint, save_checkpoint
from audiotok.errors import CheckpointError
from audiotok.solvers import CompressionSolver
from tests.fuzz.checkpoints import SIG, solver_in


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[], CompressionSolver]:
    """Function that makes a solver whose last checkpoint is there, after an epoch."""
    solver = solver_in(tmp_path)
    solver.best_state.update("model", solver.model.state_dict())
    solver.history.append({"train": {"l1": 0.5}})
    save_checkpoint(solver.state_dict(), solver.checkpoint_path)
    return lambda: solver_in(tmp_path)


def change(path: Path, **entries: Any) -> None:
    save_checkpoint({**load_checkpoint(path), **entries}, path)


def test_a_checkpoint_of_another_experiment_is_refused(saved: Callable[[], CompressionSolver], tmp_path: Path) -> None:
    solver = saved()
    assert solver.restore()
    change(solver.checkpoint_path, **{"xp.sig": "ffffffff"})
    with pytest.raises(CheckpointError, match=rf"of experiment 'ffffffff', in the folder of {SIG}.*continue_from=PATH"):
        saved().restore()


def test_moved_results_are_still_those_of_their_experiment(
    saved: Callable[[], CompressionSolver], tmp_path: Path
) -> None:
    shutil.move(saved().folder.parent.parent, tmp_path / "elsewhere" / "out")
    assert solver_in(tmp_path / "elsewhere").restore()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"history": {}}, "history is a dict"),
        ({"history": [3]}, r"history\.0 is a int"),
        ({"history": [{"train": 3}]}, r"history\.0\.train is a int"),
        ({"history": [{"train": {"l1": "x"}}]}, r"history\.0\.train\.l1 is a str"),
        ({"model": 3}, "model is a int"),
        ({"ema": {"average": {}, "count": 1.0}}, r"ema\.average\..* is missing"),
        ({"best_state": {"model": {}}}, r"best_state\.model\..* is missing"),
        ({"optimizer": {"state": [], "param_groups": []}}, "optimizer"),
        ({"macro_batch": {"pending": 1, "steps": 0}}, r"macro_batch\.pending is a int"),
        ({"balancer": []}, "balancer is a list"),
        ({"progress": {"updates": "x", "stages": {}, "elapsed_s": 0.0, "ranks": []}}, r"progress\.updates is a str"),
        ({"progress": {"updates": 9, "stages": {}, "elapsed_s": 0.0, "ranks": [{}]}}, "update 9 of 2"),
        ({"progress": {"updates": 1, "stages": {}, "elapsed_s": 0.0, "ranks": [{}]}}, r"ranks\.0 lacks averages"),
    ],
)
def test_entries_of_another_form_are_named(
    saved: Callable[[], CompressionSolver], entries: dict[str, Any], words: str
) -> None:
    path = saved().checkpoint_path
    change(path, **entries)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.th does not fit this experiment: .*{words}") as caught:
        saved().restore()
    assert len(str(caught.value).splitlines()) == 1


def test_moments_of_other_parameters_are_refused(saved: Callable[[], CompressionSolver]) -> None:
    solver = saved()
    for parameter in solver.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    solver.optimizer.step()
    state = solver.optimizer.state_dict()
    change(solver.checkpoint_path, optimizer=state)
    assert saved().restore()
    one = state["state"][0]
    for other, words in (
        ({**one, "exp_avg": torch.zeros(7)}, r"exp_avg .* is \[7\], expected \["),
        ({**one, "exp_avg": torch.tensor(0.0)}, r"exp_avg .* is \[\], expected \["),
        ({**one, "step": torch.tensor(-1.0)}, "-1"),
        ({**one, "step": torch.ones(3)}, r"step .* is \[3\], expected \[\]"),
        ({name: one[name] for name in ("step", "exp_avg")}, "of one parameter, .* of another"),
    ):
        change(solver.checkpoint_path, optimizer={**state, "state": {**state["state"], 0: other}})
        with pytest.raises(CheckpointError, match=words):
            saved().restore()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"betas": (1, 2)}, "Invalid beta parameter"),
        ({"betas": (0.9,)}, r"betas\.1 is missing"),
        ({"betas": None}, "betas is a NoneType"),
        ({"lr": float("nan")}, "Invalid learning rate"),
        ({"betas": ...}, "the optimizer lacks betas"),
    ],
)
def test_settings_that_no_optimizer_takes_are_refused(
    saved: Callable[[], CompressionSolver], settings: dict[str, Any], words: str
) -> None:
    solver = saved()
    state = solver.optimizer.state_dict()
    group = {**state["param_groups"][0], **settings}
    change(
        solver.checkpoint_path,
        optimizer={**state, "param_groups": [{name: value for name, value in group.items() if value is not ...}]},
    )
    with pytest.raises(CheckpointError, match=words):
        saved().restore()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"sample_rate": 8000},
            "trained with sample_rate=16000, this experiment has sample_rate=8000; set",
        ),
        ({"channels": 2}, "trained with channels=1, this experiment has channels=2"),
    ],
)
def test_audio_of_another_kind_is_no_start(
    saved: Callable[[], CompressionSolver], tmp_path: Path, overrides: dict[str, Any], words: str
) -> None:
    path = saved().checkpoint_path.replace(tmp_path / "other.th")
    solver = saved()
    solver.cfg.continue_from = str(path)
    assert solver.restore()
    solver.cfg.update(overrides)
    with pytest.raises(CheckpointError, match=words):
        solver.restore()


def test_other_sizes_are_one_line_and_an_unfinished_epoch_is_named(
    saved: Callable[[], CompressionSolver], tmp_path: Path
) -> None:
    path = saved().checkpoint_path.replace(tmp_path / "other.th")
    state = load_checkpoint(path)
    solver = saved()
    solver.cfg.continue_from = str(path)
    weights = {name: torch.cat([value, value]) for name, value in state["best_state"]["model"].items()}
    change(path, best_state={"model": weights})
    with pytest.raises(
        CheckpointError, match=r"other\.th do not fit the model: .* expected .* more do not fit"
    ) as caught:
        solver.restore()
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400
    change(path, best_state={}, history=[], progress={"updates": 1})
    with pytest.raises(CheckpointError, match="its first epoch is not finished"):
        solver.restore()

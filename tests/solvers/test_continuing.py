"""continue_from: other numbers of codebooks, other models, and the rest of a training with continue_with=all."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from audiotok.errors import CheckpointError
from audiotok.export.formats import export_model
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.solvers import CompressionSolver
from tests.solvers.test_compression import ADVERSARIAL

pytestmark = pytest.mark.slow
Enter = Callable[..., AbstractContextManager[CompressionSolver]]
BALANCED = [*ADVERSARIAL, "optim.epochs=1", "losses.mmd=0"]


def trained(folder: Path, solver_in: Enter, *overrides: str) -> tuple[Path, dict[str, Any]]:
    """Checkpoint of an epoch, and what it holds."""
    with solver_in(folder, *overrides) as solver:
        solver.run()
        return solver.checkpoint_path, torch.load(solver.checkpoint_path, weights_only=True)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_codebooks_are_cut_or_start_by_kmeans(tmp_path: Path, solver_in: Enter) -> None:
    path, state = trained(tmp_path, solver_in, "optim.epochs=1")
    best = state["best_state"]["model"]
    for n_q, more in ((1, ["losses.mmd=0"]), (3, [])):
        with solver_in(tmp_path, "optim.epochs=1", f"rvq.n_q={n_q}", f"continue_from={path}", *more) as solver:
            assert solver.restore()
            own, quantizer = solver.model.state_dict(), solver.model.quantizer
            assert isinstance(quantizer, ResidualVectorQuantizer)
            shared = [name for name in own if name in best]
            assert all(torch.equal(own[name], best[name]) for name in shared)
            books = quantizer.vq.codebooks(n_q)
            assert [book.ready for book in books] == [True, True, False][:n_q]
            if n_q == 3:
                solver.model.train()
                solver.model(next(iter(solver.dataloaders["train"])))
                assert books[2].ready and len(books[2].embed.unique(dim=0)) > 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["rvq.bins=8"],
            r"fit the model: it has rvq\.bins=16, this experiment has rvq\.bins=8; make them equal$",
        ),
        (["seanet.n_filters=3", "seanet.lstm=2"], r"it has seanet\.n_filters=2, seanet\.lstm=\d, this experiment has"),
        (["sample_rate=8000"], "was trained with sample_rate=16000, this experiment has sample_rate=8000"),
    ],
)
def test_other_models_are_refused_by_their_keys(
    tmp_path: Path, solver_in: Enter, change: list[str], message: str
) -> None:
    path, _ = trained(tmp_path, solver_in, "optim.epochs=1")
    with solver_in(tmp_path, *change, f"continue_from={path}") as solver, pytest.raises(CheckpointError, match=message):
        solver.restore()


@pytest.mark.parametrize("format", ["audiocraft", "huggingface", "safetensors"])
def test_an_export_of_each_format_is_a_source(tmp_path: Path, solver_in: Enter, format: str) -> None:
    path, state = trained(tmp_path, solver_in, "optim.epochs=1")
    best, source = state["best_state"]["model"], f"//pretrained/{export_model(path, format, tmp_path / 'out')}"
    with solver_in(tmp_path, f"continue_from={source}", "continue_with=all", "rvq.n_q=3") as solver:
        assert solver.restore() and not solver.optimizer.state
        own = solver.model.state_dict()
        assert all(torch.equal(own[name], value) for name, value in best.items()) and len(own) > len(best)
    for change, message in (
        ("sample_rate=8000", "sample_rate=16000, this experiment has sample_rate=8000"),
        ("rvq.bins=8", r"has rvq\.bins=16, this experiment has rvq\.bins=8"),
    ):
        with (
            solver_in(tmp_path, change, f"continue_from={source}") as solver,
            pytest.raises(CheckpointError, match=message),
        ):
            solver.restore()


def test_all_takes_optimisers_discriminators_and_averages(tmp_path: Path, solver_in: Enter) -> None:
    path, state = trained(tmp_path, solver_in, *BALANCED)
    source = [*BALANCED, f"continue_from={path}", "optim.lr=0.123"]
    with solver_in(tmp_path, *source, "continue_with=all") as solver:
        assert solver.restore() and solver.epoch == 1
        found = solver.state_dict()
        for name in ("model", "balancer", "ema"):
            assert same(found[name], state[name]), name
        assert same(found["best_state"], state["best_state"])
        assert same(found["optimizer"]["state"], state["optimizer"]["state"]) and found["optimizer"]["state"]
        assert solver.optimizer.param_groups[0]["lr"] == 0.123  # of the new experiment
        assert found["balancer"]["totals"]
        for name, value in state["adv_losses"].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found["adv_losses"][name], value)
            else:
                moments = found["adv_losses"][name]["optimizer"]["state"]
                assert moments and same(moments, value["optimizer"]["state"])
    with solver_in(tmp_path, *source) as solver:  # by default the weights alone
        assert solver.restore() and not solver.optimizer.state and not solver.balancer.state_dict()["totals"]


def test_all_of_a_training_of_audiocraft(tmp_path: Path, solver_in: Enter) -> None:
    _, state = trained(tmp_path, solver_in, *BALANCED)
    theirs = copy.deepcopy(state)
    for key in [key for key in theirs["adv_losses"] if key.endswith("_extra_state")]:
        extra = theirs["adv_losses"].pop(key)
        theirs["adv_losses"][key.replace("_extra_state", "optimizer")] = extra["optimizer"]
    theirs["ema"] = {"state": {"model": state["ema"]["average"]}, "count": state["ema"]["count"]}
    for name in ("balancer", "macro_batch", "watch"):
        theirs.pop(name, None)
    torch.save(theirs, tmp_path / "theirs.th")
    with solver_in(tmp_path, *BALANCED, f"continue_from={tmp_path / 'theirs.th'}", "continue_with=all") as solver:
        assert solver.restore()
        found = solver.state_dict()
        assert same(found["ema"], state["ema"]) and same(found["optimizer"]["state"], state["optimizer"]["state"])
        assert same(found["adv_losses"], state["adv_losses"]) and not found["balancer"]["totals"]


def test_all_of_other_discriminators_is_refused(tmp_path: Path, solver_in: Enter) -> None:
    path, _ = trained(tmp_path, solver_in, *BALANCED)
    source = [*BALANCED, "msstftd.filters=3", f"continue_from={path}"]
    with (
        solver_in(tmp_path, *source, "continue_with=all") as solver,
        pytest.raises(CheckpointError, match=r"cannot go on with the adv_losses of .* set continue_with=weights"),
    ):
        solver.restore()


def test_all_of_other_kinds_of_discriminators(tmp_path: Path, solver_in: Enter) -> None:
    path, state = trained(tmp_path, solver_in, "optim.epochs=1", "losses.mmd=0")
    assert not state["adv_losses"]
    with solver_in(tmp_path, *BALANCED, f"continue_from={path}", "continue_with=all") as solver:
        assert solver.restore() and solver.optimizer.state  # theirs are empty, ours start anew
    path, _ = trained(tmp_path, solver_in, *BALANCED)
    source = [*BALANCED, "adversarial.adversaries=[msstftd,mpd]", f"continue_from={path}", "continue_with=all"]
    with solver_in(tmp_path, *source) as solver, pytest.raises(CheckpointError, match=r"has msstftd, .* mpd, msstftd;"):
        solver.restore()


def test_all_of_an_exported_file_is_its_weights(tmp_path: Path, solver_in: Enter) -> None:
    _, state = trained(tmp_path, solver_in, *BALANCED)
    exported = {"best_state": state["best_state"]["model"], "xp.cfg": state["xp.cfg"], "exported": True}
    torch.save(exported, tmp_path / "model.bin")
    with solver_in(tmp_path, *BALANCED, f"continue_from={tmp_path / 'model.bin'}", "continue_with=all") as solver:
        assert solver.restore() and not solver.optimizer.state
        assert same(dict(solver.model.state_dict()), state["best_state"]["model"])

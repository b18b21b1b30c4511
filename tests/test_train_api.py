"""The Python side of an experiment: its solver, its model, its export; test_docs.py runs the snippets of the guide."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from audiotok import train
from audiotok.checkpoint import load_checkpoint, save_checkpoint
from audiotok.errors import CheckpointError, ConfigError
from audiotok.models import CompressionModel
from audiotok.solvers import CompressionSolver
from audiotok.utils import export
from tests.conftest import data_overrides

pytestmark = pytest.mark.slow


@dataclass
class Trained:
    """A trained experiment."""

    root: Path
    folder: Path
    sig: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, music: Path) -> Iterator[Trained]:
    """One epoch of the debug preset, in a Dora folder that stays the current one."""
    root = tmp_path_factory.mktemp("outputs")
    old, train.main.dora.dir = train.main.dora.dir, root
    argv = ["solver=compression/debug", "device=cpu", "optim.epochs=1", *data_overrides(music)]
    xp = train.main.init_xp(train.main.get_xp(argv))
    with xp.enter():
        train.get_solver(xp.cfg).run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOTOK_OUTPUT_DIR", str(root))
        yield Trained(root, xp.folder, xp.sig)
    train.main.dora.dir = old


def test_solver_from_signature_has_the_best_weights_and_the_overrides(trained: Trained) -> None:
    solver = train.get_solver_from_sig(trained.sig, {"dataset": {"batch_size": 2}})
    best = load_checkpoint(trained.folder / "checkpoint.th")["best_state"]["model"]
    assert all(torch.equal(value, best[name]) for name, value in solver.model.state_dict().items())
    assert solver.xp.sig == trained.sig and solver.epoch == 2
    assert next(iter(solver.dataloaders["train"])).shape[0] == 2
    fresh = train.get_solver_from_sig(trained.sig, restore=False)
    assert fresh.epoch == 1


def test_model_comes_the_same_from_everywhere(trained: Trained, tmp_path: Path) -> None:
    path, exported = trained.folder / "checkpoint.th", tmp_path / "deep" / "model.bin"
    assert export.export_encodec(path, exported) == exported
    wav = torch.randn(2, 1, 3001, generator=torch.Generator().manual_seed(0))
    models: list[Any] = [
        CompressionSolver.model_from_checkpoint(f"//sig/{trained.sig}"),
        CompressionSolver.model_from_checkpoint(path),
        CompressionSolver.model_from_checkpoint(trained.folder),
        CompressionSolver.model_from_checkpoint(f"//pretrained/{exported}"),
        CompressionModel.get_pretrained(str(exported)),
        train.get_solver_from_sig(trained.sig).model.eval(),
    ]
    codes, scale = models[0].encode(wav)
    audio = models[0].decode(codes, scale)
    for model in models[1:]:
        assert not model.training
        assert torch.equal(model.encode(wav)[0], codes)
        assert torch.equal(model.decode(codes, scale), audio)


def test_exported_file_is_small_and_says_what_it_is(trained: Trained, tmp_path: Path) -> None:
    path, exported = trained.folder / "checkpoint.th", tmp_path / "model.bin"
    export.export_encodec(path, exported)
    content = load_checkpoint(exported)
    assert set(content) == {"best_state", "xp.cfg", "version", "exported"}
    assert content["exported"] is True and isinstance(content["xp.cfg"], str)
    assert exported.stat().st_size < path.stat().st_size / 3
    with pytest.raises(CheckpointError, match="exported file already"):
        export.export_encodec(exported, tmp_path / "again.bin")


def test_weights_that_do_not_fit_their_configuration_are_refused(trained: Trained, tmp_path: Path) -> None:
    state = load_checkpoint(trained.folder / "checkpoint.th")
    state["best_state"]["model"].popitem()
    save_checkpoint(state, tmp_path / "checkpoint.th")
    with pytest.raises(CheckpointError, match="do not fit"):
        CompressionSolver.model_from_checkpoint(tmp_path)
    save_checkpoint({"best_state": {}}, tmp_path / "checkpoint.th")
    with pytest.raises(CheckpointError, match=r"lacks xp\.cfg"):
        CompressionSolver.model_from_checkpoint(tmp_path)


def test_unknown_signature_is_one_clear_error(trained: Trained) -> None:
    for sig in ("ffffffff", "../../etc"):
        with pytest.raises(ConfigError, match="no experiment with signature"):
            train.get_solver_from_sig(sig)

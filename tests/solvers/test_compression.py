"""The solver on real files: metrics, resuming, crashes, divergence, weights from elsewhere."""

import errno
import json
import math
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from audiotok import checkpoint
from audiotok.data.audio import read_audio, write_audio
from audiotok.data.manifest import AudioMeta, write_manifest
from audiotok.errors import CheckpointError, ConfigError, DataError, DivergedError
from audiotok.solvers import CompressionSolver
from audiotok.solvers.samples import save_sample

pytestmark = pytest.mark.slow
Enter = Callable[..., AbstractContextManager[CompressionSolver]]

ADVERSARIAL = [
    "adversarial.adversaries=[msstftd]",
    "msstftd.filters=2",
    "msstftd.n_ffts=[256]",
    "msstftd.hop_lengths=[128]",
    "msstftd.win_lengths=[256]",
    "losses.adv=1",
    "losses.feat=1",
    "losses.msspec=1",
    "balancer.balance_grads=true",
    "balancer.ema_decay=0.9",
]


def without_duration(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {stage: {k: v for k, v in metrics.items() if k != "duration"} for stage, metrics in epoch.items()}
        for epoch in history
    ]


def test_history_has_the_metrics_of_every_stage(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, *ADVERSARIAL) as solver:
        solver.run()
        history = json.loads((Path(solver.folder) / "history.json").read_text())
    names = {"bandwidth", "adv", "feat", "l1", "msspec", "penalty", "mmd", "duration"}
    of_training = {"d_loss", "d_msstftd", "adv_msstftd", "feat_msstftd", "g_loss", "grad_norm", "mmd_share"}
    assert names | of_training == set(history[0]["train"])
    assert names | {"sisnr", "mel", "l2", "mrstft"} <= set(history[0]["valid"])
    assert set(history[0]) == {"train", "valid"} and set(history[1]) == {
        "train",
        "valid",
        "evaluate",
        "generate",
    }
    assert {"sisdr", "mel_distance", "stft_distance", "mmd"} <= set(history[1]["evaluate"])
    values = [v for epoch in history for metrics in epoch.values() for v in metrics.values()]
    assert all(math.isfinite(value) for value in values)
    # 2 codebooks of 16 at 16000 / 640 Hz
    assert history[0]["train"]["bandwidth"] == pytest.approx(2 * 4 * 25 / 1000)


def test_samples_are_written_beside_their_reference(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, "optim.epochs=1", "generate.every=1") as solver:
        solver.run()
        samples = Path(solver.folder) / "samples"
    names = {path.name for path in (samples / "reference").glob("*.wav")}
    assert names and names == {path.name for path in (samples / "epoch_0001").iterdir()}


def test_albums_with_the_same_titles_keep_all_their_samples(tmp_path: Path, solver_in: Enter) -> None:
    tones = {}
    for index, name in enumerate(("A/01 - Intro", "B/01 - Intro", "A/02 - \udcff\n", "B/" + "x" * 250)):
        path = tmp_path / "music" / f"{name}.wav"
        tones[str(path)] = 0.1 * (index + 1) * torch.ones(1, 16_000)
        write_audio(path.with_name("short.wav"), tones[str(path)], 16_000).rename(path)
    manifest = write_manifest(tmp_path / "generate.jsonl", [AudioMeta(Path(name), 1.0, 16_000, 1) for name in tones])
    overrides = ["generate.every=1", f"datasource.generate={manifest}", "dataset.generate.segment_duration=null"]
    overrides += ["optim.epochs=1", "dataset.generate.num_samples=4", "dataset.generate.batch_size=2"]
    written = {}
    for seed in (1, 2):
        with solver_in(tmp_path / "xps", *overrides, f"seed={seed}") as solver:
            solver.run()
            samples = Path(solver.folder) / "samples"
        written[seed] = {path.name for path in (samples / "epoch_0001").iterdir()}
        assert written[seed] == {path.name for path in (samples / "reference").glob("*.wav")}
    assert len(written[1]) == 4 and written[1] == written[2]
    for name in written[1]:  # each is found again by the file beside its reference
        source = json.loads((samples / "reference" / name).with_suffix(".json").read_text())
        reference, _ = read_audio(samples / "reference" / name)
        assert torch.allclose(reference, tones.pop(source["path"]), atol=1e-4)
    assert not tones


def test_every_seed_is_judged_on_the_same_clips(tmp_path: Path, solver_in: Enter) -> None:
    clips = {}
    for seed in (1, 2):
        with solver_in(tmp_path / str(seed), f"seed={seed}") as solver:
            loaders = solver.dataloaders
            clips[seed] = {
                split: torch.cat([batch[0] if isinstance(batch, tuple | list) else batch for batch in loaders[split]])
                for split in ("train", "valid", "evaluate", "generate")
            }
    for split, first in clips[1].items():
        assert torch.equal(first, clips[2][split]) == (split != "train"), split


def test_a_sample_that_the_disk_refuses_is_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wav, path = torch.zeros(1, 200_000), tmp_path / "sample.wav"
    for free, number in ((300_000, errno.ENOSPC), (10**9, errno.EIO)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        (tmp_path / f".sample.wav.{socket.gethostname()}.{os.getpid()}.tmp").symlink_to("/dev/full")
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            save_sample(path, wav, 16_000, "clip")
        assert caught.value.errno == number and list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="extension"):
        save_sample(tmp_path / "sample.doc", wav, 16_000, "clip")
    save_sample(path, wav, 16_000, "clip")
    assert path.is_file()


@pytest.mark.parametrize("schedule", ["null", "cosine"])
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path, solver_in: Enter, schedule: str) -> None:
    # 4 updates an epoch and macro-batches of 3: batches are pending at every epoch's end.
    overrides = [*ADVERSARIAL, "optim.epochs=3", "mmd.num_batches_mmd=3", f"schedule.lr_scheduler={schedule}"]
    with solver_in(tmp_path / "whole", *overrides) as solver:
        solver.run()
        whole = without_duration(solver.history)
        weights = solver.model.state_dict()
    for _ in range(3):  # killed after each epoch
        with solver_in(tmp_path / "parts", *overrides) as solver:
            solver.restore()
            solver.run_epoch()
            solver.commit()
            parts = without_duration(solver.history)
    assert parts == whole
    assert all(torch.equal(value, weights[name]) for name, value in solver.model.state_dict().items())


def test_history_follows_the_checkpoint_after_a_crash_between_them(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path) as solver:
        solver.run()
        file = Path(solver.folder) / "history.json"
        whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole)[:1]))  # the checkpoint was saved, the history was not
    with solver_in(tmp_path) as solver:
        solver.run()
        assert json.loads(file.read_text()) == json.loads(whole)


def test_a_value_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path) as solver:
        solver.run_epoch()
        solver.commit()
        kept = solver.checkpoint_path.read_bytes()
        with torch.no_grad():
            next(solver.model.parameters()).fill_(float("nan"))
        with pytest.raises(DivergedError, match=r"l1=nan.* at step 1 of train, epoch 2"):
            solver.run_epoch()
        assert solver.epoch == 2
        assert solver.checkpoint_path.read_bytes() == kept


def test_epoch_checkpoints_follow_the_schedule(tmp_path: Path, solver_in: Enter) -> None:
    overrides = ["optim.epochs=5", "checkpoint.save_every=1", "checkpoint.keep_last=2"]
    with solver_in(tmp_path, *overrides, "checkpoint.keep_every_states=[best_state]") as solver:
        solver.run()
        folder = Path(solver.folder)
    assert sorted(p.name for p in folder.glob("*.th")) == [
        "checkpoint.th",
        "checkpoint_4.th",
        "checkpoint_5.th",
    ]
    assert set(checkpoint.load_checkpoint(folder / "checkpoint_5.th")) == {"best_state", "xp.cfg", "xp.sig"}


def test_continue_from_starts_with_the_best_weights_of_another(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, "optim.epochs=1") as solver:
        solver.run()
        best, sig, path = solver.best_state.states["model"], solver.xp.sig, solver.checkpoint_path
    for source in (f"//sig/{sig}", str(path), str(path.parent), f"//pretrained/{path}"):
        with solver_in(tmp_path, "optim.epochs=1", "seed=7", f"continue_from='{source}'") as other:
            assert other.restore() and other.epoch == 1
            assert all(torch.equal(v, best[k]) for k, v in other.model.state_dict().items())
            assert other.ema is not None
            assert all(torch.equal(v, best[k]) for k, v in other.ema.average.items())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, "optim.epochs=1") as solver:
        solver.run()
        path = solver.checkpoint_path
    with (
        solver_in(tmp_path, "rvq.bins=8", f"continue_from={path}") as other,
        pytest.raises(CheckpointError, match="do not fit"),
    ):
        other.restore()


def test_continue_from_the_model_that_comes_with_the_package(tmp_path: Path, solver_in: Enter) -> None:
    small = ["dataset.batch_size=2", "dataset.segment_duration=0.5", "dataset.generate.segment_duration=0.5"]
    small += ["dataset.evaluate.segment_duration=1", "optim.updates_per_epoch=2", "losses.mmd=0"]
    demo = ["solver=compression/demo_mmd", *small, "continue_from=//pretrained/demo"]
    with solver_in(tmp_path, *demo, "optim.epochs=1", "optim.lr=1e-9") as solver:
        assert solver.restore() and solver.epoch == 1 and not solver.optimizer.state
        before = {name: value.clone() for name, value in solver.model.state_dict().items()}
        solver.run()
        for name, value in solver.model.state_dict().items():  # the first updates leave codebooks and weights in place
            if name.endswith("embed"):
                assert (value - before[name]).norm() < 0.2 * before[name].norm()
            elif name.endswith("embed_avg"):
                assert value.norm() < 2 * before[name].norm()
        assert "continue_from=//pretrained/demo" in solver.xp.argv
    for change, message in (
        ("rvq.bins=8", r"^the weights of \S+demo\.bin do not fit the model: it has rvq.bins=1024, .* rvq.bins=8; make"),
        ("channels=2", "trained with channels=1, this experiment has channels=2"),
    ):
        with solver_in(tmp_path, *demo, change) as other, pytest.raises(CheckpointError, match=message):
            other.restore()


def test_one_codebook_trains_without_mmd_and_refuses_it(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, "rvq.n_q=1", "losses.mmd=0", "optim.epochs=1") as solver:
        solver.run()
        assert "mmd" not in solver.history[0]["valid"] and "mmd" not in solver.history[0]["evaluate"]
    with (
        pytest.raises(ConfigError, match=r"losses\.mmd=1\.0 with 1 codebook"),
        solver_in(tmp_path, "rvq.n_q=1"),
    ):
        pass


def test_baseline_measures_the_mmd_it_does_not_train(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, "losses.mmd=0", "optim.epochs=1") as solver:
        solver.run()
        assert all("mmd" in solver.history[0][stage] for stage in ("train", "valid", "evaluate"))

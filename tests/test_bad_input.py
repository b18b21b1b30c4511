"""What a user can get wrong: one clear line, exit code 2, nothing lost."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiotok import train
from audiotok.errors import AudiotokError, ConfigError, DataError
from tests.conftest import data_overrides

ROOT = Path(__file__).parent.parent


def solver_error(root: Path, overrides: list[str]) -> AudiotokError:
    """The error that building the solver of an experiment ends in."""
    old, train.main.dora.dir = train.main.dora.dir, root
    try:
        xp = train.main.init_xp(train.main.get_xp(overrides))
        with xp.enter(), pytest.raises(AudiotokError) as caught:
            train.get_solver(xp.cfg)
    finally:
        train.main.dora.dir = old
    return caught.value


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("solver=nothing", ConfigError, "nothing"),
        ("datasource.train=/nowhere/train.jsonl.gz", DataError, "/nowhere/train.jsonl.gz"),
        ("datasource.valid=null", ConfigError, "datasource.valid not set"),
        ("dataset.segment_duration=60", DataError, "segment"),
        ("datasource.max_sample_rate=8000", ConfigError, "8000"),
        ("datasource.max_channels=0", (DataError, ConfigError), "channels"),
        ("channels=5", (DataError, ConfigError), "channels"),
        ("mmd.sigmas=[]", ConfigError, "sigmas"),
        ("mmd.sigmas=[1,-2]", ConfigError, "-2"),
        ("mmd.sigmas=wide", ConfigError, "wide"),
        ("mmd.estimator=unbaised", ConfigError, "clips, samples, unbiased"),
        ("mmd.stream=codes", ConfigError, "input, residual, code"),
        ("mmd.num_batches_mmd=0", ConfigError, "num_batches_mmd=0"),
        ("rvq.n_q=0", ConfigError, "n_q"),
        ("losses.l1=-1", ConfigError, r"losses.l1=-1"),
        ("optim.optimizer=sgd", ConfigError, "adam, adamw"),
        ("schedule.lr_scheduler=linear", ConfigError, "cosine"),
        ("adversarial.adversaries=[gan]", ConfigError, "msstftd, mpd, msd"),
        ("encodec.quantizer=vq", ConfigError, "rvq"),
        ("device=gpu", ConfigError, "auto, cpu, cuda"),
        ("seanet.norm=batch_norm", ConfigError, "weight_norm"),
    ],
)
def test_a_bad_value_is_named(
    override: str,
    kind: type[Exception] | tuple[type[Exception], ...],
    message: str,
    tmp_path: Path,
    debug_overrides: list[str],
) -> None:
    key = override.split("=")[0]
    kept = [argument for argument in debug_overrides if not argument.startswith(f"{key}=")]
    if override.startswith("solver="):
        with pytest.raises(ConfigError, match=message):
            train.main.get_xp([override])
        return
    error = solver_error(tmp_path, [*kept, override])
    assert isinstance(error, kind), repr(error)
    assert message in str(error) and "\n" not in str(error)


def test_an_empty_manifest_is_named(tmp_path: Path, debug_overrides: list[str]) -> None:
    manifest = tmp_path / "empty.jsonl.gz"
    manifest.write_bytes(gzip.compress(b""))
    assert "empty.jsonl.gz" in str(solver_error(tmp_path, [*debug_overrides, f"datasource.train={manifest}"]))


def test_batch_size_must_divide_over_the_processes(
    tmp_path: Path, debug_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashy.distrib.world_size", lambda: 3)
    error = solver_error(tmp_path, debug_overrides)
    assert "batch size 4 of train over 3 processes" in str(error)


def dora(root: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "AUDIOTOK_OUTPUT_DIR": str(root), "AUDIOTOK_LAUNCHER": "local", **environ}
    environment.pop("USER", None)
    return subprocess.run(
        [sys.executable, "-m", "dora", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid", "compression.nothing"], "compression.encodec_mmd_demo"),
        (["info", "-f", "ffffffff"], "no experiment with signature 'ffffffff'"),
        (["run", "solver=compression/nothing"], "compression/nothing"),
        (["run", "solver=compression/debug", "losses.mdm=1"], "losses.mdm"),
        (["run", "solver=compression/debug", "losses.mmd"], "no '='"),
        (["run", "solver=compression/debug", "dset=audio/nothing"], "audio/nothing"),
        (["run"], "solver=None"),
    ],
)
def test_the_command_line_says_it_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    run = dora(tmp_path, *arguments)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert message in run.stderr.strip().splitlines()[-1]


def test_a_profile_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    run = dora(tmp_path, "grid", "compression.debug", "--dry_run", AUDIOTOK_CLUSTER="jupitr")
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert "no jupitr.yaml; choose one of: cpu, default" in run.stderr.strip().splitlines()[-1]


def test_a_text_file_named_wav_ends_the_run_by_name(tmp_path: Path, music: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "notes.wav").write_text("not audio")
    manifest = broken / "train.jsonl"
    manifest.write_text('{"path": "notes.wav", "duration": 9.0, "sample_rate": 16000, "channels": 1}\n')
    overrides = ["solver=compression/debug", "device=cpu", *data_overrides(music)]
    overrides[2] = f"datasource.train={manifest}"
    run = dora(tmp_path / "out", "run", *overrides)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert "notes.wav" in run.stderr

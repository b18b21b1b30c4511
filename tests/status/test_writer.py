"""The `status.json` that a trainer keeps."""

import os
import time
from pathlib import Path

import pytest

from audiotok.status import StatusWriter, experiment_state, job_identity, read_status


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    began = time.time()
    status = StatusWriter(tmp_path, epochs=3, beat_s=100.0)
    status.start(epoch=1)
    status.beat(epoch=2)
    told = read_status(tmp_path)
    assert told is not None
    assert (told["state"], told["epoch"], told["epochs"], told["pid"]) == ("RUNNING", 2, 3, os.getpid())
    assert began <= told["started"] <= told["updated"] <= time.time() and told["ended"] is None
    status.end("DIVERGED", "loss is nan at epoch 3", "diverged")
    told = read_status(tmp_path)
    assert told is not None and told["ended"] >= told["started"] and told["kind"] == "diverged"
    assert experiment_state(tmp_path) == ("DIVERGED", "loss is nan at epoch 3")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_heartbeats_within_an_epoch_are_rare(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, beat_s=3600.0)
    status.start(epoch=0)
    first = (tmp_path / "status.json").stat().st_ino
    for _ in range(100):
        status.beat(epoch=0)
    assert (tmp_path / "status.json").stat().st_ino == first
    status.beat_s = 0.0
    status.beat(epoch=0)
    assert (tmp_path / "status.json").stat().st_ino != first


def test_progress_within_an_epoch_is_told(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, epochs=9, beat_s=0.0)
    status.start()
    status.beat(epoch=2, update=30, updates_per_epoch=100, epoch_s=12.5)
    status.beat(update=31)
    told = read_status(tmp_path)
    assert told is not None
    assert [told[name] for name in ("epoch", "update", "updates_per_epoch", "epoch_s")] == [2, 31, 100, 12.5]
    status.beat(epoch=3, update=0)
    told = read_status(tmp_path)
    assert told is not None and (told["epoch"], told["update"], told["updates_per_epoch"]) == (3, 0, 100)


def test_a_silent_writer_leaves_nothing(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, silent=True)
    status.start()
    status.beat(epoch=1)
    status.end("FAILED", "no audio", "data")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    status = StatusWriter(tmp_path)
    status.start()
    before = (tmp_path / "status.json").read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    status.end("COMPLETED")
    assert "No space left on device" in caplog.text
    assert (tmp_path / "status.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("none", None)),
        ({"SLURM_JOB_ID": "7"}, ("none", None)),  # by hand within an allocation
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}, ("slurm", "7")),
        (
            {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"},
            ("slurm", "7_2"),
        ),
        ({"AUDIOTOK_JOB_ID": "7_2", "AUDIOTOK_LAUNCHER": "slurm", "SLURM_JOB_ID": "9"}, ("slurm", "7_2")),
        ({"AUDIOTOK_JOB_ID": "42", "AUDIOTOK_LAUNCHER": "another", "SLURM_JOB_ID": "9"}, ("another", "42")),
        ({"AUDIOTOK_JOB_ID": "L3", "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}, ("local", "L3")),
    ],
)
def test_identity(environ: dict[str, str], expected: tuple[str, str | None]) -> None:
    assert job_identity(environ) == expected


def test_a_warning_is_the_reason_while_the_run_goes_on(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, beat_s=3600.0)
    status.start()
    status.beat(epoch=0, warning="")
    assert experiment_state(tmp_path) == ("RUNNING", "")
    status.beat(epoch=0, warning="codebook 2 collapsed")  # at once, not with the next heartbeat
    assert experiment_state(tmp_path) == ("RUNNING", "codebook 2 collapsed")
    status.beat(epoch=0)
    status.beat(epoch=0, warning="")
    assert experiment_state(tmp_path) == ("RUNNING", "")
    status.beat(warning="msstftd wins")
    status.end("COMPLETED")
    assert experiment_state(tmp_path) == ("COMPLETED", "")

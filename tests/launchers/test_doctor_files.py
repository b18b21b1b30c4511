"""What `audiotok doctor` says of the results folder and of the data."""

import gzip
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from audiotok.launchers import doctor as doctor_files
from audiotok.launchers.engine import Level


def test_results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/elsewhere")
    monkeypatch.setattr(doctor_files, "ROOMY_GB", 0.0)
    monkeypatch.setattr(doctor_files, "CRAMPED_GB", 0.0)
    found = doctor_files.check_output(tmp_path / "a" / "b", shared=True)
    assert found.verdict is Level.OK and "will be made" in found.found and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert doctor_files.check_output(tmp_path / "file" / "x", shared=False).verdict is Level.FAIL
    for size, verdict in (("ROOMY_GB", Level.WARN), ("CRAMPED_GB", Level.FAIL)):
        monkeypatch.setattr(doctor_files, size, 1e9)
        assert doctor_files.check_output(tmp_path, shared=False).verdict is verdict
    monkeypatch.setattr(doctor_files, "ROOMY_GB", 0.0)
    monkeypatch.setattr(doctor_files, "CRAMPED_GB", 0.0)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert "nodes will not see it" in doctor_files.check_output(tmp_path, shared=True).advice
    monkeypatch.setattr("fcntl.flock", lambda *_: None)  # a file system where every lock succeeds
    assert "flock does not work" in doctor_files.check_output(tmp_path, shared=False).found


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / "far"
    far.mkdir()
    manifest = far / "train.jsonl.gz"
    cfg = OmegaConf.create({"datasource": {"train": "/home/me/train.jsonl.gz", "valid": None}})
    monkeypatch.setenv("AUDIOTOK_DATASET_PATHS", json.dumps({"/home/me": str(far)}))
    assert f"train: no manifest {manifest}" in doctor_files.check_data(cfg).found
    for first, found in (("a.wav", True), ("/home/me/a.wav", True), ("b.wav", False), ("/nowhere/a.wav", False)):
        manifest.write_bytes(gzip.compress(json.dumps({"path": first}).encode()))
        (far / "a.wav").touch()
        check = doctor_files.check_data(cfg)
        assert (check.verdict is Level.OK) == found and ("first track" in check.found)
    for damage in (b"", b"plain", gzip.compress(b"[]"), gzip.compress(b'{"path": 1}'), gzip.compress(b"{")):
        manifest.write_bytes(damage)
        assert "cannot be read" in doctor_files.check_data(cfg).found, damage
    monkeypatch.setenv("AUDIOTOK_DATASET_PATHS", "x")
    assert doctor_files.check_data(cfg).verdict is Level.FAIL

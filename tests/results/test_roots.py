"""Several results folders at once, and what is asked of a grid that has not got it."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiotok.errors import ResultsError
from audiotok.results import load_all, load_grid, load_sigs, require_metric

GRID = "compression.encodec_mmd_demo"


def _experiment(root: Path, sig: str, value: float, status: dict[str, Any] | None, grid: str = GRID) -> Path:
    folder = root / "xps" / sig
    folder.mkdir(parents=True)
    (folder / ".argv.json").write_text(json.dumps(["seed=1"]))
    (folder / "history.json").write_text(json.dumps([{"valid": {"msspec": value}}]))
    if status is not None:
        (folder / "status.json").write_text(json.dumps(status))
    (root / "grids" / grid).mkdir(parents=True, exist_ok=True)
    (root / "grids" / grid / sig).symlink_to(folder)
    return folder


def test_of_two_with_the_same_signature_the_newest_counts(
    tmp_path: Path, done: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    old = done | {"started": 1e9, "updated": 1e9, "ended": 1e9}
    a, b = tmp_path / "a", tmp_path / "b"
    _experiment(a, "00000001", 1.0, done)
    _experiment(b, "00000001", 2.0, old)
    _experiment(a, "00000002", 3.0, old)
    _experiment(b, "00000003", 4.0, old)
    for roots in ([a, b], [b, a]):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            experiments = load_grid(GRID, roots)
        runs = experiments.runs.set_index("sig")
        assert runs["valid.msspec"].to_dict() == {"00000001": 1.0, "00000002": 3.0, "00000003": 4.0}
        said = f"also in {b / 'xps' / '00000001'}, which is older and not shown"
        assert runs["problems"].to_dict() == {"00000001": said, "00000002": "", "00000003": ""}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert experiments.history["msspec"].tolist() == runs["valid.msspec"].tolist()
        assert set(load_all(roots).runs["sig"]) == set(runs.index)
    assert load_sigs(["00000003"], [a, b]).runs["valid.msspec"].tolist() == [4.0]


def test_without_a_status_the_times_of_the_files_tell(tmp_path: Path) -> None:
    for name, age in (("a", 1e9), ("b", 2e9)):
        folder = _experiment(tmp_path / name, "00000001", age, None)
        for path in folder.iterdir():
            os.utime(path, (age, age))
    assert load_all([tmp_path / "a", tmp_path / "b"]).runs["valid.msspec"].tolist() == [2e9]


def test_a_grid_that_no_folder_has(tmp_path: Path) -> None:
    _experiment(tmp_path / "a", "00000001", 1.0, None, grid="first")
    _experiment(tmp_path / "b", "00000001", 1.0, None, grid="second")
    assert len(load_grid("first", [tmp_path / "a", tmp_path / "b"]).runs) == 1
    with pytest.raises(ResultsError, match=r"no grid 'secnd' in .*a/grids or .*b/grids; there are: second, first"):
        load_grid("secnd", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ResultsError, match=r"no experiment '00000002' in .*a/xps or .*b/xps"):
        load_sigs(["00000002"], [tmp_path / "a", tmp_path / "b"])


def test_a_metric_that_no_run_has(root: Path, make_experiment: Callable[..., Path]) -> None:
    with pytest.raises(ResultsError, match="nothing has been measured yet"):
        require_metric(load_grid(GRID, root), "valid.msspec")
    make_experiment("00000001", [], [{"train": {"l1": 1.0}, "valid": {"msspec": 1.0, "sisnr": None, "mel": 2.0}}])
    make_experiment("00000002", [], [{"evaluate": {"sisnr": 1.0, "usage": 1.0}}])  # another version's
    experiments = load_grid(GRID, root)
    assert require_metric(experiments, "valid.sisnr") == "valid.sisnr"
    with pytest.raises(ResultsError, match=r"'sisnr'; the nearest: valid.sisnr, evaluate.sisnr"):
        require_metric(experiments, "sisnr")
    with pytest.raises(ResultsError, match=r"nearest: valid.msspec.*\(6 in all\)"):
        require_metric(experiments, "valid.mspec")


def test_gpu_hours_and_commit(root: Path, make_experiment: Callable[..., Path], done: dict[str, Any]) -> None:
    hour = [{"train": {"l1": 1.0, "duration": 3000.0}, "valid": {"duration": 600.0}}, {"train": {"duration": None}}]
    job = {"launcher": "slurm", "job_id": "7", "submitted": 1.0, "profile": {"gpus": 4}}
    make_experiment("00000001", [], hour, status=done | {"gpus": 2, "commit": "1a2b3c4-dirty"}, job=job)
    make_experiment("00000002", [], hour, status=done | {"gpus": 0}, job=job)
    make_experiment("00000003", [], hour, status=done, job=job)
    make_experiment("00000004", [], hour, status=done | {"commit": None})
    make_experiment("00000005", job=job)
    runs = load_grid(GRID, root).runs.set_index("sig")
    assert runs["gpu_hours"].to_dict() == pytest.approx(
        {"00000001": 2.0, "00000002": 0.0, "00000003": 4.0, "00000004": float("nan"), "00000005": 0.0}, nan_ok=True
    )
    assert runs["commit"].tolist() == ["1a2b3c4-dirty", "", "", "", ""]
    assert runs["duration"].tolist()[:4] == [3600.0] * 4

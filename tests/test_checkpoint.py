"""Checkpoints: atomic, plain data, found by path or signature."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiotok import checkpoint
from audiotok.errors import CheckpointError


class Evil:
    """Unpickling this creates a file: what a hostile checkpoint would do."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.target),))


def test_round_trip_keeps_tensors_numbers_and_text(tmp_path: Path) -> None:
    state = {"model": {"w": torch.arange(3.0)}, "history": [{"train": {"l1": 0.5}}], "xp.cfg": "a: 1\n"}
    path = tmp_path / "deep" / "checkpoint.th"
    checkpoint.save_checkpoint(state, path)
    loaded = checkpoint.load_checkpoint(path)
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert loaded["history"] == state["history"]
    assert loaded["xp.cfg"] == "a: 1\n"
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.th"]


def test_truncated_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.th"
    checkpoint.save_checkpoint({"w": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"checkpoint\.th is damaged"):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path: Path, modern: bool) -> None:
    trap, path = tmp_path / "executed", tmp_path / "checkpoint.th"
    if modern:
        torch.save({"best_state": Evil(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"best_state": Evil(trap)}))
    with pytest.raises(CheckpointError, match="other than tensors"):
        checkpoint.load_checkpoint(path)
    assert not trap.exists()


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load_checkpoint(tmp_path / "none.th")
    torch.save(torch.zeros(3), tmp_path / "tensor.th")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        checkpoint.load_checkpoint(tmp_path / "tensor.th")
    (tmp_path / "text.th").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.th"):
        checkpoint.load_checkpoint(tmp_path / "text.th")


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    # A process limited to files of 64 KiB meets the same failed write as on a full disk.
    path = tmp_path / "checkpoint.th"
    checkpoint.save_checkpoint({"w": torch.ones(10)}, path)
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from audiotok import checkpoint, errors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n"
        "    checkpoint.save_checkpoint({'w': torch.zeros(1000000)}, Path(sys.argv[1]))\n"
        "except errors.CheckpointError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert f"cannot save {path}" in run.stdout and "previous checkpoint" in run.stdout
    assert torch.equal(checkpoint.load_checkpoint(path)["w"], torch.ones(10))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.th"]


def test_resolve_finds_signatures_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "xps" / "0a1b2c3d"
    path = folder / "checkpoint.th"
    checkpoint.save_checkpoint({}, path)
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path))
    assert checkpoint.resolve_checkpoint("//sig/0a1b2c3d") == path
    assert checkpoint.resolve_checkpoint("//sig/0a1b2c3d", tmp_path) == path
    assert checkpoint.resolve_checkpoint(folder) == path
    assert checkpoint.resolve_checkpoint(str(path)) == path


@pytest.mark.parametrize(
    "source", ["//sig/../../etc", "//sig/", "//sig/ffffffff", "nowhere.th", "x" * 5000, "//sig/" + "x" * 5000]
)
def test_resolve_refuses_what_is_not_there(source: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        checkpoint.resolve_checkpoint(source, tmp_path)


def test_flush_keeps_the_newest_epochs_and_the_last_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint.th", *(checkpoint.epoch_name(epoch) for epoch in (5, 25, 100))):
        (tmp_path / name).touch()
    checkpoint.flush_old_epochs(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.th",
        "checkpoint_100.th",
        "checkpoint_25.th",
    ]
    checkpoint.flush_old_epochs(tmp_path, None)
    assert len(list(tmp_path.iterdir())) == 3

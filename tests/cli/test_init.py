"""`audiotok init`: what it makes, and where it refuses. Its project is run in tests/test_wheel.py."""

import ast
import os
import subprocess as sp
import sys
from pathlib import Path

import pytest
import yaml

from audiotok.cli import main


def test_a_project_bears_the_name_of_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "my_codec2"
    assert main(["init", str(folder)]) == 0
    assert capsys.readouterr().out == f"cd {folder} && dora grid sweep --dry_run --no_monitoring\n"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"README.md", "__init__.py", "train.py", "sweep.py", "mine.yaml"}
    assert (folder / "my_codec2" / "train.py") in files
    assert len((folder / "README.md").read_text().splitlines()) == 2
    for path in files:
        assert "mycodec" not in path.read_text()
        (ast.parse if path.suffix == ".py" else yaml.safe_load)(path.read_text() if path.suffix != ".md" else "")


def test_the_doctor_knows_the_profiles_and_presets_of_a_project(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "mycodec")]) == 0
    command = [sys.executable, "-m", "audiotok.cli", "doctor", "solver=compression/mine"]
    environ = {**os.environ, "AUDIOTOK_CLUSTER": "mine", "AUDIOTOK_LAUNCHER": "local"}
    done = sp.run(command, cwd=tmp_path / "mycodec", env=environ, capture_output=True, text=True)
    assert "ok    cluster     profile mine (AUDIOTOK_CLUSTER in the environment)" in done.stdout
    assert "fail  data        train: no manifest data/demo/train.jsonl.gz" in done.stdout  # of the preset; no music yet
    assert done.returncode == 1 and not done.stderr


def test_an_empty_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "two words/mine"]) == 0 and capsys.readouterr().out.startswith("cd 'two words/mine' && ")
    (tmp_path / "mine").mkdir()
    assert main(["init", "mine"]) == 0 and (tmp_path / "mine" / "mine" / "train.py").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("full", "is not empty"),
        ("file", "is a file"),
        ("my-codec", "letters, digits and _"),
        ("2codec", "letters, digits and _"),
        ("class", "letters, digits and _"),
        ("códec", "letters, digits and _"),
        ("json", "installed already"),
        ("audiotok", "installed already"),
        ("file/mine", "cannot write"),
        ("a" * 300, "cannot write"),
    ],
)
def test_what_it_refuses_is_left_as_it_is(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert main(["init", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_project_has_grids_of_language_models_on_its_codecs(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "mycodec")]) == 0
    package = tmp_path / "mycodec" / "mycodec"
    preset = package / "config/solver/lm/tiny.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# @package __global__\ndefaults: [/solver/lm/debug, _self_]\nlm: {dim: 32}\n")
    lines = [
        "from audiotok.explorers import LMExplorer",
        "from audiotok.launchers.grid_file import experiments",
        "@LMExplorer",
        "def explorer(launcher):",
        '    launcher.bind_(solver="lm/tiny")',
        '    for codec in experiments("sweep"):',
        '        launcher({"compression_model_checkpoint": codec.checkpoint})',
    ]
    (package / "grids/over.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "audiotok.cli", "plan", "over"]
    environ = {**os.environ, "AUDIOTOK_LAUNCHER": "local", "AUDIOTOK_OUTPUT_DIR": str(tmp_path / "out")}
    done = sp.run(command, cwd=package.parent, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Plan of over on local: 6 experiments (6 blocked)" in done.stdout
    assert "needs `dora grid sweep` first" in done.stdout and "compression_model_checkpoint=//sig/" in done.stdout

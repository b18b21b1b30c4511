"""What the TAB key completes, in a real bash; what it looks up imports nothing slow and writes nothing."""

import os
import subprocess as sp
import sys
from pathlib import Path

import pytest

from audiotok.cli import main

ROOT = Path(__file__).parent.parent.parent
SIG = "0a1b2c3d"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of bash, as a user saves it."""
    path = tmp_path_factory.mktemp("completion") / "audiotok.bash"
    command = [sys.executable, "-m", "audiotok.cli", "completion", "bash"]
    path.write_text(sp.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with one grid, of which one experiment has run."""
    for name in ("mine/grids/_draft.py", "mine/grids/sweep.py", "mine/__init__.py", "mine/train.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('imported')")
    (tmp_path / "outputs/grids/sweep").mkdir(parents=True)
    (tmp_path / "outputs/xps" / SIG).mkdir(parents=True)
    return tmp_path


def complete(script: Path, folder: Path, line: str) -> list[str]:
    """What bash offers after a line is typed and TAB is pressed; a line that ends in a space begins a new word."""
    words = line.split(" ")
    code = (
        f'source {script}; audiotok() {{ "{sys.executable}" -m audiotok.cli "$@"; }}; '
        f'COMP_WORDS=("$@"); COMP_CWORD={len(words) - 1}; '
        '_shtab_"$1" 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AUDIOTOK", "DORA"))}
    environ |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["bash", "--norc", "-c", code, "bash", *words]
    done = sp.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("audiotok res", ["results"]),
        ("audiotok plan ", ["sweep"]),
        ("audiotok plan sw", ["sweep"]),
        ("audiotok results ", ["sweep"]),
        ("audiotok report s", ["sweep"]),
        ("audiotok requeue ", [SIG]),
        ("audiotok export ", ["demo", f"//sig/{SIG}"]),
        ("audiotok export demo --format h", ["huggingface"]),
        ("audiotok tokenize ", ["demo", f"//sig/{SIG}"]),
        ("audiotok tokenize //sig/0", [f"//sig/{SIG}"]),
        ("audiotok plan --f", ["--format"]),
        ("audiotok plan --format j", ["json"]),
        ("dora gr", ["grid"]),
        ("dora grid s", ["sweep"]),
        ("dora grid --ret", ["--retry"]),
        ("dora info -f 0", [SIG]),
        ("dora run --from_sig ", [SIG]),
    ],
)
def test_a_word_is_completed(line: str, expected: list[str], script: Path, folder: Path) -> None:
    assert complete(script, folder, line) == expected


def test_the_grids_of_the_library_are_offered_in_its_repository(script: Path) -> None:
    offered = complete(script, ROOT, "audiotok plan compression.encodec_mmd_")
    assert offered == ["compression.encodec_mmd_32khz", "compression.encodec_mmd_demo"]


def test_a_profile_that_is_not_there_completes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUDIOTOK_CLUSTER", "nowhere")
    assert main(["completion", "signatures"]) == 2 and capsys.readouterr().out == ""


@pytest.mark.parametrize("names", ["grids", "results", "signatures", "codecs"])
def test_names_are_read_without_anything_slow_and_nothing_is_written(names: str, folder: Path) -> None:
    code = (
        f"import sys; from audiotok.cli import main; main(['completion', '{names}']); "
        "print(sorted({'torch', 'dora', 'hydra', 'pandas', 'numpy', 'shtab'} & set(sys.modules)))"
    )
    before = sorted(folder.rglob("*"))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = sp.run([sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and len(done.stdout.splitlines()) == 2 + (names == "codecs")
    assert sorted(folder.rglob("*")) == before


def test_zsh_gets_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    told = capsys.readouterr().out
    assert "#compdef audiotok" in told and "#compdef dora" in told
    kinds = {"grids", "results", "signatures", "codecs"}
    assert {name for name in kinds if f"($(audiotok completion {name} 2>" in told} == kinds

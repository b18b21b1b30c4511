"""Where our launchers plug into Dora."""

import os
import re
import signal
import subprocess as sp
import sys
from functools import partial
from pathlib import Path

import pytest

from audiotok.files import UnreadableError
from audiotok.launchers.dora_patches import _is_dora_command
from audiotok.launchers.table import load_history
from tests.fakes.tiny import FAKES, REPOSITORY, TinyProject


def test_a_library_keeps_its_own_except_hook_and_gets_our_names() -> None:
    code = (
        "import sys; before = sys.excepthook\n"
        "from tinyxp.train import main\n"
        "import dora.grid, dora.info\n"
        "assert sys.excepthook is before\n"
        "assert type(main.get_slurm_config()).__name__ == 'Profile'\n"
        "print(dora.grid.Shepherd.__name__, dora.info.Shepherd.__name__, dora.grid.run_grid.__module__)"
    )
    path = f"{FAKES / 'torch_stub'}:{FAKES / 'tinyproject'}:{REPOSITORY}"
    environ = {"PYTHONPATH": path, "AUDIOTOK_LAUNCHER": "local", "PATH": "/usr/bin:/bin"}
    process = sp.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "GridShepherd InfoShepherd audiotok.launchers.grid\n"), (
        process.stderr
    )
    assert not _is_dora_command()


def test_a_launcher_that_is_not_there_is_one_line(slurm_project: TinyProject) -> None:
    said = slurm_project.dora("info", "index=1", code=2, environ={"AUDIOTOK_LAUNCHER": "kubernetes"})
    assert said.strip().splitlines()[-1].startswith("error: AUDIOTOK_LAUNCHER='kubernetes'")


def test_info_tells_what_has_become_of_the_configuration(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "index=1", "seconds=7")
    folder = slurm_project.experiment(index=1)
    assert "has changed" not in slurm_project.dora("info", "-f", folder.name)
    config = slurm_project.folder / "tinyxp" / "config" / "config.yaml"
    config.write_text(re.sub(r"^epochs: \d+", "epochs: 99", config.read_text(), flags=re.MULTILINE))
    for arguments in (("-f", folder.name), ("-j", "101")):
        said = slurm_project.dora("info", *arguments)
        assert "Configuration has changed since: epochs: 2 → 99" in said
        assert f"Folder is {folder}" in said and "sid=101" in said


@pytest.mark.parametrize(
    ("end", "kind", "code", "said"),
    [
        ("well", "COMPLETED", 0, ""),
        ("mistake", "FAILED", 2, ": no audio in /nowhere.*; when that is corrected, the same command resumes"),
        ("exception", "FAILED", 1, ": RuntimeError: told to fail; the same command resumes"),
        ("diverge", "DIVERGED", 3, ": loss is nan in epoch 2"),
    ],
)
def test_a_run_by_hand_says_where_it_is_and_how_it_ended(
    project: TinyProject, end: str, kind: str, code: int, said: str
) -> None:
    command = ("index=1", f"end={end}")
    assert "State is none: it was neither submitted nor run here" in project.dora("info", *command)
    lines = project.dora("run", *command, code=code).splitlines()
    folder = project.experiment(index=1)
    assert f"experiment {folder.name} runs in outputs/xps/{folder.name}" in lines
    (last,) = [line for line in lines if re.match(rf"experiment {folder.name} [A-Z]", line)]
    assert re.fullmatch(rf"experiment {folder.name} {kind} in outputs/xps/{folder.name}{said}", last)
    told = project.dora("info", "-f", folder.name)
    assert re.search(rf"State is {kind}( of a run by hand: |\n)", told) and f"Folder is {folder}" in told
    assert (f"Log of that run is {folder}/train.log" in told) == bool(code)


def test_other_ranks_are_silent(project: TinyProject) -> None:
    said = project.dora("run", "index=1", environ={"RANK": "1", "WORLD_SIZE": "1", "LOCAL_RANK": "1"})
    assert "experiment" not in said and "index 1 here" in said


def test_an_interrupted_run_says_that_it_resumes(project: TinyProject) -> None:
    command = project.start("run", "index=1", "seconds=8")
    assert command.stdout is not None
    assert any("index 1 here" in line for line in command.stdout)
    command.send_signal(signal.SIGTERM)
    said = command.stdout.read()
    assert command.wait(60) == 143 and "INTERRUPTED in outputs/xps/" in said and "the same command resumes" in said


def test_metrics_of_a_damaged_history_are_one_line(project: TinyProject) -> None:
    project.dora("run", "index=1")
    folder = project.experiment(index=1)
    info = ("info", "-f", folder.name, "-m")
    assert re.search(r"Metrics\[\d+\]: last epoch\n", project.dora(*info))
    (folder / "history.json").unlink()
    assert "Metrics[0]: " in project.dora(*info)
    os.mkfifo(folder / "history.json")
    last = project.dora(*info, code=2).strip().splitlines()[-1]
    assert re.fullmatch(r"error: .*history.json cannot be read: a pipe or a device, not a file\.", last)


@pytest.mark.parametrize("content", ['[{"train": ', "{}", "[" * 100_000, "", "[" * 500 + "]" * 500])
def test_a_damaged_history_is_an_error_and_an_empty_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(UnreadableError, match=r"history.json cannot be read"):
        load_history(tmp_path / "history.json")


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_pipe_gets_neither_escape_codes_nor_countdowns(project: TinyProject, environ: dict[str, str]) -> None:
    run = partial(project.dora, environ={"LANG": "C.UTF-8", **environ})
    said = run("grid", "fleet", "--interval", "0.02") + run("grid", "fleet", "--dry_run")
    said += run("run", "index=9") + run("info", "index=9") + run("grid", "nothing", code=2)
    assert "\033" not in said and "\r" not in said and "\\u" not in said
    if "PYTHONIOENCODING" in environ:
        assert said.isascii() and "4 experiments: 3 COMPLETED, 1 FAILED - 100 % done" in said


def test_flags_of_the_command_line_reach_the_script(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "-g", "2", "-p", "fast", "index=1")
    script = (Path(slurm_project.environ["FAKE_SLURM"]) / "script").read_text()
    assert "#SBATCH --gres=gpu:2\n" in script and "#SBATCH --partition=fast\n" in script
    assert "#SBATCH --array" not in script

"""Where our launchers plug into Dora."""

import re
import subprocess as sp
import sys
from pathlib import Path

from audiotok.launchers.dora_patches import _is_dora_command
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


def test_flags_of_the_command_line_reach_the_script(slurm_project: TinyProject) -> None:
    slurm_project.dora("launch", "--no_tail", "-g", "2", "-p", "fast", "index=1")
    script = (Path(slurm_project.environ["FAKE_SLURM"]) / "script").read_text()
    assert "#SBATCH --gres=gpu:2\n" in script and "#SBATCH --partition=fast\n" in script
    assert "#SBATCH --array" not in script

"""The tiny project on the local launcher, and on a SLURM made of fakes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tiny import FAKES, TinyProject


@pytest.fixture
def project(tmp_path: Path) -> Iterator[TinyProject]:
    tiny = TinyProject(
        tmp_path / "project",
        {
            "AUDIOTOK_LAUNCHER": "local",
            "AUDIOTOK_LOCAL_SLOTS": "2",
            "AUDIOTOK_LOCAL_GRACE_S": "0.5",
            "CUDA_VISIBLE_DEVICES": "",
            "AUDIOTOK_LOCAL_GPU_LOCKS": str(tmp_path / "gpus"),
        },
    )
    yield tiny
    tiny.close()


@pytest.fixture
def slurm_project(tmp_path: Path) -> TinyProject:
    """The tiny project where all SLURM commands are fakes; see tests/fakes/slurm_command.sh."""
    commands, answers = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    answers.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "sacct", "scontrol"):
        (commands / name).symlink_to(FAKES / "slurm_command.sh")
    (answers / "sbatch").write_text("Submitted batch job 101\n")
    (answers / "waits").touch()
    path = os.pathsep.join([str(commands), os.environ["PATH"]])
    return TinyProject(tmp_path / "project", {"PATH": path, "FAKE_SLURM": str(answers)})

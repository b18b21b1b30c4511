"""Claims on GPUs: one job a GPU on this machine, whichever folder or user it is of."""

import os
import subprocess as sp
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiotok.launchers.local import claims
from tests.fakes.tiny import REPOSITORY, TinyProject

LISTING = "GPU 0: H100 (UUID: GPU-aa11)\n  MIG 1g (UUID: MIG-x)\nGPU 1: H100 (UUID: GPU-aa22)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(claims.FOLDER_VARIABLE, str(tmp_path / "gpus"))
    return tmp_path / "gpus"


def holder(gpu: str, who: str) -> "sp.Popen[str]":
    """Another process that takes a GPU and keeps it until it is killed."""
    code = (
        "import sys; from audiotok.launchers.local.claims import take; print(take(*sys.argv[1:]), flush=True); input()"
    )
    command = [sys.executable, "-c", code, gpu, who]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return sp.Popen(command, env=environ, stdin=sp.PIPE, stdout=sp.PIPE, text=True)


def answer(process: "sp.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_number_and_a_uuid_of_one_gpu_are_one_claim() -> None:
    visible = ["0", "1", "GPU-aa2", "GPU-aa", "MIG-x", "7"]
    found = claims.identify(visible, LISTING)
    assert list(found.values()) == ["GPU-aa11", "GPU-aa22", "GPU-aa22", "GPU-aa", "MIG-x", "7"]
    assert claims.identify(["0"], "") == {"0": "0"}


def test_a_gpu_has_one_holder_and_is_free_when_that_dies(folder: Path) -> None:
    gpus = {"0": "GPU-a/../b"}
    assert claims.holders(gpus) == {} and not folder.exists()  # looking makes nothing
    first = holder(gpus["0"], "ada@here, job L1 of /a\n")
    assert answer(first) == "True"
    second = holder(gpus["0"], "bob@here")
    assert answer(second) == "False"
    assert claims.holders(gpus) == {"0": "ada@here, job L1 of /a"}
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [("GPU-a____b", 0o666)]
    for process in (first, second):
        process.kill()
        process.communicate()
    assert claims.holders(gpus) == {}
    third = holder(gpus["0"], "bob@here")
    assert answer(third) == "True" and claims.holders(gpus) == {"0": "bob@here"}
    third.communicate("\n")


def test_nothing_of_ours_is_written_through_links_of_others(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder.mkdir()
    (folder / "GPU-a").symlink_to(mine)
    (folder / "GPU-b").hardlink_to(mine)
    with pytest.raises(OSError, match="GPU-a"):
        claims.take("GPU-a", "ada@here")
    assert "GPU-a" in claims.holders({"0": "GPU-a"})["0"]  # so a job waits, and the reason shows
    process = holder("GPU-b", "ada@here")
    assert answer(process) == "True"
    process.communicate("\n")
    assert mine.read_text() == "mine"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="is a link"):
        claims.take("GPU-c", "ada@here")


@pytest.fixture
def other(project: TinyProject, tmp_path: Path) -> Iterator[TinyProject]:
    """A second results folder on this machine, which names the same GPU by its UUID."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "nvidia-smi").write_text(f"#!/bin/sh\necho '{LISTING}'\n")
    (commands / "nvidia-smi").chmod(0o755)
    project.environ |= {"PATH": os.pathsep.join([str(commands), os.environ["PATH"]]), "AUDIOTOK_LOCAL_SLOTS": ""}
    tiny = TinyProject(tmp_path / "other", {**project.environ, "TINY_PROJECT": str(tmp_path / "other")})
    tiny.environ |= {name: project.environ[name] for name in project.environ if name.startswith("AUDIOTOK")}
    project.environ["CUDA_VISIBLE_DEVICES"] = "0"
    tiny.environ["CUDA_VISIBLE_DEVICES"] = "GPU-aa1"
    yield tiny
    tiny.close()


@pytest.mark.slow
def test_two_results_folders_share_a_gpu_one_after_the_other(project: TinyProject, other: TinyProject) -> None:
    project.dora("launch", "--no_tail", "-g", "1", "index=1", "seconds=600")
    project.wait(lambda: project.book() == {"L1": "RUNNING"})
    other.dora("launch", "--no_tail", "-g", "1", "index=2", "seconds=0.1")
    said = other.dora("info", "-f", other.experiment(index=2).name)
    assert f"state=PENDING (waits for GPUs in use: GPU-aa1 by {project.job(index=1)['user']}, job L1 of " in said
    assert f"{project.outputs})" in said
    other.dora("launch", "--no_tail", "index=3", "seconds=0.1")  # without GPU, but behind that one
    project.dora("launch", "-C", "index=1", "seconds=600")
    other.settle()
    assert other.book() == {"L1": "COMPLETED", "L2": "COMPLETED"}
    (first, _) = other.spans()
    assert first["environ"]["CUDA_VISIBLE_DEVICES"] == "GPU-aa1"

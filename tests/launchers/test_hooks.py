"""Where our launchers plug into Dora."""

import pickle
import subprocess as sp
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from audiotok.errors import ConfigError
from launchers.hooks import detect, get_explorer, is_dora_command, list_grids
from launchers.local import LocalShepherd
from tests.fakes.tiny import FAKES, REPOSITORY


def test_slurm_is_found_by_sbatch_on_path(tmp_path: Path) -> None:
    assert detect({"PATH": str(tmp_path)}) == "local"
    (tmp_path / "sbatch").touch(mode=0o755)
    assert detect({"PATH": str(tmp_path)}) == "slurm"
    assert detect({"PATH": str(tmp_path), "AUDIOTOK_LAUNCHER": "local"}) == "local"
    assert detect({"PATH": "", "AUDIOTOK_LAUNCHER": "slurm"}) == "slurm"
    with pytest.raises(ConfigError, match="choose one of: local, slurm"):
        detect({"PATH": "", "AUDIOTOK_LAUNCHER": "kubernetes"})


def test_grids_are_listed_by_their_dotted_names(tmp_path: Path) -> None:
    for name in ("__init__.py", "b.py", "_shared.py", "deep/__init__.py", "deep/a.py", "deep/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_grids(tmp_path) == ["b", "deep.a"]


def test_an_unknown_grid_lists_those_there_are() -> None:
    main = SimpleNamespace(dora=SimpleNamespace(grid_package="tests.fakes.tinyproject.tinyxp.grids"), package="x")
    with pytest.raises(ConfigError, match="choose one of: fleet, slow"):
        get_explorer(SimpleNamespace(grid="nope"), cast(Any, main))


def test_a_library_keeps_its_own_except_hook() -> None:
    code = (
        "import sys; before = sys.excepthook\n"
        "from tinyxp.train import main\n"
        "import dora.grid\n"
        "assert sys.excepthook is before\n"
        "print(dora.grid.Shepherd.__name__)"
    )
    path = f"{FAKES / 'torch_stub'}:{FAKES / 'tinyproject'}:{REPOSITORY}"
    environ = {"PYTHONPATH": path, "AUDIOTOK_LAUNCHER": "local", "PATH": "/usr/bin:/bin"}
    process = sp.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "LocalShepherd\n"), process.stderr
    assert not is_dora_command()


def test_the_shepherd_can_be_pickled(tmp_path: Path) -> None:
    dora = SimpleNamespace(dir=tmp_path, shep=SimpleNamespace(by_id="by_id", orphans="orphans", arrays="arrays"))
    shepherd = LocalShepherd(cast(Any, SimpleNamespace(dora=dora)))
    assert pickle.loads(pickle.dumps(shepherd)).store.root == tmp_path / "local"


def test_supervisor_and_runner_import_neither_torch_nor_dora() -> None:
    code = "import sys, launchers.supervisor, launchers.runner; print({'torch', 'dora', 'submitit'} & set(sys.modules))"
    process = sp.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"

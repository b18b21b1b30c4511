"""Results folders made by hand, in Dora's layout."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

GRID = "compression.encodec_mmd_demo"

MakeExperiment = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty results folder."""
    path = tmp_path / "outputs"
    (path / "grids" / GRID).mkdir(parents=True)
    (path / "xps").mkdir()
    return path


@pytest.fixture
def make_experiment(root: Path) -> MakeExperiment:
    """Make one experiment of a grid, as Dora and the launchers leave it."""

    def make(
        sig: str,
        argv: Sequence[str] = (),
        history: Sequence[Mapping[str, Any]] | str | None = None,
        *,
        status: Mapping[str, Any] | str | None = None,
        job: Mapping[str, Any] | None = None,
        config: str | None = None,
        choices: Mapping[str, str] | None = None,
        link: str | None = None,
    ) -> Path:
        folder = root / "xps" / sig
        folder.mkdir()
        (folder / ".argv.json").write_text(json.dumps(list(argv)))
        for name, content in (("history.json", history), ("status.json", status), ("job.json", job)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / name).write_text(text)
        if config is not None:
            (folder / "frozen.json").write_text(json.dumps({"cfg_yaml": config, "choices": dict(choices or {})}))
        (folder / "job.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # must never be opened
        (root / "grids" / GRID / sig).symlink_to(link or folder)
        return folder

    return make


@pytest.fixture
def rest(root: Path) -> Callable[[], None]:
    """Make all files an hour older, so that they may go into the cache."""

    def age() -> None:
        for path in (root / "xps").rglob("*"):
            found = path.stat()
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 3600 * 10**9))

    return age


@pytest.fixture
def done() -> dict[str, Any]:
    """Status of a job that ended well."""
    now = time.time()
    return {
        "state": "COMPLETED",
        "reason": "",
        "launcher": "slurm",
        "job_id": "7",
        "host": "n1",
        "pid": os.getpid(),
        "started": now - 100,
        "updated": now - 40,
        "ended": now - 40,
        "epoch": 2,
        "epochs": 2,
    }

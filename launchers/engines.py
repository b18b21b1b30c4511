"""Which engines there are for the jobs of a Dora folder, and which of them this machine submits with."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from dora.main import DecoratedMain

from audiotok.errors import ConfigError
from audiotok.launchers.engine import Engine, Job
from audiotok.launchers.local.engine import LocalEngine
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.slurm.engine import SlurmEngine
from audiotok.launchers.slurm.submissions import SubmissionBook

LAUNCHER_VARIABLE = "AUDIOTOK_LAUNCHER"
LAUNCHERS = ("local", "slurm")


def detect(environ: Mapping[str, str]) -> str:
    """Return the launcher for this machine: `local` or `slurm`.

    Raises:
        ConfigError: if AUDIOTOK_LAUNCHER holds another word.
    """
    asked = environ.get(LAUNCHER_VARIABLE, "").strip()
    if not asked:
        return "slurm" if shutil.which("sbatch", path=environ.get("PATH")) else "local"
    if asked not in LAUNCHERS:
        raise ConfigError(f"{LAUNCHER_VARIABLE}={asked!r} in the environment; choose one of: {', '.join(LAUNCHERS)}.")
    return asked


def make_engines(main: DecoratedMain, book: SubmissionBook, lock: SubmitLock) -> dict[str, Engine]:
    """Both engines of a Dora folder."""
    return {
        "slurm": SlurmEngine(main.name, book, lock),
        "local": LocalEngine(Path(main.dora.dir) / "local"),
    }


def by_engine(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Jobs by the name of the engine that has them."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.engine, []).append(job)
    return found

"""What `audiotok doctor` asks of file systems: can results be written, and is the data there."""

import fcntl
import json
import os
import shutil
import tempfile
from gzip import open as open_gzip
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from audiotok.cluster import dataset_paths, map_path
from audiotok.errors import ConfigError
from audiotok.launchers.doctor.check import Check, fail, ok, warn

ROOMY_GB, CRAMPED_GB = 50.0, 2.0
SPLITS = ("train", "valid", "evaluate", "generate")


def check_output(folder: Path, *, shared: bool) -> Check:
    """Whether results can be written and locked, and how much room there is; leaves nothing behind.

    Args:
        folder: the results folder; it need not exist yet.
        shared: jobs run on other machines, which must see it.
    """
    here = next(path for path in (folder, *folder.parents) if path.exists())
    advice = "set output_dir in the profile, or AUDIOTOK_OUTPUT_DIR"
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=here) as first, Path(first.name).open("rb") as second:
            first.write(b"\0" * 4096)
            first.flush()
            locks = _locks_hold(first.fileno(), second.fileno())
    except OSError as error:
        return fail("output", f"{folder}: cannot write in {here} ({error.strerror})", advice)
    free = shutil.disk_usage(here).free / 1e9
    found = f"{folder}{'' if here == folder else ' (will be made)'}, {free:.0f} GB free"
    if not locks:
        return fail("output", f"{found}, but flock does not work there", f"{advice}, on a file system with locks")
    if free < CRAMPED_GB:
        return fail("output", found, f"make room, or {advice}")
    if shared and here.is_relative_to(tempfile.gettempdir()):
        return warn("output", f"{found}, below {tempfile.gettempdir()}", f"nodes will not see it: {advice}")
    if free < ROOMY_GB:
        return warn("output", found, f"a grid may fill it: make room, or {advice}")
    return ok("output", f"{found}, locks work")


def check_data(config: DictConfig) -> Check:
    """Whether the manifests that the configuration names are here, and the first track of each."""
    asked = {split: config.datasource[split] for split in SPLITS if config.datasource.get(split)}
    if not asked:
        return warn(
            "data",
            "the configuration names no manifests",
            "say which experiment to look at, such as `audiotok doctor solver=compression/demo`",
        )
    try:
        paths = dataset_paths(os.environ)
    except ConfigError as error:
        return fail("data", str(error), "correct dataset_paths in the profile")
    problems, counts = [], 0
    for split, path in asked.items():
        problem = _manifest_problem(map_path(Path(path), paths))
        problems += [f"{split}: {problem}"] if problem else []
        counts += not problem
    if problems:
        return fail(
            "data",
            "; ".join(problems),
            "write them with `audiotok data prepare` (`audiotok data demo` for the demo), or say with dataset_paths in "
            "the profile where they lie here",
        )
    return ok("data", f"{', '.join(asked)}: {counts} manifests and their first tracks")


def _locks_hold(first: int, second: int) -> bool:
    """Tell whether a lock on one opening of a file keeps out the other."""
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _manifest_problem(path: Path) -> str:
    names = (path / "data.jsonl.gz", path / "data.jsonl") if path.is_dir() else (path,)
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        return f"no manifest {path}"
    try:
        with open_gzip(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            first: Any = json.loads(next(lines))["path"]
        track = (
            file.parent / map_path(Path(first), dataset_paths(os.environ))
            if first.startswith("/")
            else file.parent / first
        )
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        return f"{file} cannot be read ({type(error).__name__}: {error})"
    return "" if track.is_file() else f"{file} is here, its first track {track} is not"

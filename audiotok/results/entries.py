"""What the cache knows of one experiment besides its numbers: parts, each with the marks of the files it was read from.

An entry is a dict that JSON can hold: {key, history, argv, state, config}. A part counts as long as its files have the
size and time that they had just before they were read.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiotok.results.files import Mark, encodable, mark, read_json_file
from audiotok.results.history import StageTable, read_tables
from audiotok.results.read import SavedConfig, hashable
from audiotok.status import JOB_FILE, STATUS_FILE, TASK_FILE, experiment_state, read_json

REST_S = 30.0  # a file that changed less than that ago may be changing still, and is not worth keeping
HISTORY_FILES = ("history.json",)
ARGV_FILES = (".argv.json",)
STATE_FILES = (STATUS_FILE, JOB_FILE, TASK_FILE)
CONFIG_FILES = SavedConfig.FILES
_SETTLED = frozenset({"COMPLETED", "FAILED", "DIVERGED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"})
"""States that the files tell by themselves; others depend on the time, on a lock or on a scheduler."""

Part = dict[str, Any]
Entry = dict[str, Any]


def marks(folder: str, files: Iterable[str]) -> list[Mark]:
    """Marks of some files of an experiment folder."""
    return [mark(f"{folder}/{name}") for name in files]


def is_fresh(part: Part | None, folder: str, files: Iterable[str]) -> bool:
    """Tell whether the files are as they were when the part was read."""
    return part is not None and part["marks"] == marks(folder, files)


def worth_keeping(part: Part) -> bool:
    """Tell whether a part may go into the cache: none of its files is changing, and it will stay as it is."""
    limit = (time.time() - REST_S) * 1e9
    return part.get("settled", True) and all(found is None or found[1] < limit for found in part["marks"])


def read_history_part(folder: str) -> tuple[Part, list[StageTable]]:
    """Read `history.json`."""
    part: Part = {"marks": marks(folder, HISTORY_FILES), "problems": []}
    part["epochs"], tables = read_tables(Path(folder, *HISTORY_FILES), part["problems"])
    part["last_epoch"] = max((int(table.epochs[-1]) for table in tables), default=0)
    part["duration"] = _measured_duration(tables)
    return part, tables


def read_argv_part(folder: str) -> Part:
    """Read the overrides; they are parsed each time, which is faster than to keep them parsed."""
    part: Part = {"marks": marks(folder, ARGV_FILES), "problems": []}
    argv = read_json_file(Path(folder, *ARGV_FILES), list, part["problems"])
    if argv is None and not part["problems"]:
        part["problems"].append(f"{ARGV_FILES[0]} is missing: parameters unknown")
    part["argv"] = [item for item in argv or [] if isinstance(item, str)]
    return part


def read_state_part(folder: str) -> Part:
    """Read what the job says, and judge it."""
    part: Part = {"marks": marks(folder, STATE_FILES), "problems": []}
    contents = {}
    for name, found in zip(STATE_FILES, part["marks"], strict=True):
        contents[name] = None if found is None else read_json(Path(folder, name))
        if found is not None and contents[name] is None:
            part["problems"].append(f"{name} cannot be read")
    verdict = experiment_state(Path(folder)) if any(part["marks"]) else None
    state, reason = verdict or ("NOT_STARTED", "")
    part |= {"state": encodable(state), "reason": encodable(reason), "status": contents[STATUS_FILE] or {}}
    profile = (contents[JOB_FILE] or {}).get("profile")
    part["profile_gpus"] = profile.get("gpus") if isinstance(profile, dict) else None
    part["settled"] = state in _SETTLED
    return part


def read_config_part(folder: str, keys: Iterable[str]) -> Part:
    """Read some values of the configuration, each as JSON text, which keeps any number as it is."""
    part: Part = {"marks": marks(folder, CONFIG_FILES)}
    saved = SavedConfig(Path(folder))
    part["values"] = {key: json.dumps(hashable(saved.get(key))) for key in keys}
    part["problems"] = saved.problems
    return part


def _measured_duration(tables: Sequence[StageTable]) -> float | None:
    """Seconds of all stages of all epochs; None where none was measured."""
    found = [table.values[:, table.names.index("duration")] for table in tables if "duration" in table.names]
    seconds = np.concatenate(found) if found else np.empty(0)
    seconds = seconds[np.isfinite(seconds)]
    return math.fsum(seconds) if len(seconds) else None

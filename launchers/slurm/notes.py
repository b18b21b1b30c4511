"""What is noted in the `job.json` of a job after it was submitted: who cancelled it, SLURM's last word on it.

A later job of the experiment has a `job.json` of its own in the same place: nothing is noted there about the earlier.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiotok.status import JOB_FILE, State, Verdict, read_json, write_json

logger = logging.getLogger(__name__)


def note(folder: Path, job_id: str, **notes: Any) -> None:
    """Note something about a job in the folder of its experiment."""
    content = _read(folder, job_id)
    if content:
        _try_to_write(folder / JOB_FILE, {**content, **notes})


def erase(folder: Path, job_id: str, *names: str) -> None:
    """Take notes about a job back."""
    content = _read(folder, job_id)
    if not content.keys().isdisjoint(names):
        _try_to_write(folder / JOB_FILE, {name: value for name, value in content.items() if name not in names})


def noted_verdict(content: Mapping[str, Any]) -> Verdict | None:
    """The verdict that stands in a `job.json`."""
    verdict = content.get("verdict")
    if not isinstance(verdict, dict) or not verdict.get("state"):
        return None
    return Verdict(State.of(verdict["state"]), str(verdict.get("reason") or ""))


def _read(folder: Path, job_id: str) -> dict[str, Any]:
    """The `job.json` of a job, empty if a later job has taken its place."""
    content = read_json(folder / JOB_FILE) or {}
    return content if content.get("job_id") == job_id else {}


def _try_to_write(path: Path, content: Mapping[str, Any]) -> None:
    """Write what is good to have: a full disk must not keep anybody from stopping jobs or seeing states."""
    try:
        write_json(path, content, sync=False)
    except OSError as error:
        logger.warning("could not write %s: %s", path, error)

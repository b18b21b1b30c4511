"""Where a job says what it does: the three files in the folder of an experiment."""

from pathlib import Path
from typing import Any

from audiotok.files import read_json

STATUS_FILE = "status.json"
JOB_FILE = "job.json"
TASK_FILE = "task.json"


def read_status(folder: Path) -> dict[str, Any] | None:
    """Read the `status.json` of an experiment folder; None if it is missing or damaged."""
    return read_json(Path(folder) / STATUS_FILE)

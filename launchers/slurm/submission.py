"""One job or array that was sent to SLURM, as its folder tells it. Standard library only: read inside the job too."""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiotok.status import read_json

TASKS_FILE, SUBMISSION_FILE = "tasks.jsonl", "submission.json"
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass
class Submission:
    """One job or array.

    Attributes:
        folder: its folder, named by its token.
        content: what `submission.json` holds.
        tasks: what `tasks.jsonl` holds; a task's place is its index in the array.
    """

    folder: Path
    content: dict[str, Any]
    tasks: list[dict[str, Any]] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "Submission | None":
        """What stands in a folder, None if there is no submission or it is damaged."""
        content = read_json(folder / SUBMISSION_FILE)
        try:
            tasks = [json.loads(line) for line in (folder / TASKS_FILE).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            return None
        return None if content is None or not tasks else cls(folder, content, tasks)

    @property
    def token(self) -> str:
        """Its name, also in SLURM."""
        return self.folder.name

    @property
    def job_id(self) -> str | None:
        """SLURM's id of the job or of the whole array; None as long as it is not known."""
        return self.content.get("job_id")

    @property
    def submitted(self) -> float:
        """When it was about to be sent, in unix seconds."""
        return float(self.content.get("time") or 0.0)

    @property
    def recorded(self) -> float:
        """When SLURM's answer was written down, in unix seconds; 0 if it was not."""
        return float(self.content.get("recorded") or 0.0)

    def task_ids(self) -> list[str]:
        """SLURM's ids of its tasks, in their order; only once the job id is known."""
        if len(self.tasks) == 1 and not self.content.get("array"):
            return [str(self.job_id)]
        return [f"{self.job_id}_{index}" for index in range(len(self.tasks))]

    def log(self, task_id: str) -> Path:
        """File that the output of a task's first process goes to."""
        return self.folder / f"{task_id}_0_log.out"


def make_token(package: str, sigs: Sequence[str]) -> str:
    """Name of a submission: what it is of, and that it is this one."""
    digest = hashlib.sha1(" ".join(sorted(sigs)).encode()).hexdigest()[:8]
    moment = _base36(time.time_ns() // 1_000_000) + secrets.token_hex(2)
    return f"{_UNFIT.sub('-', package)}_{digest}_{moment}"


def _base36(number: int) -> str:
    """A number in the digits 0-9a-z."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"

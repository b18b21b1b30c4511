"""The book of what is sent to SLURM: a folder for each job or array under `<dora.dir>/submissions`, written before.

```
submissions/<token>/tasks.jsonl       what task i runs, one line each; read by `launchers.slurm.inside` inside the job
submissions/<token>/submission.json   user, time, profile; `job_id` once SLURM has answered
submissions/<token>/…                 the script and the logs of its tasks
submissions/.open/<token>             there until the end of every task is recorded
submissions/.users/<uid>              the users whose jobs a query must list
```

The token is also the name of the job in SLURM. A command that dies between sbatch and recording its answer leaves an
open submission without `job_id`; the next command adopts the job of that name. Standard library only, as jobs read it.
"""

import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiotok.errors import LaunchError
from audiotok.files import read_json, write_json, write_symlink, write_text
from audiotok.launchers.lock import user_and_host
from audiotok.status import JOB_FILE
from audiotok.text import number_in

if TYPE_CHECKING:  # these need Dora and OmegaConf, which a job must not import
    from audiotok.launchers.engine import Job, Task
    from audiotok.launchers.profile import Profile

TASKS_FILE, SUBMISSION_FILE = "tasks.jsonl", "submission.json"


@dataclass
class Submission:
    """One job or array."""

    folder: Path  # named by its token
    content: dict[str, Any]  # what `submission.json` holds
    tasks: list[dict[str, Any]] = field(repr=False)  # what `tasks.jsonl` holds, by index in the array

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
        """When SLURM's answer was recorded, in unix seconds; 0 if it was not."""
        return float(self.content.get("recorded") or 0.0)


class SubmissionBook:
    """All submissions of one Dora folder; what writes is called under the submission lock.

    In it, `xps` is the name of the folder of experiments, `by_id` that of the links to them from job ids.
    """

    def __init__(self, dora_dir: Path, *, xps: str = "xps", by_id: str = "by_id") -> None:
        self.dora_dir = Path(dora_dir).absolute()
        self.root = self.dora_dir / "submissions"
        self.xps, self.by_id = xps, by_id
        self._known: dict[str, Submission] = {}

    def experiment(self, task: Mapping[str, Any]) -> Path:
        """Folder of the experiment of a task, wherever the Dora folder was moved to."""
        return self.dora_dir / self.xps / str(task["sig"])

    def experiments(self, submission: Submission) -> dict[str, Path]:
        """Folders of its experiments by SLURM's ids of their tasks, in order; only once the job id is known."""
        ids = [str(submission.job_id)]
        if len(submission.tasks) > 1 or submission.content.get("array"):
            ids = [f"{submission.job_id}_{index}" for index in range(len(submission.tasks))]
        return dict(zip(ids, map(self.experiment, submission.tasks), strict=True))

    def has_open(self) -> bool:
        """True if there is an open submission."""
        return bool(_names(self.root / ".open"))

    def open(self) -> list[Submission]:
        """Submissions with a task whose end is not recorded yet, oldest first; damaged ones are closed."""
        names = set(_names(self.root / ".open"))
        # Only what is recorded does not change any more.
        self._known = {token: one for token, one in self._known.items() if one.recorded and token in names}
        for token in names - self._known.keys():
            submission = self.read(token)
            if submission is None:  # it is whole before it is opened and sent, so nothing of it was
                (self.root / ".open" / token).unlink(missing_ok=True)
            else:
                self._known[token] = submission
        return sorted(self._known.values(), key=lambda one: one.submitted)

    def read(self, token: str) -> Submission | None:
        """A submission by its token, None if there is none or it is damaged."""
        folder = self.root / token
        content = read_json(folder / SUBMISSION_FILE)
        try:
            tasks = [json.loads(line) for line in (folder / TASKS_FILE).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            return None
        return None if content is None or not tasks else Submission(folder, content, tasks)

    def uids(self) -> list[str]:
        """Ids of the users who have submitted from this folder, and of this one."""
        return sorted({str(os.getuid()), *_names(self.root / ".users")})

    def prepare(self, package: str, tasks: "Sequence[Task]", profile: "Profile") -> Submission:
        """Write what is about to be sent, safe against a power cut.

        Raises:
            OSError: if the disk refuses; nothing may be sent then.
        """
        token = _make_token(package, [task.sig for task in tasks])
        lines: list[dict[str, Any]] = [
            {"sig": t.sig, "name": t.name, "folder": str(t.folder.absolute()), "cwd": str(t.cwd), "command": t.command}
            | {"python": sys.executable}  # ours, which a job in a container replaces in the command
            for t in tasks
        ]
        content: dict[str, Any] = {"token": token, "user": user_and_host(), "uid": os.getuid(), "time": time.time()}
        content |= {"count": len(tasks), "array": len(tasks) > 1, "mem_factor": tasks[0].mem_factor}
        content |= {"profile": asdict(profile), "job_id": None, "recorded": None}
        submission = Submission(self.root / token, content, lines)
        submission.folder.mkdir(parents=True)
        write_text(submission.folder / TASKS_FILE, "".join(json.dumps(line) + "\n" for line in lines), sync=True)
        write_json(submission.folder / SUBMISSION_FILE, content)
        _touch(self.root / ".users" / str(os.getuid()))
        _touch(self.root / ".open" / token)
        self._known[token] = submission
        return submission

    def record(self, submission: Submission, job_id: str, *, adopted: bool = False) -> "list[Job]":
        """Record SLURM's answer, first here, then in every experiment; may be repeated after it was cut short.

        Args:
            submission: what was sent.
            job_id: SLURM's id of the job or of the whole array.
            adopted: it was sent by a command that has died.

        Raises:
            LaunchError: if the disk refuses; the job is then adopted later.
        """
        submission.content["job_id"] = job_id
        try:  # the id first: if this is cut short, the next command completes the rest
            write_json(submission.folder / SUBMISSION_FILE, submission.content)
            submitted = submission.submitted if adopted else time.time()
            jobs = list(self._record_tasks(submission, submitted))
            submission.content["recorded"] = submitted
            write_json(submission.folder / SUBMISSION_FILE, submission.content, sync=False)
        except OSError as error:
            raise LaunchError(
                f"job {job_id} is submitted but cannot be written down ({error}); make room: the next command finds it."
            ) from error
        return jobs

    def abandon(self, submission: Submission, reason: str) -> None:
        """Close a submission that SLURM does not have."""
        submission.content["abandoned"] = reason
        self.settle(submission)

    def settle(self, submission: Submission) -> None:
        """Close a submission of which everything is recorded."""
        submission.content["settled"] = time.time()
        write_json(submission.folder / SUBMISSION_FILE, submission.content, sync=False)
        (self.root / ".open" / submission.token).unlink(missing_ok=True)
        self._known.pop(submission.token, None)

    def reopen(self, token: str) -> None:
        """Open a submission again, as a task of it was requeued."""
        if (self.root / token / SUBMISSION_FILE).is_file():
            _touch(self.root / ".open" / token)

    def _record_tasks(self, submission: Submission, submitted: float) -> "Iterator[Job]":
        from audiotok.launchers.engine import Job  # here, as it needs Dora, which a job must not import

        kept = {name: submission.content[name] for name in ("user", "mem_factor", "profile")}
        links = self.dora_dir / self.by_id
        links.mkdir(parents=True, exist_ok=True)
        for index, (task_id, folder) in enumerate(self.experiments(submission).items()):
            task = submission.tasks[index]
            log = str(submission.folder / f"{task_id}_0_log.out")
            content = {"launcher": "slurm", "job_id": task_id, "sig": task["sig"], "name": task["name"], "log": log}
            content |= {"submitted": submitted, "token": submission.token, "index": index, **kept}
            write_symlink(links / task_id, Path("..") / self.xps / task["sig"])
            there = read_json(folder / JOB_FILE) or {}
            if there.get("token") == submission.token:  # this was done before, and may have been cancelled since
                content = {**content, **there, "job_id": task_id}
            elif (number_in(there, "submitted") or 0.0) > submission.submitted:  # a later job of this experiment
                continue
            if folder.is_dir():
                write_json(folder / JOB_FILE, content, sync=False)
                yield Job(folder, content)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _make_token(package: str, sigs: Sequence[str]) -> str:
    """Name of a submission: what it is of, and that it is this one."""
    digest = hashlib.sha1(" ".join(sorted(sigs)).encode()).hexdigest()[:8]
    fit, moment = re.sub(r"[^A-Za-z0-9_.-]", "-", package), f"{time.time_ns() // 1_000_000:x}{secrets.token_hex(3)}"
    return f"{fit}_{digest}_{moment}"

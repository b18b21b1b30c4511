"""What is sent to SLURM, written down before it is sent: a folder for each job or array under `<dora.dir>/submissions`.

```
submissions/<token>/tasks.jsonl       what task i runs, one line each; read by `launchers.slurm.inside` inside the job
submissions/<token>/submission.json   who, when, with which profile; `job_id` once SLURM has answered
submissions/<token>/…                 the script and the logs of its tasks
submissions/.open/<token>             there until SLURM's last word on every task is written down
submissions/.users/<uid>              whose jobs a query must ask for
```

The token is also the name of the job in SLURM. A command that dies between sbatch and writing down its answer leaves
an open submission without `job_id`: the next command asks SLURM for a job of that name and adopts it.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from audiotok.errors import LaunchError
from audiotok.launchers.engine import Job, Task
from audiotok.launchers.lock import user_and_host
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm.submission import SUBMISSION_FILE, TASKS_FILE, Submission, make_token
from audiotok.status import JOB_FILE, read_json, write_json


class SubmissionBook:
    """All submissions of one Dora folder. What writes is called under the submission lock.

    Args:
        dora_dir: the Dora folder.
        xps: name of the folder of experiments in it.
        by_id: name of the folder of links from job ids to experiments.
    """

    def __init__(self, dora_dir: Path, *, xps: str = "xps", by_id: str = "by_id") -> None:
        self.dora_dir = Path(dora_dir).absolute()
        self.root = self.dora_dir / "submissions"
        self.xps, self.by_id = xps, by_id
        self._known: dict[str, Submission] = {}

    def experiment(self, task: Mapping[str, Any]) -> Path:
        """Folder of the experiment of a task, wherever the Dora folder was moved to."""
        return self.dora_dir / self.xps / str(task["sig"])

    def has_open(self) -> bool:
        """True if there is an open submission."""
        return bool(_names(self.root / ".open"))

    def open(self) -> list[Submission]:
        """Submissions with a task whose end is not written down yet, oldest first; damaged ones are closed."""
        names = set(_names(self.root / ".open"))
        whole = {token: known for token, known in self._known.items() if known.recorded}  # do not change any more
        self._known = {token: known for token, known in whole.items() if token in names}
        for token in names - self._known.keys():
            submission = self.read(token)
            if submission is None:  # it is whole before it is opened and sent, so nothing of it was
                (self.root / ".open" / token).unlink(missing_ok=True)
            else:
                self._known[token] = submission
        return sorted(self._known.values(), key=lambda one: one.submitted)

    def read(self, token: str) -> Submission | None:
        """A submission by its token, None if there is none or it is damaged."""
        return Submission.read(self.root / token)

    def uids(self) -> list[str]:
        """Ids of the users who have submitted from this folder, and of this one."""
        return sorted({str(os.getuid()), *_names(self.root / ".users")})

    def prepare(self, package: str, tasks: Sequence[Task], profile: Profile) -> Submission:
        """Write down what is about to be sent, safe against a power cut.

        Raises:
            OSError: if the disk refuses; nothing may be sent then.
        """
        token = make_token(package, [task.sig for task in tasks])
        submission = Submission(self.root / token, {}, [_line(task) for task in tasks])
        submission.folder.mkdir(parents=True)
        with (submission.folder / TASKS_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in submission.tasks)
            file.flush()
            os.fsync(file.fileno())
        submission.content = {
            "token": token,
            "user": user_and_host(),
            "uid": os.getuid(),
            "time": time.time(),
            "count": len(tasks),
            "array": len(tasks) > 1,
            "mem_factor": tasks[0].mem_factor,
            "profile": asdict(profile),
            "job_id": None,
            "recorded": None,
        }
        write_json(submission.folder / SUBMISSION_FILE, submission.content)
        _touch(self.root / ".users" / str(os.getuid()))
        _touch(self.root / ".open" / token)
        self._known[token] = submission
        return submission

    def record(self, submission: Submission, job_id: str, *, adopted: bool = False) -> list[Job]:
        """Write down SLURM's answer, first here, then with every experiment; may be done again after it was cut short.

        Args:
            submission: what was sent.
            job_id: SLURM's id of the job or of the whole array.
            adopted: it was sent by a command that has died.

        Raises:
            LaunchError: if the disk refuses; the job is then adopted later.
        """
        submission.content["job_id"] = job_id
        try:
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
        """Close a submission of which everything is written down."""
        submission.content["settled"] = time.time()
        write_json(submission.folder / SUBMISSION_FILE, submission.content, sync=False)
        (self.root / ".open" / submission.token).unlink(missing_ok=True)
        self._known.pop(submission.token, None)

    def reopen(self, token: str) -> None:
        """Open a submission again, as a task of it lives: somebody queued it again."""
        if (self.root / token / SUBMISSION_FILE).is_file():
            _touch(self.root / ".open" / token)

    def link(self, job_id: str, sig: str) -> None:
        """Make an experiment known by the id of its job."""
        (self.dora_dir / self.by_id).mkdir(parents=True, exist_ok=True)
        point(self.dora_dir / self.by_id / job_id, Path("..") / self.xps / sig)

    def _record_tasks(self, submission: Submission, submitted: float) -> Iterator[Job]:
        kept = {name: submission.content[name] for name in ("user", "mem_factor", "profile")}
        for index, (task_id, task) in enumerate(zip(submission.task_ids(), submission.tasks, strict=True)):
            folder = self.experiment(task)
            content = {
                "launcher": "slurm",
                "job_id": task_id,
                "sig": task["sig"],
                "name": task["name"],
                "submitted": submitted,
                "log": str(submission.log(task_id)),
                "token": submission.token,
                "index": index,
                **kept,
            }
            self.link(task_id, task["sig"])
            there = read_json(folder / JOB_FILE) or {}
            if there.get("token") == submission.token:  # this was done before, and may have been cancelled since
                content = {**content, **there, "job_id": task_id}
            elif _is_later(there, submission.submitted):
                continue
            if folder.is_dir():
                write_json(folder / JOB_FILE, content, sync=False)
                yield Job(folder, content)


def point(link: Path, target: Path) -> None:
    """Make a symbolic link, replacing one that is there."""
    try:
        link.symlink_to(target)
    except FileExistsError:
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _line(task: Task) -> dict[str, Any]:
    return {
        "sig": task.sig,
        "folder": str(task.folder.absolute()),
        "command": list(task.command),
        "cwd": str(task.cwd),
        "name": task.name,
    }


def _is_later(job: Mapping[str, Any], moment: float) -> bool:
    submitted = job.get("submitted")
    return isinstance(submitted, int | float) and submitted > moment


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()

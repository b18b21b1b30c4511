"""The book of what is sent to SLURM: a folder for each job or array under `<dora.dir>/submissions`, written before.

```
submissions/<token>/tasks.jsonl       what task i runs, one line each; read by `launchers.slurm.inside` inside the job
submissions/<token>/submission.json   user, time, profile; `job_id` and `cluster` once SLURM has answered
submissions/<token>/claim             a link that points to the job that has started, or to `withdrawn`
submissions/<token>/…                 the script and the logs of its tasks
submissions/.open/<token>             there until the end of every task is recorded
submissions/.users/<uid>              the users whose jobs a query must list
```

The token is also the name of the job in SLURM. A command that dies between sbatch and recording its answer leaves an
open submission without `job_id`. The next command adopts the job of that name, or else withdraws the submission: its
job may still come, but does not start. Standard library only, as jobs read it.
"""

import contextlib
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
from audiotok.files import read_json, read_text, write_json, write_symlink, write_text
from audiotok.launchers.lock import user_and_host
from audiotok.status import JOB_FILE

if TYPE_CHECKING:  # these need Dora and OmegaConf, which a job must not import
    from audiotok.launchers.engine import Job, Task
    from audiotok.launchers.profile import Profile

TASKS_FILE, SUBMISSION_FILE, CLAIM_FILE = "tasks.jsonl", "submission.json", "claim"
WITHDRAWN = "withdrawn"


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
    def clusters(self) -> list[str]:
        """Names of the clusters that may have it, of the one that has it once that is known; none: the local one."""
        return [name for name in str(self.content.get("cluster") or "").split(",") if name]

    @property
    def claimed(self) -> str:
        """Who has claimed it, see `claim`; "" without a claim."""
        with contextlib.suppress(OSError):
            return str((self.folder / CLAIM_FILE).readlink())
        return ""

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

    def jobs(self, submission: Submission) -> "list[Job]":
        """Its jobs, with as much of their `job.json` as it holds itself; only once the job id is known."""
        from audiotok.launchers.engine import Job  # here, as it needs Dora, which a job must not import

        names = ("user", "uid", "cluster", "mem_factor", "profile", "code")
        common = {name: submission.content.get(name) for name in names}
        common |= {"launcher": "slurm", "token": submission.token, "submitted": submission.recorded}
        ids = [str(submission.job_id)]
        if len(submission.tasks) > 1 or submission.content.get("array"):
            ids = [f"{submission.job_id}_{index}" for index in range(len(submission.tasks))]
        jobs = []
        for index, (job_id, task) in enumerate(zip(ids, submission.tasks, strict=True)):
            own = {"job_id": job_id, "index": index, "sig": task["sig"], "name": task["name"]}
            own |= {"needs": task["needs"]} if task.get("needs") else {}
            log = {"log": str(submission.folder / f"{job_id}_0_log.out")}
            jobs.append(Job(self.experiment(task), {**common, **own, **log}))
        return jobs

    def has_open(self) -> bool:
        """True if there is an open submission."""
        return bool(_names(self.root / ".open"))

    def open(self) -> list[Submission]:
        """Submissions with a task whose end is not recorded yet, oldest first; not those that are damaged."""
        names = set(_names(self.root / ".open"))
        # Only what is recorded does not change any more.
        self._known = {token: one for token, one in self._known.items() if one.recorded and token in names}
        for token in names - self._known.keys():
            if submission := self.read(token):
                self._known[token] = submission
        return sorted(self._known.values(), key=lambda one: one.submitted)

    def close_damaged(self) -> None:
        """Close submissions that were cut short before they were whole, so that nothing was sent, or are deleted."""
        for token in _names(self.root / ".open"):
            if token not in self._known and self.read(token) is None:
                (self.root / ".open" / token).unlink(missing_ok=True)

    def read(self, token: str) -> Submission | None:
        """A submission by its token, None if there is none or it is damaged."""
        folder = self.root / token
        content = read_json(folder / SUBMISSION_FILE)
        try:
            tasks = [json.loads(line) for line in read_text(folder / TASKS_FILE).splitlines()]
        except (OSError, ValueError):
            return None
        return None if content is None or not tasks else Submission(folder, content, tasks)

    def uids(self) -> list[str]:
        """Ids of the users who have submitted from this folder, and of this one."""
        return sorted({str(os.getuid()), *_names(self.root / ".users")})

    def prepare(self, package: str, tasks: "Sequence[Task]", profile: "Profile", clusters: str = "") -> Submission:
        """Write what is about to be sent, safe against a power cut; the token begins with `package`.

        `clusters` are the names of those that may get it, with commas; "" if that is not known.

        Raises:
            OSError: if the disk refuses; nothing may be sent then.
        """
        token = _make_token(package, [task.sig for task in tasks])
        lines: list[dict[str, Any]] = [
            {"sig": t.sig, "name": t.name, "folder": str(t.folder.absolute()), "cwd": str(t.cwd), "command": t.command}
            | {"python": sys.executable}  # ours, which a job in a container replaces in the command
            | {"after": job_name(read_json(t.folder / JOB_FILE)), "needs": dict(t.needs)}
            for t in tasks
        ]
        content: dict[str, Any] = {"token": token, "user": user_and_host(), "uid": os.getuid(), "time": time.time()}
        content |= {"count": len(tasks), "array": len(tasks) > 1, "mem_factor": tasks[0].mem_factor}
        content |= {"profile": asdict(profile), "code": tasks[0].code}
        content |= {"job_id": None, "cluster": clusters, "recorded": None}
        submission = Submission(self.root / token, content, lines)
        submission.folder.mkdir(parents=True)
        write_text(submission.folder / TASKS_FILE, "".join(json.dumps(line) + "\n" for line in lines), sync=True)
        write_json(submission.folder / SUBMISSION_FILE, content)
        _touch(self.root / ".users" / str(os.getuid()))
        _touch(self.root / ".open" / token)
        self._known[token] = submission
        return submission

    def record(self, submission: Submission, job_id: str, cluster: str = "", *, adopted: bool = False) -> "list[Job]":
        """Record SLURM's answer, first here, then in every experiment; may be repeated after it was cut short.

        `job_id` is that of the job or of the whole array, `cluster` the one that has it, "" if that is not known; it is
        `adopted` if it was sent by a command that has died.

        Raises:
            LaunchError: if the disk refuses; the job is then adopted later.
        """
        claimed = submission.claimed.partition(";")  # SLURM may have taken it twice: the first to start is the job
        if claimed[0] and claimed[0] != WITHDRAWN:
            job_id, cluster = claimed[0], claimed[2] or cluster
        submission.content |= {"job_id": job_id, "cluster": cluster}
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
        """Close a submission whose job SLURM has refused, or that is withdrawn."""
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
        links = self.dora_dir / self.by_id
        links.mkdir(parents=True, exist_ok=True)
        for job, task in zip(self.jobs(submission), submission.tasks, strict=True):
            write_symlink(links / job.job_id, Path("..") / self.xps / task["sig"])
            there = read_json(job.folder / JOB_FILE) or {}
            job.content["submitted"] = submitted
            if there.get("token") == submission.token:  # this was done before, and may have been cancelled since
                job.content.update({**there, "job_id": job.job_id})
            elif is_superseded(task, submission.token, there):
                continue
            if job.folder.is_dir():
                write_json(job.folder / JOB_FILE, job.content, sync=False)
                yield job


def claim(folder: Path, claimant: str) -> str:
    """Claim the submission in a folder for a job, `ID;CLUSTER`, or to withdraw it; returns whose claim was the first.

    Of a command that withdraws it and a job that starts, exactly one succeeds: a link is made with what it says in one
    step, and only once, also where a filesystem is shared by several machines and has no locks.

    Raises:
        OSError: if the disk refuses, and there is no earlier claim.
    """
    with contextlib.suppress(FileExistsError):
        (folder / CLAIM_FILE).symlink_to(claimant)
    return str((folder / CLAIM_FILE).readlink())


def job_name(job: Mapping[str, Any] | None) -> str | None:
    """What distinguishes the job of a `job.json` from all others: its token, or its id where a launcher makes none."""
    return (job or {}).get("token") or (job or {}).get("job_id")


def is_superseded(task: Mapping[str, Any], token: str, job: Mapping[str, Any] | None) -> bool:
    """True if the `job.json` of an experiment names neither a submission nor the job before it, but a later one.

    Args:
        task: its line in `tasks.jsonl`; earlier versions did not write what it came `after`.
        token: of the submission.
        job: what `job.json` holds now.
    """
    name = job_name(job)
    return name not in (None, token, task.get("after", name))


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

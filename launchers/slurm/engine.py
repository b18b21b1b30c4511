"""The engine for SLURM: arrays out, and nothing lost when a command dies on the way.

What is sent is first written down (`launchers.slurm.submissions`); the script comes from `launchers.slurm.sbatch`;
inside the job runs `launchers.slurm.inside`; `launchers.slurm.watch` knows what became of it.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from dora.main import DecoratedMain

from audiotok.errors import LaunchError
from audiotok.launchers.engine import Check, Job, Task
from audiotok.launchers.lock import SubmitLock, user_and_host
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm.commands import CHUNK, UNREACHABLE, collapse_ids, run
from audiotok.launchers.slurm.doctor import check_slurm
from audiotok.launchers.slurm.notes import erase, note
from audiotok.launchers.slurm.sbatch import SbatchExecutor, max_array_size
from audiotok.launchers.slurm.submissions import SubmissionBook
from audiotok.launchers.slurm.watch import SlurmWatch
from audiotok.status import Verdict

STOP_S = 60.0  # SLURM gives a job KillWait (30 s by default) between SIGTERM and SIGKILL


class SlurmEngine:
    """Submits with sbatch and asks squeue.

    Args:
        package: name that jobs begin with.
        book: the submissions of this Dora folder.
        lock: its submission lock.
    """

    name: ClassVar[str] = "slurm"
    remote: ClassVar[bool] = True

    def __init__(self, package: str, book: SubmissionBook, lock: SubmitLock) -> None:
        self.package, self.book = package, book
        self.watch = SlurmWatch(package, book, lock)

    @classmethod
    def open(cls, main: DecoratedMain, lock: SubmitLock) -> Self:
        """The engine of one Dora folder."""
        book = SubmissionBook(Path(main.dora.dir), xps=main.dora.xps, by_id=main.dora.shep.by_id)
        return cls(main.name, book, lock)

    @classmethod
    def detect(cls, environ: Mapping[str, str]) -> str:
        """Why this machine can submit to SLURM, "" if it cannot."""
        return "sbatch is on PATH" if shutil.which("sbatch", path=environ.get("PATH")) else ""

    @classmethod
    def check(cls, profile: Profile | None) -> Iterator[Check]:
        """Check SLURM for `audiotok doctor`."""
        return check_slurm(profile)

    def has_open(self) -> bool:
        """True if there are submissions whose end is not recorded."""
        return self.book.has_open()

    @property
    def failure(self) -> str:
        """Why SLURM did not answer the last query, "" if it did."""
        return self.watch.failure

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        """Submit tasks that ask for the same resources; called under the submission lock.

        Several go out as an array, more than the site allows in one as several arrays; of each no more than
        `array_parallelism` run at once.

        Raises:
            LaunchError: if SLURM refuses; arrays that it took before are then recorded.
        """
        size = max_array_size(profile)
        parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        jobs: list[Job] = []
        for number, part in enumerate(parts):
            try:
                jobs += self._submit_one(part, profile)
            except LaunchError as error:
                left = [task.name for other in parts[number:] for task in other]
                raise LaunchError(f"{error}{_left_out(left, len(jobs))}") from error
        return jobs

    def refresh(self) -> None:
        """Ask SLURM once for all jobs, adopt what a dead command sent, and write down how jobs have ended."""
        self.watch.refresh()

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last refresh, and why."""
        return self.watch.verdict(job)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop jobs and wait for their end; `job.json` says beforehand who wanted it, as the job itself asks.

        Raises:
            LaunchError: naming those that could not be stopped; all others are.
        """
        for job in jobs:
            note(job.folder, job.job_id, cancelled=time.time(), cancelled_by=user_and_host())
        failures = self._send("scancel", [job.job_id for job in jobs])
        left = self.watch.wait_for_end(jobs, patience_s=STOP_S, refused=bool(failures))
        if not left:
            return
        for job in left:
            if not self.failure and self.watch.queue[job.job_id].state != "COMPLETING":
                erase(job.folder, job.job_id, "cancelled", "cancelled_by")
        names = ", ".join(collapse_ids(job.job_id for job in left))
        why = "; ".join(failures) or self.failure or f"still ending after {STOP_S:.0f} s"
        raise LaunchError(f"not all jobs could be cancelled: {names}: {why}")

    def requeue(self, jobs: Sequence[Job]) -> None:
        """Stop running jobs, which write a checkpoint, and queue them again under the same id.

        Raises:
            LaunchError: naming those that cannot be queued again.
        """
        failed = []
        for job in jobs:
            failure = run(["scontrol", "requeue", job.job_id])[1]
            if failure:
                failed.append(f"{job.job_id} ({failure})")
                continue
            self.watch.await_start([job])
            self.book.reopen(str(job.content.get("token")))
        if failed:
            raise LaunchError(f"not all jobs could be queued again: {', '.join(failed)}")

    def _submit_one(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        try:
            submission = self.book.prepare(self.package, tasks, profile)
        except OSError as error:
            raise LaunchError(f"cannot write {self.book.root} ({error}); nothing of this was submitted.") from error
        try:
            executor = SbatchExecutor(submission.folder, profile, submission.token, mem_factor=tasks[0].mem_factor)
            words = ["-u", "-m", "audiotok.launchers.slurm.inside", str(submission.folder)]
            job_id = executor.submit(words, array=len(tasks) if len(tasks) > 1 else None)
        except Exception as error:
            if not UNREACHABLE.search(str(error)):
                self.book.abandon(submission, str(error))  # SLURM said no; if it did not answer, the next command asks
            if isinstance(error, OSError):
                raise LaunchError(f"could not submit: {error}") from error
            raise
        jobs = self.book.record(submission, job_id)
        self.watch.await_start(jobs)
        return jobs

    @staticmethod
    def _send(command: str, job_ids: Sequence[str]) -> list[str]:
        """Run a command on jobs, in few calls; one that fails does not keep it from the others."""
        words, failures = collapse_ids(job_ids), []
        for start in range(0, len(words), CHUNK):
            failure = run([command, *words[start : start + CHUNK]])[1]
            if failure:
                failures.append(failure)
        return failures


def _left_out(names: Sequence[str], submitted: int) -> str:
    """End of a message: what was not submitted."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f" Not submitted: {shown}; {submitted} others are. The same command submits the rest."

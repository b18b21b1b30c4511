"""What SLURM says of all jobs of a Dora folder, and what is written down of it; mends what dead commands left."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from audiotok.errors import LaunchError
from audiotok.launchers.engine import Job
from audiotok.launchers.lock import SubmitLock
from audiotok.launchers.slurm.commands import Entry, ask_accounting, ask_accounting_for_name, ask_queue
from audiotok.launchers.slurm.notes import erase, note, noted_verdict
from audiotok.launchers.slurm.states import beats, ended_by_itself, judge, needs_accounting
from audiotok.launchers.slurm.submission import Submission
from audiotok.launchers.slurm.submissions import SubmissionBook
from audiotok.status import JOB_FILE, TASK_FILE, State, Verdict, read_json

YOUNG_S = 5.0  # a job recorded this shortly before a query may be missing in its answer: clocks differ
ANSWER_S = 15.0  # so long after a command died between sbatch and its answer the job may still turn up

logger = logging.getLogger(__name__)


class SlurmWatch:
    """Knows the states of all jobs as of its last query.

    Args:
        package: name that jobs begin with.
        book: the submissions of this Dora folder.
        lock: its submission lock.

    Attributes:
        failure: why SLURM did not answer the last query; "" if it did.
        queue: what it said, by task id.
    """

    def __init__(self, package: str, book: SubmissionBook, lock: SubmitLock) -> None:
        self.package, self.book, self.lock = package, book, lock
        self.failure = ""
        self.queue: dict[str, Entry] = {}
        self._asked = float("-inf")
        self._ended: dict[str, Verdict] = {}
        self._written: set[str] = set()
        self._accounting = True

    def refresh(self) -> None:
        """Ask SLURM once for all jobs; adopt what a dead command sent, and write down the last word on what has ended.

        If SLURM does not answer, `failure` says why and all jobs that are not known to have ended are UNKNOWN.
        """
        self._ask()
        submitting = self.lock.held
        with self.lock.try_hold() as held:
            if held and not self.failure:
                self._adopt(patient=submitting)
            if not self.failure:
                self._judge_open(write=held)

    def lives(self, job_id: str) -> bool:
        """True if SLURM said that a task waits or runs."""
        return job_id in self.queue and self.queue[job_id].is_live

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last refresh, and why."""
        entry = self.queue.get(job.job_id)
        if entry is not None and entry.is_live:
            ended = ended_by_itself(job.folder, job.job_id) if entry.state == "COMPLETING" else None
            return ended or entry.live_state()
        known = self._ended.get(job.job_id) or noted_verdict(job.content)
        if known is not None:
            return known
        if entry is None and self.failure:
            if needs_accounting(job.folder, job.job_id):
                return Verdict(State.UNKNOWN, f"SLURM does not answer: {self.failure}")
        elif entry is None and _submitted(job) > self._asked - YOUNG_S and "cancelled" not in job.content:
            return Verdict(State.PENDING, "")
        elif entry is None and beats(job.folder, job.job_id):
            return Verdict(State.RUNNING, "")
        return judge(job.folder, job.content, entry)

    def wait_for_end(self, jobs: Sequence[Job], *, patience_s: float, refused: bool) -> list[Job]:
        """Wait for the end of jobs that were told to end; returns those that have not.

        Args:
            jobs: what to wait for.
            patience_s: how long.
            refused: some could not be told; those that go on then are not waited for.
        """
        deadline, look = time.monotonic() + patience_s, 0
        while True:
            self._ask()
            left = [job for job in jobs if self.failure or self.lives(job.job_id)]
            look += 1
            ending = not self.failure and all(self.queue[job.job_id].state == "COMPLETING" for job in left)
            if not left or time.monotonic() > deadline or (refused and not ending and look > 1):
                return left
            time.sleep(min(0.25 * look, 3.0))

    def await_start(self, jobs: Sequence[Job]) -> None:
        """Take jobs for waiting until the next query: they have just been submitted or queued again."""
        for job in jobs:
            self.queue[job.job_id] = Entry("PENDING")
            self._ended.pop(job.job_id, None)
            erase(job.folder, job.job_id, "verdict")

    def _ask(self) -> None:
        asked = time.time()
        self.queue, self.failure = ask_queue(self.book.uids())
        if not self.failure:
            self._asked = asked
            self._ended = {job_id: said for job_id, said in self._ended.items() if not self.lives(job_id)}
            self._written &= self._ended.keys()

    def _adopt(self, *, patient: bool) -> None:
        """Find the job ids of submissions whose command died; one that SLURM does not have is given up.

        Args:
            patient: wait for those that are so young that SLURM may not have them yet.
        """
        for submission in self.book.open():
            if submission.content.get("recorded"):
                continue
            job_id = submission.job_id or self._find(submission)
            while job_id is None and patient and _age(submission) < ANSWER_S:
                time.sleep(1.0)
                self._ask()
                if self.failure:
                    return
                job_id = self._find(submission)
            try:
                if job_id is not None:
                    self.book.record(submission, job_id, adopted=True)
                    logger.warning("found job %s, which %s submitted", job_id, submission.content.get("user"))
                elif _age(submission) >= ANSWER_S:
                    self.book.abandon(submission, "SLURM has no job of this name")
            except (OSError, LaunchError) as error:
                logger.warning("could not look after submission %s: %s", submission.token, error)

    def _find(self, submission: Submission) -> str | None:
        """The job id of a submission: in the queue, in what its tasks wrote, or in the books."""
        for job_id, entry in self.queue.items():
            if submission.token in entry.names:
                return job_id.split("_")[0]
        for task in submission.tasks:
            marker = read_json(self.book.experiment(task) / TASK_FILE) or {}
            if marker.get("token") == submission.token:
                return str(marker["job_id"]).split("_")[0]
        return ask_accounting_for_name(submission.token) if self._accounting and _age(submission) > ANSWER_S else None

    def _judge_open(self, *, write: bool) -> None:
        """Judge all tasks of open submissions that neither wait nor run; close submissions that have no others."""
        submissions = [one for one in self.book.open() if one.content.get("recorded")]
        gone: list[tuple[str, Path]] = []
        over: list[Submission] = []
        for submission in submissions:
            tasks = [
                (task_id, self.book.experiment(task))
                for task_id, task in zip(submission.task_ids(), submission.tasks, strict=True)
                if not self._is_awaited(task_id, self.book.experiment(task), submission)
            ]
            gone += tasks
            if len(tasks) == len(submission.tasks):
                over.append(submission)
        gone = [
            (task_id, folder) for task_id, folder in gone if task_id not in (self._written if write else self._ended)
        ]
        books = self._ask_accounting([task_id for task_id, folder in gone if self._is_unknown(task_id, folder)])
        for task_id, folder in gone:
            self._conclude(folder, task_id, self.queue.get(task_id) or books.get(task_id), write=write)
        if write:
            for submission in over:
                self._close(submission)
            self._reopen({submission.token for submission in submissions})

    def _is_awaited(self, task_id: str, folder: Path, submission: Submission) -> bool:
        """True if a task lives, or was sent so shortly before the query that SLURM may not have had it."""
        entry = self.queue.get(task_id)
        if entry is not None:
            return entry.is_live
        if task_id in self._ended:
            return False
        return submission.recorded > self._asked - YOUNG_S or beats(folder, task_id)

    def _is_unknown(self, task_id: str, folder: Path) -> bool:
        return task_id not in self.queue and task_id not in self._ended and needs_accounting(folder, task_id)

    def _ask_accounting(self, job_ids: Sequence[str]) -> dict[str, Entry]:
        if not job_ids or not self._accounting:
            return {}
        answer = ask_accounting(job_ids)
        self._accounting = answer is not None
        return answer or {}

    def _conclude(self, folder: Path, task_id: str, said: Entry | None, *, write: bool) -> None:
        """Judge a task that has ended and write the verdict into `job.json`, unless a later job took its place."""
        content = read_json(folder / JOB_FILE) or {}
        ours = content.get("job_id") == task_id
        written = noted_verdict(content) if ours and said is None else None
        state = written or judge(folder, content if ours else {"job_id": task_id}, said)
        self._ended[task_id] = state
        if not write:
            return
        self._written.add(task_id)
        if ours and noted_verdict(content) != state:
            note(folder, task_id, verdict={"state": state.state, "reason": state.reason, "time": time.time()})

    def _close(self, submission: Submission) -> None:
        try:
            self.book.settle(submission)
        except OSError as error:  # somebody else's: they will
            logger.debug("could not close %s: %s", submission.token, error)

    def _reopen(self, known: set[str]) -> None:
        """Look after jobs again that somebody queued again after their end."""
        names = {entry.names[0] for entry in self.queue.values() if entry.is_live and entry.names}
        for name in names - known:
            submission = self.book.read(name) if name.startswith(f"{self.package}_") else None
            if submission is None or submission.job_id is None:
                continue
            self.book.reopen(name)
            for task_id, task in zip(submission.task_ids(), submission.tasks, strict=True):
                if self.lives(task_id):
                    erase(self.book.experiment(task), task_id, "verdict")


def _submitted(job: Job) -> float:
    submitted = job.content.get("submitted")
    return float(submitted) if isinstance(submitted, int | float) else 0.0


def _age(submission: Submission) -> float:
    return time.time() - submission.submitted

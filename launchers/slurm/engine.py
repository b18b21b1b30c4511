"""The engine for SLURM: submits arrays, follows their jobs with one query, and repairs what a dead command left.

SLURM's answer counts most, but it forgets a job minutes after its end, and many sites have no accounting. So the job
records its start, life and end itself; `audiotok.status.judge` makes one verdict of both, which goes into `job.json`.
"""

import contextlib
import logging
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from dora.main import DecoratedMain

from audiotok.errors import LaunchError
from audiotok.files import read_json, write_json
from audiotok.launchers.engine import Check, Job, NoAnswerError, Task
from audiotok.launchers.lock import SubmitLock, user_and_host
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm import commands
from audiotok.launchers.slurm.commands import CHUNK, Entry, collapse_ids, run
from audiotok.launchers.slurm.doctor import check_slurm
from audiotok.launchers.slurm.sbatch import max_array_size, send
from audiotok.launchers.slurm.submissions import Submission, SubmissionBook
from audiotok.status import JOB_FILE, STATUS_FILE, TASK_FILE, SchedulerWord, State, Verdict
from audiotok.status.judge import judge
from audiotok.text import number_in

STOP_S = 60.0  # SLURM gives a job KillWait (30 s by default) between SIGTERM and SIGKILL
YOUNG_S = 5.0  # a job recorded this shortly before a query may be missing in its answer: clocks differ
ANSWER_S = 15.0  # so long after a command died between sbatch and its answer the job may still turn up
FRESH_S = 45.0  # three of the heartbeats of `launchers.slurm.inside`
_NOT_LISTED = SchedulerWord(State.MISSING)

logger = logging.getLogger(__name__)


class SlurmEngine:
    """Submits with sbatch and follows jobs with squeue; the names of jobs begin with `package`."""

    name: ClassVar[str] = "slurm"
    remote: ClassVar[bool] = True

    def __init__(self, package: str, book: SubmissionBook, lock: SubmitLock) -> None:
        self.package, self.book, self.lock = package, book, lock
        self.failure = ""
        self.queue: dict[str, Entry] = {}  # the answer of the last query, by task id
        self._queried = float("-inf")
        self._ended: dict[str, Verdict] = {}
        self._written: set[str] = set()  # of these, the tasks whose `job.json` has the verdict
        self._accounting = True  # until it does not answer

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

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        """Submit tasks as an array, or as several if there are more than the site allows in one.

        Raises:
            LaunchError: if SLURM refuses; arrays that it accepted before are then recorded.
        """
        size = max_array_size(profile)
        parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        jobs: list[Job] = []
        for number, part in enumerate(parts):
            try:
                jobs += self._submit_one(part, profile)
            except LaunchError as error:
                left = [task.name for other in parts[number:] for task in other]
                shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
                rest = f"{len(jobs)} others are. The same command submits the rest."
                raise LaunchError(f"{error} Not submitted: {shown}; {rest}") from error
        return jobs

    def refresh(self, *, repair: bool = True) -> None:
        """Query all jobs at once; adopt what a dead command sent, and record how jobs have ended.

        If SLURM does not answer, `failure` holds why and all jobs that are not known to have ended are UNKNOWN.
        """
        self._query()
        submitting = self.lock.held
        with self.lock.try_hold() as held:
            if held and not self.failure:
                self._adopt(patient=submitting)
            if not self.failure:
                self._judge_open(write=held)

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last refresh, and why."""
        job_id, entry = job.job_id, self.queue.get(job.job_id)
        if entry is None or not entry.is_live:
            known = self._ended.get(job_id) or _recorded(job.content)
            if known is not None:
                return known
        elif entry.state != "COMPLETING":  # nothing in the files outweighs it: spare reading them for each of many jobs
            return Verdict(*entry.word[:2])
        return _judge(job.folder, job_id, job.content, self._word_without_entry(job) if entry is None else entry.word)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop jobs and wait for their end.

        Raises:
            LaunchError: naming those that could not be stopped; all others are.
        """
        for job in jobs:  # first, as the job itself reads there why it is stopped
            _edit(job.folder, job.job_id, cancelled=time.time(), cancelled_by=user_and_host())
        words = collapse_ids(job.job_id for job in jobs)
        answers = [run(["scancel", *words[start : start + CHUNK]])[1] for start in range(0, len(words), CHUNK)]
        failures = [failure for failure in answers if failure]
        left = self._wait_for_end(jobs, refused=bool(failures))
        if not left:
            return
        for job in left:
            if not self.failure and self.queue[job.job_id].state != "COMPLETING":
                _edit(job.folder, job.job_id, "cancelled", "cancelled_by")
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
            else:
                self._expect([job])
                self.book.reopen(str(job.content.get("token")))
        if failed:
            raise LaunchError(f"not all jobs could be queued again: {', '.join(failed)}")

    def _submit_one(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        try:
            submission = self.book.prepare(self.package, tasks, profile)
        except OSError as error:
            raise LaunchError(f"cannot write {self.book.root} ({error}); nothing of this was submitted.") from error
        try:
            environ, safe = tasks[0].environ, ["-P"] * bool(tasks[0].environ)  # of one launch, so of all
            words = ["-u", *safe, "-m", "audiotok.launchers.slurm.inside", str(submission.folder)]
            array, factor = len(tasks) if len(tasks) > 1 else None, tasks[0].mem_factor
            sent = send(
                profile, submission.token, submission.folder, words, array=array, mem_factor=factor, environ=environ
            )
        except NoAnswerError:
            raise  # SLURM may have the job: the next query shows
        except Exception as error:
            self.book.abandon(submission, str(error))
            if isinstance(error, OSError):
                raise LaunchError(f"could not submit: {error}") from error
            raise
        jobs = self.book.record(submission, sent.job_id)
        self._expect(jobs)
        return jobs

    def _expect(self, jobs: Sequence[Job]) -> None:
        """Take jobs for pending until the next query: they have just been submitted or queued again."""
        for job in jobs:
            self.queue[job.job_id] = Entry("PENDING")
            self._ended.pop(job.job_id, None)
            _edit(job.folder, job.job_id, "verdict")

    def _wait_for_end(self, jobs: Sequence[Job], *, refused: bool) -> list[Job]:
        """Wait for the end of jobs; returns those left. If SLURM `refused` some, running ones are not waited for."""
        deadline, polls = time.monotonic() + STOP_S, 0
        while True:
            self._query()
            left = [job for job in jobs if self.failure or self._lives(job.job_id)]
            polls += 1
            ending = not self.failure and all(self.queue[job.job_id].state == "COMPLETING" for job in left)
            if not left or time.monotonic() > deadline or (refused and not ending and polls > 1):
                return left
            time.sleep(min(0.25 * polls, 3.0))

    def _query(self) -> None:
        now = time.time()
        self.queue, self.failure = commands.query_queue(self.book.uids())
        if not self.failure:
            self._queried = now
            self._ended = {job_id: verdict for job_id, verdict in self._ended.items() if not self._lives(job_id)}
            self._written &= self._ended.keys()

    def _lives(self, job_id: str) -> bool:
        return job_id in self.queue and self.queue[job_id].is_live

    def _word_without_entry(self, job: Job) -> SchedulerWord:
        """What it means that the last query did not list a job."""
        if self.failure:
            return SchedulerWord(State.UNKNOWN, f"SLURM does not answer: {self.failure}")
        if (number_in(job.content, "submitted") or 0.0) > self._queried - YOUNG_S and "cancelled" not in job.content:
            return SchedulerWord(State.PENDING, live=True)
        # A controller that has lost its memory lists no jobs, while they run on.
        alive = _beats(_own(job.folder / TASK_FILE, job.job_id))
        return SchedulerWord(State.RUNNING, live=True) if alive else _NOT_LISTED

    def _adopt(self, *, patient: bool) -> None:
        """Find the job ids of submissions whose command died; one that SLURM does not have is abandoned."""
        for submission in self.book.open():
            if submission.recorded:
                continue
            job_id = submission.job_id or self._find(submission)
            while job_id is None and patient and _age_s(submission) < ANSWER_S:  # SLURM may not have it yet
                time.sleep(1.0)
                self._query()
                if self.failure:
                    return
                job_id = self._find(submission)
            try:
                if job_id is not None:
                    self.book.record(submission, job_id, adopted=True)
                    logger.warning("found job %s, which %s submitted", job_id, submission.content.get("user"))
                elif _age_s(submission) >= ANSWER_S:
                    self.book.abandon(submission, "SLURM has no job of this name")
            except (OSError, LaunchError) as error:
                logger.warning("could not look after submission %s: %s", submission.token, error)

    def _find(self, submission: Submission) -> str | None:
        """The job id of a submission: in the queue, in the `task.json` of its tasks, or in accounting."""
        for job_id, entry in self.queue.items():
            if submission.token in entry.names:
                return job_id.split("_")[0]
        for line in submission.tasks:
            task = read_json(self.book.experiment(line) / TASK_FILE) or {}
            if task.get("token") == submission.token:
                return str(task["job_id"]).split("_")[0]
        if not self._accounting or _age_s(submission) <= ANSWER_S:
            return None
        return commands.find_in_accounting(submission.token)

    def _judge_open(self, *, write: bool) -> None:
        """Judge all tasks of open submissions that do not live; close submissions that have no others."""
        submissions = [one for one in self.book.open() if one.recorded]
        known = self._written if write else self._ended
        ended: list[tuple[str, Path]] = []
        over: list[Submission] = []
        for submission in submissions:
            tasks = self.book.experiments(submission).items()
            gone = [(task_id, folder) for task_id, folder in tasks if not self._may_live(task_id, folder, submission)]
            ended += [(task_id, folder) for task_id, folder in gone if task_id not in known]
            if len(gone) == len(tasks):
                over.append(submission)
        unclear = [task_id for task_id, folder in ended if self._is_open(task_id, folder)]
        accounting = commands.query_accounting(unclear) if unclear and self._accounting else {}
        self._accounting = self._accounting and accounting is not None
        for task_id, folder in ended:
            entry = self.queue.get(task_id) or (accounting or {}).get(task_id)
            self._conclude(folder, task_id, entry, write=write)
        if write:
            for submission in over:
                with contextlib.suppress(OSError):  # of another user, whose next command closes it
                    self.book.settle(submission)
            self._reopen({submission.token for submission in submissions})

    def _may_live(self, task_id: str, folder: Path, submission: Submission) -> bool:
        """True if a task lives, or was sent so shortly before the query that SLURM may not have had it."""
        entry = self.queue.get(task_id)
        if entry is not None:
            return entry.is_live
        if task_id in self._ended:
            return False
        return submission.recorded > self._queried - YOUNG_S or _beats(_own(folder / TASK_FILE, task_id))

    def _is_open(self, task_id: str, folder: Path) -> bool:
        """True if neither the query nor the task itself shows how it ended, so that accounting is worth a query."""
        if task_id in self.queue or task_id in self._ended:
            return False
        return not State.of(_own(folder / TASK_FILE, task_id).get("state")).settled

    def _conclude(self, folder: Path, task_id: str, entry: Entry | None, *, write: bool) -> None:
        """Judge a task that has ended and record the verdict in `job.json`, unless a later job took its place."""
        content = read_json(folder / JOB_FILE) or {}
        ours = content.get("job_id") == task_id
        recorded = _recorded(content) if ours else None
        verdict = recorded if entry is None else None
        if verdict is None:
            # Accounting may list a job as running that the controller has forgotten: that is no sign of life.
            word = _NOT_LISTED if entry is None or entry.is_live else entry.word
            verdict = _judge(folder, task_id, content if ours else {"job_id": task_id}, word)
        self._ended[task_id] = verdict
        if write:
            self._written.add(task_id)
        if write and ours and recorded != verdict:
            _edit(folder, task_id, verdict={"state": verdict.state, "reason": verdict.reason, "time": time.time()})

    def _reopen(self, known: set[str]) -> None:
        """Open submissions again of which a task was queued again after its end."""
        names = {entry.names[0] for entry in self.queue.values() if entry.is_live and entry.names}
        for name in names - known:
            submission = self.book.read(name) if name.startswith(f"{self.package}_") else None
            if submission is None or submission.job_id is None:
                continue
            self.book.reopen(name)
            for task_id, folder in self.book.experiments(submission).items():
                if self._lives(task_id):
                    _edit(folder, task_id, "verdict")


def _own(path: Path, job_id: str) -> dict[str, Any]:
    """A `task.json` or `status.json`; empty if it is missing or not of this job."""
    content = read_json(path) or {}
    return content if content.get("job_id") == job_id else {}


def _judge(folder: Path, job_id: str, job: Mapping[str, Any], word: SchedulerWord) -> Verdict:
    task, status = (_own(folder / name, job_id) for name in (TASK_FILE, STATUS_FILE))
    return judge(job, task, status, word) or Verdict(State.UNKNOWN, "")


def _beats(task: Mapping[str, Any] | None) -> bool:
    """True if a task runs by its own account: its heartbeat is fresh or, on this machine, its process exists."""
    if task is None or task.get("state") != State.RUNNING or number_in(task, "updated") is None:
        return False
    if task.get("host") == socket.gethostname() and isinstance(task.get("pid"), int):
        return Path(f"/proc/{task['pid']}").exists() or not Path("/proc/self").exists()
    return abs(time.time() - (number_in(task, "updated") or 0.0)) < FRESH_S


def _recorded(job: Mapping[str, Any]) -> Verdict | None:
    """The verdict that is recorded in a `job.json`."""
    verdict = job.get("verdict")
    if not isinstance(verdict, dict) or not verdict.get("state"):
        return None
    return Verdict(State.of(verdict["state"]), str(verdict.get("reason") or ""))


def _edit(folder: Path, job_id: str, *removed: str, **added: Any) -> None:
    """Edit the `job.json` of a job, unless a later job has taken its place."""
    path = folder / JOB_FILE
    before = _own(path, job_id)
    after = {name: value for name, value in before.items() if name not in removed} | added
    if before and after != before:
        try:
            write_json(path, after, sync=False)
        except OSError as error:  # a full disk must not prevent stopping jobs or seeing states
            logger.warning("could not write %s: %s", path, error)


def _age_s(submission: Submission) -> float:
    return time.time() - submission.submitted

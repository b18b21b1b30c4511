"""The engine for SLURM: submits arrays, follows their jobs with one query, and repairs what a dead command left.

SLURM's answer counts most, but it forgets a job minutes after its end, and many sites have no accounting. So the job
records its start, life and end itself; `audiotok.status.judge` makes one verdict of both, which goes into `job.json`.

A job is known by its id and the token of its submission, which is its name in SLURM: ids come again, on another cluster
or after a reset. That a query does not list a job means something only on its cluster, to its user.
"""

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from dora.main import DecoratedMain

from audiotok.errors import LaunchError
from audiotok.files import read_json, write_json
from audiotok.launchers.child import last_error
from audiotok.launchers.engine import Check, Job, NoAnswerError, NoRoomError, Task, job_of
from audiotok.launchers.lock import SubmitLock, user_and_host
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm import commands
from audiotok.launchers.slurm.commands import CHUNK, Entry, collapse_ids, on, run
from audiotok.launchers.slurm.doctor import check_slurm
from audiotok.launchers.slurm.sbatch import max_array_size, open_environment, send
from audiotok.launchers.slurm.submissions import SUBMISSION_FILE, WITHDRAWN, Submission, SubmissionBook, claim
from audiotok.launchers.slurm.trial import try_job
from audiotok.status import JOB_FILE, STATUS_FILE, TASK_FILE, SchedulerWord, State, Verdict, same_job
from audiotok.status.judge import STALE_S, hold_up, judge
from audiotok.text import number_in

STOP_S = 60.0  # SLURM gives a job KillWait (30 s by default) between SIGTERM and SIGKILL
YOUNG_S = 5.0  # a job recorded this shortly before a query may be missing in its answer: clocks differ
SENDING_S = 120.0  # a submission without an answer for so long has lost its command
AGAIN_S = 2.0  # an answer without any job, where there should be some, is looked at again after so long
BUSY_S = 10.0  # an answer that takes longer than this shows a busy controller
FRESH_S = 45.0  # three of the heartbeats of `launchers.slurm.inside`
_Key = tuple[str, str]  # token and task id

logger = logging.getLogger(__name__)


class SlurmEngine:
    """Submits with sbatch and follows jobs with squeue; the names of jobs begin with `package`."""

    name: ClassVar[str] = "slurm"
    remote: ClassVar[bool] = True

    def __init__(self, package: str, book: SubmissionBook, lock: SubmitLock) -> None:
        self.package, self.book, self.lock = package, book, lock
        self.failure = ""
        self.queue: dict[_Key, Entry] = {}  # the answer of the last query, also by ("", task id) for jobs without token
        self._silent: dict[str, str] = {}  # why other clusters did not answer, by name
        self._answered: set[str] = set()  # other clusters that did
        self._cluster = ""  # name of this one, once known
        self._queried = float("-inf")
        self._repair = False
        self._ended: dict[_Key, Verdict] = {}
        self._written: set[_Key] = set()  # of these, the tasks whose `job.json` has the verdict
        self._looked_up: set[_Key] = set()  # in accounting
        self._no_accounting: set[str] = set()  # clusters without it, "" for this one
        self._full: set[str] = set()  # queues that took no more at the last submission

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

    @classmethod
    def environment(cls, profile: Profile, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables with which sbatch fills in what a profile leaves open."""
        return open_environment(profile, environ)

    @classmethod
    def try_job(cls, profile: Profile, root: Path) -> Iterator[Check]:
        """Run a short job of the profile, see `launchers.slurm.trial`."""
        return try_job(
            lambda home: cls("audiotok-doctor", SubmissionBook(home), SubmitLock(home / "lock")), profile, root
        )

    def has_open(self) -> bool:
        """True if there are submissions whose end is not recorded."""
        return self.book.has_open()

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        """Submit tasks as an array, or as several if there are more than the site takes in one, or takes now.

        A limit counts every task, and refuses an array as a whole. How much fits is found by halving what was refused;
        after a refusal the next call begins with one task, and doubles what was accepted. Errors: see `Engine`.
        """
        most, jobs, left = max_array_size(profile), list[Job](), list(tasks)
        room, size, refusal = len(left), 1 if profile.queue in self._full else most, None
        while left and room:
            part, began = left[: min(size, most, room)], time.monotonic()
            try:
                jobs += self._submit_one(part, profile)
            except NoRoomError as error:
                # A refusal that took long is of a busy controller, of which more tries would only take more time.
                room = 0 if time.monotonic() - began > BUSY_S else len(part) - 1
                refusal = error
            except LaunchError as error:
                names = [task.name for task in left]
                shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                rest = f"{len(jobs)} others are. The same command submits the rest."
                raise LaunchError(f"{error} Not submitted: {shown}; {rest}") from error
            else:
                left, room = left[len(part) :], room - len(part)
            size = 2 * size if refusal is None else (room + 1) // 2
        self._full.discard(profile.queue)
        if refusal is not None and left:
            self._full.add(profile.queue)
            raise refusal
        return jobs

    def can_wait_for(self, job: Job, profile: Profile) -> bool:
        """True if a task may depend on this job: of the same user and cluster, and known to SLURM."""
        cluster = _requested_clusters(profile) or self._cluster
        here = job.engine == self.name and str(job.content.get("cluster") or cluster) == cluster
        return here and job.content.get("uid") == os.getuid() and self._lives(job)

    def refresh(self, *, repair: bool = True) -> None:
        """Query all jobs at once; adopt or withdraw what a dead command sent, and record how jobs have ended.

        If SLURM does not answer, all jobs that are not known to have ended are UNKNOWN.
        """
        self._query()
        self._repair, submitting = repair, self.lock.held
        with self.lock.try_hold() if repair else contextlib.nullcontext(False) as held:
            if self.failure:
                return
            if held:
                self._adopt(at_once=submitting)
            self._judge_open(write=held)

    def resume(self) -> None:
        """Nothing to do: SLURM starts its jobs."""

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last refresh, and why."""
        key, entry = _key(job.content), self._entry(job.content)
        if entry is None or not entry.is_live:
            known = self._ended.get(key) or _recorded(job.content)
            if known is not None:
                return known
        elif entry.state not in ("RUNNING", "COMPLETING"):  # nothing in the files outweighs it: spare reading them
            return Verdict(*entry.word[:2])
        verdict = self._judge(job, self._absence(job) if entry is None else entry.word)
        if self._repair and key[0] and not (verdict.state.live or (self.book.root / key[0] / SUBMISSION_FILE).exists()):
            self._ended[key] = verdict  # its submission is deleted: nothing else writes this for who reads files alone
            with self.lock.try_hold() as held:
                if held:
                    _record(job, verdict)
        return verdict

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop jobs and wait for their end; see `Engine`."""
        self._query()
        found = [job for job in jobs if self._lives(job)]
        for job in found:  # first, as the job itself reads there why it is stopped
            _edit(job, cancelled=time.time(), cancelled_by=user_and_host())
        refused = []
        for cluster in sorted({self._other_cluster(job.content) for job in found}):
            words = collapse_ids(job.job_id for job in found if self._other_cluster(job.content) == cluster)
            answers = [run(["scancel", *on(cluster), *words[at : at + CHUNK]])[1] for at in range(0, len(words), CHUNK)]
            refused += [answer for answer in answers if answer]
        left = self._wait_for_end(found, refused=bool(refused)) if found else []
        for job in left:
            entry = self._entry(job.content)
            if (entry.state != "COMPLETING") if entry else refused:
                _edit(job, "cancelled", "cancelled_by")
        for job in found:
            if job not in left:
                self._conclude(job, self._entry(job.content), write=True)
        failures: dict[str, list[str]] = {}
        why = "; ".join(refused) or self.failure or f"still ending after {STOP_S:.0f} s"
        for job in [*left, *(job for job in jobs if job not in found)]:
            verdict = self.verdict(job)
            if job in left or verdict.state.live:
                reason = why if job in left else verdict.reason or "SLURM does not list it"
                failures.setdefault(reason, []).append(job.job_id)
        if failures:
            shown = "; ".join(f"{', '.join(collapse_ids(ids))}: {reason}" for reason, ids in failures.items())
            raise LaunchError(f"not all jobs could be cancelled: {shown}")

    def requeue(self, jobs: Sequence[Job]) -> None:
        """Stop running jobs, which write a checkpoint, and queue them again under the same id; see `Engine`."""
        self._query()
        failed = []
        for job in jobs:
            command = ["scontrol", *on(self._other_cluster(job.content)), "requeue", job.job_id]
            failure = run(command)[1] if self._lives(job) else self.failure or "SLURM does not list it"
            if failure:
                failed.append(f"{job.job_id} ({failure})")
            else:
                self._expect([job])
                self.book.reopen(str(job.content.get("token")))
        if failed:
            raise LaunchError(f"not all jobs could be queued again: {', '.join(failed)}")

    def _submit_one(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        self._cluster = self._cluster or commands.local_cluster()
        clusters = _requested_clusters(profile) or self._cluster
        try:
            submission = self.book.prepare(self.package, tasks, profile, clusters)
        except OSError as error:
            raise LaunchError(f"cannot write {self.book.root} ({error}); nothing of this was submitted.") from error
        try:
            environ, safe = tasks[0].environ, ["-P"] * bool(tasks[0].environ)  # of one launch, so of all
            words = ["-u", *safe, "-m", "audiotok.launchers.slurm.inside", str(submission.folder)]
            array, factor = len(tasks) if len(tasks) > 1 else None, tasks[0].mem_factor
            sent = send(
                profile,
                submission.token,
                submission.folder,
                words,
                array=array,
                mem_factor=factor,
                environ=environ,
                after=list(tasks[0].needs.values()),
            )
        except NoAnswerError:
            raise  # SLURM may have the job: the next query shows
        except NoRoomError as error:
            self.book.abandon(submission, str(error))
            shutil.rmtree(submission.folder, ignore_errors=True)  # there may be many tries
            raise
        except Exception as error:
            self.book.abandon(submission, str(error))
            if isinstance(error, OSError):
                raise LaunchError(f"could not submit: {error}") from error
            raise
        jobs = self.book.record(submission, sent.job_id, sent.cluster or clusters)
        self._expect(jobs)
        return jobs

    def _expect(self, jobs: Sequence[Job]) -> None:
        """Take jobs for pending until the next query: they have just been submitted or queued again."""
        for job in jobs:
            self.queue[_key(job.content)] = Entry("PENDING")
            self._ended.pop(_key(job.content), None)
            _edit(job, "verdict")

    def _wait_for_end(self, jobs: Sequence[Job], *, refused: bool) -> list[Job]:
        """Wait for the end of jobs; returns those left. If SLURM `refused` some, running ones are not waited for."""
        deadline, polls = time.monotonic() + STOP_S, 0
        while True:
            self._query()
            left = [job for job in jobs if self._lives(job) or self._is_silent(self._other_cluster(job.content))]
            polls += 1
            entries = [self._entry(job.content) for job in left]
            ending = all(entry is not None and entry.state == "COMPLETING" for entry in entries)
            if not left or time.monotonic() > deadline or (refused and not ending and polls > 1):
                return left
            time.sleep(min(0.25 * polls, 3.0))

    def _query(self) -> None:
        """Query this cluster, and others that have jobs whose end is not recorded."""
        now, uids, submissions = time.time(), self.book.uids(), self.book.open()
        rows, self.failure = commands.query_queue(uids)
        if not rows and not self.failure and any(one.recorded for one in submissions):
            time.sleep(AGAIN_S)  # one empty answer must not end all that runs
            rows, self.failure = commands.query_queue(uids)
        self.queue, self._silent, self._answered = {}, {}, set()
        if self.failure:
            return
        self._queried = now
        self._cluster = self._cluster or commands.local_cluster()
        self._list(rows, "")
        for cluster in sorted({name for one in submissions for name in one.clusters} - {self._cluster}):
            rows, failure = commands.query_queue(uids, cluster)
            self._list(rows, cluster)
            if failure:
                self._silent[cluster] = failure
            else:
                self._answered.add(cluster)
        self._ended = {key: verdict for key, verdict in self._ended.items() if not self._is_live(key)}
        self._written &= self._ended.keys()

    def _list(self, rows: Mapping[str, Entry], cluster: str) -> None:
        for task_id, entry in rows.items():
            for name in entry.names if cluster else ("", *entry.names):
                self.queue[name, task_id] = entry._replace(cluster=cluster)

    def _other_cluster(self, job: Mapping[str, Any]) -> str:
        """Name of the cluster that has a job, "" if it is this one, or not recorded."""
        name = str(job.get("cluster") or "")
        return "" if name == self._cluster else name

    def _is_silent(self, cluster: str) -> bool:
        return bool(self.failure) or (cluster != "" and cluster not in self._answered)

    def _entry(self, job: Mapping[str, Any]) -> Entry | None:
        return self.queue.get(_key(job))

    def _is_live(self, key: _Key) -> bool:
        return key in self.queue and self.queue[key].is_live

    def _lives(self, job: Job) -> bool:
        return self._is_live(_key(job.content))

    def _absence(self, job: Job) -> SchedulerWord:
        """What it means that the last query did not list a job: MISSING only if it would have listed it."""
        if self.failure:
            return SchedulerWord(State.UNKNOWN, f"SLURM does not answer: {self.failure}")
        hidden = self._hidden(job.content)
        # A controller that has lost its memory lists no jobs, while they run on.
        if _beats(_own(job.folder / TASK_FILE, job.content), STALE_S if hidden else FRESH_S):
            return SchedulerWord(State.RUNNING, live=True)
        if hidden:
            return SchedulerWord(State.UNKNOWN, hidden)
        submitted = number_in(job.content, "submitted") or 0.0
        is_new = submitted > self._queried - YOUNG_S and "cancelled" not in job.content
        return SchedulerWord(State.PENDING, live=True) if is_new else SchedulerWord(State.MISSING)

    def _hidden(self, job: Mapping[str, Any]) -> str:
        """Why a job that no query lists may be there nevertheless, and what to do; "" if it is not there."""
        cluster = self._other_cluster(job)
        if self._is_silent(cluster):
            why = f" ({self._silent[cluster]})" if cluster in self._silent else ""
            return f"on cluster {cluster}, which does not answer here{why}: use the same command there"
        if job.get("uid") not in (None, os.getuid()):  # a site may hide the jobs of other users (PrivateData)
            return f"of {job.get('user')}, and not listed to others: they see whether it waits, and can cancel it"
        return ""

    def _adopt(self, *, at_once: bool) -> None:
        """Find the job ids of submissions whose command died; one that SLURM does not have is withdrawn.

        Who does not submit does not withdraw `at_once`: on a filesystem without locks its command may yet be alive.
        """
        self.book.close_damaged()
        for submission in self.book.open():
            if submission.recorded:
                continue
            try:
                withdraws = at_once or time.time() - submission.submitted > SENDING_S
                job_id, cluster = self._find(submission, withdraws=withdraws)
                if job_id:
                    self.book.record(submission, job_id, cluster, adopted=True)
                    logger.warning("found job %s, which %s submitted", job_id, submission.content.get("user"))
                elif withdraws:
                    self.book.abandon(submission, "withdrawn, as SLURM has no job of this name")
            except (OSError, LaunchError) as error:
                logger.warning("could not look after submission %s: %s", submission.token, error)

    def _find(self, submission: Submission, *, withdraws: bool) -> tuple[str, str]:
        """Id and cluster of the job of a submission; both are empty if there is none, and none may start then."""
        if submission.job_id is not None:
            return submission.job_id, ",".join(submission.clusters)
        for (name, task_id), entry in self.queue.items():
            if name == submission.token:
                return task_id.split("_")[0], entry.cluster or self._cluster
        # A job that has started was first.
        claimed = claim(submission.folder, WITHDRAWN) if withdraws else submission.claimed
        job_id, _, cluster = ("" if claimed == WITHDRAWN else claimed).partition(";")
        return job_id, cluster

    def _judge_open(self, *, write: bool) -> None:
        """Judge all tasks of open submissions that do not live; close submissions that have no others."""
        submissions = [one for one in self.book.open() if one.recorded]
        known = self._written if write else self._ended
        jobs = {one.token: self.book.jobs(one) for one in submissions}
        gone = [job for some in jobs.values() for job in some if _key(job.content) not in known and self._is_gone(job)]
        accounting = self._look_up([job for job in gone if self._is_unclear(job)])
        for job in gone:
            self._conclude(job, self._entry(job.content) or accounting.get(_key(job.content)), write=write)
        if not write:
            return
        for submission in submissions:
            if all(_key(job.content) in self._ended for job in jobs[submission.token]):
                with contextlib.suppress(OSError):  # of another user, whose next command closes it
                    self.book.settle(submission)
        self._look_after_closed(jobs.keys())

    def _is_gone(self, job: Job) -> bool:
        """True if the last query shows the end of a job, or not a job that is neither new nor beats."""
        entry = self._entry(job.content)
        return not (self._absence(job).live if entry is None else entry.is_live)

    def _is_unclear(self, job: Job) -> bool:
        """True if neither the query nor the task itself shows how it ended, so that accounting is worth a query."""
        if self._entry(job.content) is not None or _key(job.content) in self._ended.keys() | self._looked_up:
            return False
        return not State.of(_own(job.folder / TASK_FILE, job.content).get("state")).settled

    def _look_up(self, jobs: Sequence[Job]) -> dict[_Key, Entry]:
        """What accounting has of jobs, each of which is looked up once."""
        found: dict[_Key, Entry] = {}
        for cluster in {self._other_cluster(job.content) for job in jobs} - self._no_accounting:
            keys = [_key(job.content) for job in jobs if self._other_cluster(job.content) == cluster]
            entries = commands.query_accounting([task_id for _, task_id in keys], cluster)
            self._looked_up.update(keys)
            if entries is None:
                self._no_accounting.add(cluster)
            for token, task_id in keys:
                entry = (entries or {}).get(task_id)
                # It may list a job as running that the controller has forgotten: that is no sign of life.
                if entry is not None and not entry.is_live and (not token or token in entry.names):
                    found[token, task_id] = entry
        return found

    def _conclude(self, job: Job, entry: Entry | None, *, write: bool) -> None:
        """Judge a task that seems to have ended; record the verdict, unless a later job has taken its place."""
        content = _own(job.folder / JOB_FILE, job.content)
        recorded = _recorded(content)
        verdict = recorded if entry is None else None
        if verdict is None:
            job = Job(job.folder, content or job.content)
            verdict = self._judge(job, self._absence(job) if entry is None else entry.word)
        if verdict.state.live:  # it is where nothing of it can be seen
            return
        self._ended[_key(job.content)] = verdict
        if write:
            self._written.add(_key(job.content))
            if recorded != verdict:
                _record(job, verdict)

    def _judge(self, job: Job, word: SchedulerWord) -> Verdict:
        task, status = (_own(job.folder / name, job.content) for name in (TASK_FILE, STATUS_FILE))
        if not (task or status or word.live) and word.state in (State.COMPLETED, State.FAILED):
            log = self.book.root / _key(job.content)[0] / job.log.name
            word = word._replace(reason=f"ended before Python started: {last_error(log) or f'{log} is empty or gone'}")
        verdict = judge(job.content, task, status, word) or Verdict(State.UNKNOWN, "")
        if verdict.state is State.CANCELLED and not task and "cancelled" not in job.content:
            return self._blocked(job) or verdict
        return verdict

    def _blocked(self, job: Job) -> Verdict | None:
        """BLOCKED if SLURM has cancelled a job that never began as one that it depended on has failed, else None."""
        needs = job.content.get("needs")
        for sig, job_id in needs.items() if isinstance(needs, dict) else ():
            needed = job_of(job.folder.parent / sig)
            if needed is None or needed.job_id != job_id:
                return Verdict(State.BLOCKED, f"needs {sig}, whose job {job_id} has ended without its result")
            if (verdict := self.verdict(needed)).state.failed:
                return hold_up({sig: verdict})
        return None

    def _look_after_closed(self, opened: Collection[str]) -> None:
        """Open submissions again of which a job was queued again; cancel jobs that came after they were withdrawn."""
        found: dict[str, set[tuple[str, str]]] = {}
        for (name, task_id), entry in self.queue.items():
            if entry.is_live and name not in opened and name.startswith(f"{self.package}_"):
                found.setdefault(name, set()).add((entry.cluster, task_id.split("_")[0]))
        for token, roots in found.items():
            submission = self.book.read(token)
            if submission is not None and submission.claimed == WITHDRAWN:
                for cluster, job_id in roots:  # it would not start anyway
                    failure = run(["scancel", *on(cluster), job_id])[1]
                    logger.warning("job %s came late and is %s", job_id, failure or "cancelled")
            elif submission is not None and submission.job_id is not None:
                self.book.reopen(token)
                for job in self.book.jobs(submission):
                    if self._lives(job):
                        _edit(job, "verdict")


def _key(job: Mapping[str, Any]) -> _Key:
    """Token and id of a job; jobs of Dora itself have no token."""
    return str(job.get("token") or ""), str(job.get("job_id"))


def _requested_clusters(profile: Profile) -> str:
    """The clusters that sbatch may choose from, "" for the local one."""
    names = (profile.sbatch.get("clusters"), *map(os.environ.get, ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")))
    return next((str(name) for name in names if name), "")


def _own(path: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """One of the files of an experiment; empty if it is missing or not of this job."""
    content = read_json(path) or {}
    return content if same_job(content, job) else {}


def _beats(task: Mapping[str, Any], fresh_s: float = FRESH_S) -> bool:
    """True if a task runs by its own account: its heartbeat is fresh or, on this machine, its process exists."""
    if task.get("state") != State.RUNNING or number_in(task, "updated") is None:
        return False
    if task.get("host") == socket.gethostname() and isinstance(task.get("pid"), int):
        return Path(f"/proc/{task['pid']}").exists() or not Path("/proc/self").exists()
    return abs(time.time() - (number_in(task, "updated") or 0.0)) < fresh_s


def _recorded(job: Mapping[str, Any]) -> Verdict | None:
    """The verdict that is recorded in a `job.json`."""
    verdict = job.get("verdict")
    if not isinstance(verdict, dict) or not verdict.get("state"):
        return None
    return Verdict(State.of(verdict["state"]), str(verdict.get("reason") or ""))


def _record(job: Job, verdict: Verdict) -> None:
    _edit(job, verdict={"state": verdict.state, "reason": verdict.reason, "time": time.time()})


def _edit(job: Job, *removed: str, **added: Any) -> None:
    """Edit the `job.json` of a job, unless a later job has taken its place."""
    path = job.folder / JOB_FILE
    before = _own(path, job.content)
    after = {name: value for name, value in before.items() if name not in removed} | added
    if before and after != before:
        try:
            write_json(path, after, sync=False)
        except OSError as error:  # a full disk must not prevent stopping jobs or seeing states
            logger.warning("could not write %s: %s", path, error)

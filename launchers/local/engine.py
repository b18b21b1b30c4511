"""The engine for a machine without a scheduler: a queue of local jobs that outlive the terminal.

It only writes to the book of jobs (`launchers.local.queue`); a supervisor starts them, with a runner for each. Of a
profile it uses GPUs, CPUs and the time limit; memory, nodes and shell lines (`setup`) are for clusters.

Environment variables: AUDIOTOK_LOCAL_SLOTS (most jobs at once), AUDIOTOK_LOCAL_GRACE_S (seconds that a
cancelled job gets to end by itself), CUDA_VISIBLE_DEVICES (the GPUs that may be used), AUDIOTOK_LOCAL_GPU_LOCKS (see
`launchers.local.claims`).
"""

import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from dora.main import DecoratedMain

from audiotok.errors import ConfigError, LaunchError
from audiotok.launchers.child import run_command
from audiotok.launchers.engine import Check, Job, Task
from audiotok.launchers.local import claims
from audiotok.launchers.local.queue import JobRecord, JobStore
from audiotok.launchers.local.supervisor import ensure
from audiotok.launchers.lock import SubmitLock, user_and_host
from audiotok.launchers.profile import Profile
from audiotok.status import State, Verdict, read_status
from audiotok.status.judge import judge

SHOWN = 5  # waiting jobs that are named as they are started
STOP_S = 20.0  # a killed job must be gone within this time after its grace period
SLOTS_VARIABLE = "AUDIOTOK_LOCAL_SLOTS"
GRACE_VARIABLE = "AUDIOTOK_LOCAL_GRACE_S"

logger = logging.getLogger(__name__)


class LocalEngine:
    """Runs tasks in the local queue of one Dora folder; its `root` is `<dora.dir>/local`, made on first use."""

    name: ClassVar[str] = "local"
    remote: ClassVar[bool] = False
    failure = ""  # it has no scheduler that could be silent

    def __init__(self, root: Path, log: Callable[[str], object] = logger.info) -> None:
        self.store, self._log = JobStore(root), log
        self._live: dict[str, Verdict] = {}
        self._over: dict[str, Verdict] = {}

    @classmethod
    def open(cls, main: DecoratedMain, lock: SubmitLock) -> Self:
        """The queue of one Dora folder."""
        return cls(Path(main.dora.dir) / "local", lock.log)

    @classmethod
    def detect(cls, environ: Mapping[str, str]) -> str:
        """Why this machine would use it: any machine can."""
        return "no sbatch on PATH"

    @classmethod
    def check(cls, profile: Profile | None) -> Iterator[Check]:
        """Nothing to check: it needs no scheduler."""
        return iter(())

    def has_open(self) -> bool:
        """False: a job is recorded before it is queued."""
        return False

    def submit(self, tasks: Sequence[Task], profile: Profile) -> list[Job]:
        """Queue tasks on this machine.

        Raises:
            ConfigError: if the profile or our environment variables hold an impossible number.
            LaunchError: if the supervisor of local jobs does not start; the jobs then wait for the next command.
        """
        if profile.gpus < 0:
            raise ConfigError(f"slurm.gpus={profile.gpus}; give 0 or more.")
        # CPUs of a job with GPUs are meant for a cluster's node: if it runs without GPUs here, it gets the usual share.
        share = _divide(profile.gpus, os.environ, cpus=None if profile.gpus else profile.cpus_per_task)
        ranks = 1 if profile.one_task_per_node else max(1, share["gpus"])
        jobs, user = [], user_and_host()
        with self._writing(), self.store.submitting():
            self.store.mend()
            sigs = {task.sig for task in tasks}
            for record in filter(None, map(self.store.checked, self.store.unfinished())):
                if record.sig in sigs and record.is_over:  # it was queued elsewhere, and this is a copy
                    self._drop(record.job_id)
            for number, task in enumerate(tasks, start=self.store.last_number() + 1):
                record = JobRecord(
                    job_id=f"L{number}",
                    sig=task.sig,
                    folder=str(task.folder),
                    log=str(task.folder / "logs" / f"L{number}_0_log.out"),
                    cwd=str(task.cwd),
                    command=list(task.command),
                    name=task.name,
                    user=user,
                    ranks=ranks,
                    time_s=profile.time * 60.0,
                    checkpoint_s=profile.signal_s,
                    max_num_timeout=profile.max_num_timeout,
                    code=task.code,
                    needs=dict(task.needs),
                    **share,
                )
                self.store.add(record, {**os.environ, **profile.environment(), **task.environ})
                self._live[record.job_id] = self._judge(record)
                jobs.append(Job(task.folder, record.to_json()))
            self._start({job.job_id for job in jobs})
        return jobs

    def can_wait_for(self, job: Job, profile: Profile) -> bool:
        """True if a task may wait for this job: the same user's, in this queue."""
        record = self.store.checked(job.job_id) if job.engine == self.name else None
        return record is not None and not record.is_over and self.store.is_ours(record)

    def refresh(self, *, repair: bool = True) -> None:
        """Read the states of all jobs that are not over; `repair` completes submissions of commands that died."""
        if repair and self.store.drafts.is_dir() and any(self.store.drafts.iterdir()):
            with self._writing(), self.store.submitting():
                self.store.mend()
        records = filter(None, map(self.store.checked, self.store.unfinished()))
        self._live = {record.job_id: self._judge(record) for record in records}

    def resume(self) -> None:
        """Bring back a supervisor that was killed, if jobs of this user wait here, and name those."""
        if self.store.own() and not self.store.is_held(self.store.supervisor):
            with self._writing(), self.store.submitting():
                self._start(set())

    def verdict(self, job: Job) -> Verdict:
        """State of a job as of the last `refresh`; MISSING if its record was deleted."""
        known = self._live.get(job.job_id) or self._over.get(job.job_id)
        if known is not None:
            return known
        record = self.store.checked(job.job_id)
        if record is None:
            return Verdict(State.MISSING, f"no record of it in {self.store.jobs}")
        verdict = self._judge(record)
        if record.is_over:
            self._over[job.job_id] = verdict
        return verdict

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs, those waiting before those running, and wait until the last one has stopped; see `Engine`."""
        store = self.store
        with self._writing():
            running = [job.job_id for job in jobs if not self._drop(job.job_id)]
            for job_id in running:
                store.stop_mark(job_id).write_text("CANCELLED", encoding="utf-8")
        patience_s = STOP_S + max((record.grace_s for name in running if (record := store.read(name))), default=0)
        deadline = time.monotonic() + patience_s
        while (alive := [job_id for job_id in running if store.is_held(job_id)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        for job in jobs:
            self._live.pop(job.job_id, None)
        if alive:
            raise LaunchError(f"jobs {', '.join(alive)} did not stop in {patience_s:.0f} s; try again.")

    def requeue(self, jobs: Sequence[Job]) -> None:
        """Stop running jobs with a checkpoint and queue them again; pending ones are left as they are."""
        over = []
        for job in jobs:
            record = self.store.checked(job.job_id)
            if record is None or record.is_over:
                over.append(job.job_id)
            elif record.state == State.RUNNING:
                with self._writing():
                    self.store.stop_mark(job.job_id).write_text("REQUEUED", encoding="utf-8")
        self.refresh()
        self.resume()
        if over:
            raise LaunchError(f"jobs {', '.join(over)} have ended; submit their experiments again with --retry.")

    def _drop(self, job_id: str) -> bool:
        """Cancel a job that no runner has; False if one has it."""
        record = self.store.read(job_id)
        if record is None or record.is_over:
            return True
        if record.state == State.RUNNING and self.store.is_held(job_id):
            return False
        return self.store.finish_waiting(job_id, State.CANCELLED, "cancelled before it started")

    def _start(self, queued: Collection[str]) -> None:
        """Have a supervisor start the jobs of this user; names those that were not `queued` by this command."""
        if not self.store.own() or self.store.is_held(self.store.supervisor):
            return
        records = [self.store.read(job_id) for job_id in self.store.own() if job_id not in queued]
        names = [f"{one.sig}/{one.name}" for one in records if one is not None and one.state == State.PENDING]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            self._log(f"Starting {len(names)} local jobs that wait here: {', '.join(names[:SHOWN])}{more}")
        ensure(self.store)

    def _judge(self, record: JobRecord) -> Verdict:
        """Judge a job by its record and, if it runs or failed, by what the trainer reports."""
        status = read_status(Path(record.folder)) if record.state in (State.FAILED, State.RUNNING) else None
        if status is not None and status.get("job_id") != record.job_id:
            status = None  # of another job, or of a run by hand, which is no job's state
        verdict = judge(record.to_json(), None, status) or Verdict(State.UNKNOWN, "")
        return Verdict(verdict.state, self._waits_for(record)) if verdict == (State.PENDING, "") else verdict

    def _waits_for(self, record: JobRecord) -> str:
        """What keeps a waiting job from starting that is not in this queue; "" for nothing."""
        if not self.store.is_ours(record):
            return f"waits in the queue of {record.user}; -C and --retry queue it here"
        taken = claims.holders({name: record.gpu_ids.get(name, name) for name in record.visible if record.gpus})
        others = [f"{gpu} by {who}" for gpu, who in taken.items() if not who.endswith(f" of {self.store.root.parent}")]
        return f"waits for GPUs in use: {', '.join(others)}" if len(record.visible) - len(others) < record.gpus else ""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make one line of what the file system refuses."""
        try:
            yield
        except OSError as error:
            advice = "make room, or have its owner let you write there"
            raise LaunchError(f"cannot write {self.store.root} ({error}); {advice}.") from error


def _divide(
    gpus_requested: int, environ: Mapping[str, str], *, cpus: int | None = None, cores: int | None = None
) -> dict[str, Any]:
    """Divide this machine among jobs of one kind; returns the values of a `JobRecord`.

    By default GPU jobs run one per GPU (or per group of GPUs), other jobs one per `cpus` cores (None: two). A job that
    requests more GPUs than there are runs on those there are, or on the CPU: one grid serves cluster and laptop.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    visible = _find_gpus(environ)
    gpus = min(gpus_requested, len(visible))
    if gpus < gpus_requested:
        logger.info("%d GPUs requested, this machine has %d: running on those", gpus_requested, len(visible))
    slots = _slots(environ) or (len(visible) if gpus else max(1, cores // (cpus or 2)))
    at_once = max(1, min(slots, len(visible) // gpus if gpus else slots))
    threads = max(1, cores // (at_once * max(1, gpus)))
    grace_s = _grace_s(environ)
    gpu_ids = claims.identify(visible, _listing()) if gpus else {}
    share = {"gpus": gpus, "visible": list(visible), "gpu_ids": gpu_ids}
    return share | {"slots": slots, "threads": threads, "grace_s": grace_s}


def _find_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that may be used: those of CUDA_VISIBLE_DEVICES if set, else those nvidia-smi lists."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = (name.strip() for name in chosen.split(","))
        return tuple(name for name in names if name not in ("", "-1", "NoDevFiles"))
    lines = _listing().splitlines()
    return tuple(str(index) for index in range(sum(line.startswith("GPU ") for line in lines)))


def _listing() -> str:
    """What `nvidia-smi -L` prints; "" without it."""
    program = shutil.which("nvidia-smi")
    return _list_gpus(program) if program else ""


@functools.cache  # a grid needs it for each experiment, and the answer takes a second
def _list_gpus(program: str) -> str:
    listing, failure = run_command([program, "-L"])
    if failure:
        logger.warning("nvidia-smi -L failed (%s): taking this machine as one without GPUs", failure)
    return "" if failure else listing


def _slots(environ: Mapping[str, str]) -> int | None:
    text = environ.get(SLOTS_VARIABLE, "").strip()
    if text and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"{SLOTS_VARIABLE}={text!r} in the environment; give a whole number, at least 1.")
    return int(text) if text else None


def _grace_s(environ: Mapping[str, str]) -> float:
    text = environ.get(GRACE_VARIABLE, "").strip() or "10"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{GRACE_VARIABLE}={text!r} in the environment; give a number of seconds, 0 or more.")
    return seconds

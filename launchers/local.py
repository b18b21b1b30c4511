"""Dora's Shepherd for a machine without a scheduler: experiments become local jobs that outlive the terminal.

It only writes to the book of jobs (`launchers.jobs`) and makes sure that a supervisor looks after it; what
runs is started by `launchers.supervisor` and `launchers.runner`. Job states are SLURM's words, so that
Dora's rules (retry, replace, reuse of finished experiments) hold as they are.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from dora import git_save
from dora.shep import Sheep, Shepherd, _JobArray
from dora.xp import XP

from audiotok.errors import ConfigError, LaunchError
from audiotok.status import JOB_FILE, read_json
from launchers.jobs import JobRecord, JobStore
from launchers.machine import Share, share
from launchers.supervisor import ensure

STOP_S = 20.0  # a killed job must be gone within this time after its grace period


class LocalJob:
    """Handle on a local job, with what Dora and its explorers use of a submitit job."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self.store = store
        self.job_id = job_id

    @property
    def record(self) -> JobRecord | None:
        """The record with its true state; None if it was deleted."""
        return self.store.judge(self.job_id)

    @property
    def state(self) -> str:
        """The state in SLURM's words; MISSING if the record was deleted."""
        record = self.record
        return "MISSING" if record is None else record.state

    def is_done(self) -> bool:
        """True if the job does not wait or run any more; a job asking about itself is told the same."""
        record = self.record
        return record is None or record.is_over or self.job_id == os.environ.get("AUDIOTOK_JOB_ID")

    def cancel(self, check: bool = True) -> None:
        """Stop the job and wait for its end."""
        cancel_jobs(self.store, [self])


class LocalSheep(Sheep):
    """An experiment and its latest local job."""

    def __init__(self, xp: XP, store: JobStore) -> None:
        # Dora's own constructor would unpickle job.pkl; here the job is named by the job.json beside it.
        self.xp = xp
        self._other_jobs = []
        self._dependent_jobs = []
        self.job: LocalJob | None = job_of(xp.folder, store)  # type: ignore[assignment]

    def is_done(self, mode: str = "standard") -> bool:
        """True if no job of this experiment waits or runs."""
        return self.job is None or self.job.is_done()

    def state(self, mode: str = "standard") -> str | None:
        """The state of the latest job, None without one."""
        return None if self.job is None else self.job.state

    def __repr__(self) -> str:
        record = None if self.job is None else self.job.record
        state = self.state() if record is None or not record.reason else f"{record.state} ({record.reason})"
        job_id = "" if self.job is None else f"sid={self.job.job_id}, "
        return f"Sheep({self.xp.sig}, state={state}, {job_id}argv={self.xp.argv})"


class LocalShepherd(Shepherd):
    """Submits experiments to the local queue of `dora.dir`."""

    @property
    def store(self) -> JobStore:
        """The book of local jobs of this Dora folder."""
        return JobStore(Path(self.main.dora.dir) / "local")

    def get_sheep_from_argv(self, argv: Sequence[str]) -> LocalSheep:
        """Return the experiment that these arguments make."""
        return LocalSheep(self.main.get_xp(argv), self.store)

    def get_sheep_from_sig(self, sig: str) -> LocalSheep:
        """Return the experiment of a signature.

        Dora asks this for experiments that left a grid. One that can no longer be composed cannot be
        returned, but its job, if it has one, is cancelled all the same with the next commit.
        """
        try:
            return LocalSheep(self.main.get_xp_from_sig(sig), self.store)
        except Exception:
            job = job_of(Path(self.main.dora.dir) / self.main.dora.xps / sig, self.store)
            if job is not None and not job.is_done():
                self.cancel_lazy(cast(Any, job))
            raise

    def get_sheep_from_job_id(self, job_id: str) -> LocalSheep | None:
        """Return the experiment that a local job belongs to, None if there is no such job."""
        record = self.store.read(job_id)
        return None if record is None else self.get_sheep_from_sig(record.sig)

    def update(self) -> None:
        """Bring back a supervisor that was killed while jobs waited or ran; states are always read afresh."""
        if self.store.unfinished():
            with self.store.submitting():
                ensure(self.store)

    def _check_orphans(self) -> None:
        self.update()

    def _cancel(self, jobs: list[Any]) -> None:
        cancel_jobs(self.store, [job for job in jobs if isinstance(job, LocalJob)])

    def _submit(self, job_array: _JobArray) -> None:
        if not job_array.sheeps:
            return
        asked = job_array.slurm_config
        if asked.gpus < 0:
            raise ConfigError(f"slurm.gpus={asked.gpus}; give 0 or more.")
        # What a job with GPUs asks for is meant for a cluster's node; without GPUs here it gets the usual share.
        portion = share(asked.gpus, os.environ, cpus_wanted=None if asked.gpus else asked.cpus_per_task)
        sheeps = cast(list[LocalSheep], job_array.sheeps)
        with self._code(sheeps), self.store.submitting():
            for sheep in sheeps:
                self._enqueue(sheep, portion)
            ensure(self.store)

    def _enqueue(self, sheep: LocalSheep, portion: Share) -> None:
        """Queue one experiment, unless another command did so since this one looked."""
        xp, name = sheep.xp, self.main.get_name(sheep.xp)
        sheep.job = job_of(xp.folder, self.store)
        if sheep.job is not None and not sheep.job.is_done():
            self.log(f"Job {sheep.job.job_id} already has sheep {xp.sig}/{name}")
            return
        self.main.init_xp(xp)
        xp.rendezvous_file.unlink(missing_ok=True)
        xp._xp_submitit.mkdir(exist_ok=True)
        _point(xp._latest_submitit, xp._xp_submitit)
        job_id = self.store.new_id()
        record = JobRecord(
            job_id=job_id,
            sig=xp.sig,
            folder=str(xp.folder.resolve()),
            log=str(xp._xp_submitit.resolve() / f"{job_id}_0_log.out"),
            cwd=str(Path.cwd()),
            command=self._command(xp, portion),
            gpus=portion.gpus,
            visible=list(portion.visible),
            slots=portion.slots,
            threads=portion.threads,
            grace_s=portion.grace_s,
        )
        self.store.add(record, os.environ)
        _point(self._by_id / job_id, xp.folder.resolve())
        sheep.job = LocalJob(self.store, job_id)
        self.log(f"Scheduled job {job_id} for sheep {xp.sig}/{name}")

    def _command(self, xp: XP, portion: Share) -> list[str]:
        """Return the `dora run` of an experiment; with several GPUs Dora starts one process for each."""
        ddp = ["-d", f"--ddp_workers={portion.gpus}"] if portion.gpus > 1 else []
        module = ["-P", self.main.package, "--main_module", self.main.main_module]
        return [sys.executable, "-m", "dora", *module, "run", *ddp, "--", *xp.argv]

    @contextmanager
    def _code(self, sheeps: Sequence[LocalSheep]) -> Iterator[None]:
        """With `dora.git_save`, stand in a clone of the repository while submitting."""
        if not sheeps[0].xp.dora.git_save:
            yield
            return
        for sheep in sheeps:
            self.main.init_xp(sheep.xp)
        if self._existing_git_clone is None:
            self._existing_git_clone = git_save.get_new_clone(self.main)
        with git_save.enter_clone(self._existing_git_clone):
            for sheep in sheeps:
                git_save.assign_clone(sheep.xp, self._existing_git_clone)
            yield


def job_of(folder: Path, store: JobStore) -> LocalJob | None:
    """Return the latest local job of an experiment folder, None without one."""
    job = read_json(folder / JOB_FILE) or {}
    return LocalJob(store, str(job.get("job_id"))) if job.get("launcher") == "local" else None


def cancel_jobs(store: JobStore, jobs: Sequence[LocalJob]) -> None:
    """Cancel jobs, those waiting before those running, and wait until the last one has stopped.

    Raises:
        LaunchError: if some did not stop; all others are then cancelled nevertheless.
    """
    running = [job.job_id for job in jobs if not _drop(store, job.job_id)]
    for job_id in running:
        store.cancel_mark(job_id).touch()
    patience_s = STOP_S + max((record.grace_s for name in running if (record := store.read(name))), default=0)
    deadline = time.monotonic() + patience_s
    while (alive := [job_id for job_id in running if store.is_held(job_id)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for job_id in set(running) - set(alive):
        store.cancel_mark(job_id).unlink(missing_ok=True)
    if alive:
        raise LaunchError(f"jobs {', '.join(alive)} did not stop in {patience_s:.0f} s; try again.")


def _drop(store: JobStore, job_id: str) -> bool:
    """Cancel a job that nobody runs; False if a runner has it."""
    record = store.read(job_id)
    if record is None or record.is_over:
        return True
    with store.holding(job_id) as held:
        record = store.read(job_id) if held else None
        if held and record is not None and record.state == "PENDING":
            store.finish(record, "CANCELLED", "cancelled before it started")
    return held


def _point(link: Path, target: Path) -> None:
    """Make a symbolic link, replacing one that is there."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)

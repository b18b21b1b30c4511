"""Dora's Shepherd for SLURM, with the corrections that a strict cluster needs.

Against dora 0.1.13: no partition unless one is configured, memory in whole megabytes (`40.0GB` is
rejected), CPUs handed on to srun (not inherited since SLURM 22.05), a failed scancel or squeue that does
not lose the rest of a commit, orphans found by user id (a login name needs a terminal), tokens of
submissions under way left alone, and refusals of SLURM as one line. Scheduling itself is Dora's and
submitit's.
"""

import logging
import math
import os
import shutil
import subprocess as sp
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from dora.conf import SlurmConfig
from dora.shep import Shepherd, _JobArray
from submitit.core.utils import FailedJobError, FailedSubmissionError

from audiotok.errors import ConfigError, LaunchError
from audiotok.status import JOB_FILE, is_locked, read_json, write_json
from launchers.jobs import flock_now

GPUS_PER_NODE = 8
# Fields of SlurmConfig that carry the same name and meaning in sbatch.
_PASSED_ON = ("partition", "comment", "constraint", "exclude", "qos", "account", "setup", "array_parallelism")

logger = logging.getLogger(__name__)


def sbatch_parameters(config: SlurmConfig) -> dict[str, Any]:
    """Turn Dora's SLURM configuration into the parameters of submitit's SlurmExecutor.

    With `gpus: 0` a job is one task on one node without gres, and `mem_per_gpu` and `cpus_per_gpu` are its
    totals.

    Raises:
        ConfigError: if the number of GPUs is negative, or above 8 and not a multiple of 8.
    """
    gpus = config.gpus
    if gpus < 0 or (gpus > GPUS_PER_NODE and gpus % GPUS_PER_NODE):
        raise ConfigError(f"slurm.gpus={gpus}; give 0 to {GPUS_PER_NODE}, or a multiple of {GPUS_PER_NODE}.")
    per_node = max(1, min(gpus, GPUS_PER_NODE))
    tasks_per_node = 1 if config.one_task_per_node else per_node
    cpus = config.cpus_per_task or config.cpus_per_gpu * per_node // tasks_per_node
    parameters: dict[str, Any] = {name: getattr(config, name) for name in _PASSED_ON}
    if config.partition == SlurmConfig().partition:
        del parameters["partition"]  # the default of Dora's authors, a partition of their own cluster
    parameters.update(
        time=int(config.time),
        nodes=max(1, gpus // GPUS_PER_NODE),
        ntasks_per_node=tasks_per_node,
        cpus_per_task=cpus,
        gres=f"gpu:{per_node}" if gpus else None,
        mem=f"{math.ceil(config.mem_per_gpu * per_node * 1024)}M" if config.mem_per_gpu else None,
        nodelist=",".join(config.nodelist or ()),
        srun_args=_srun_args(config, cpus),
        stderr_to_stdout=True,
    )
    return {name: value for name, value in parameters.items() if value not in (None, "", [])}


class SlurmShepherd(Shepherd):
    """Submits experiments with sbatch."""

    def _get_submitit_executor(self, name: str, folder: Path, slurm_config: SlurmConfig) -> submitit.SlurmExecutor:
        executor = submitit.SlurmExecutor(
            folder=folder, max_num_timeout=slurm_config.max_num_timeout, python=slurm_config.python
        )
        executor.update_parameters(job_name=name, **sbatch_parameters(slurm_config))
        return executor

    def _submit(self, job_array: _JobArray) -> None:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise LaunchError("no sbatch or srun on PATH; set AUDIOTOK_LAUNCHER=local to run right here.")
        try:
            super()._submit(job_array)
        except (FailedJobError, FailedSubmissionError, sp.CalledProcessError) as error:
            detail = " ".join(str(error).split())
            raise LaunchError(f"SLURM refused the job: {detail}; correct slurm.* and try again.") from error
        for sheep in job_array.sheeps:
            job = read_json(sheep._json_job_file) or {}
            job.update(launcher="slurm", sig=sheep.xp.sig, submitted=time.time(), log=str(sheep.log))
            write_json(sheep._json_job_file, job)

    def _cancel(self, jobs: list[Any]) -> None:
        """Cancel jobs. scancel goes on after one it may not cancel; what comes after this must go on too.

        A killed job cannot write down its own end, so `job.json` remembers the cancellation for the results.
        """
        failure = _run(["scancel", *(job.job_id for job in jobs)])[1]
        if failure:
            self.log(f"Not all jobs could be cancelled: {failure}")
            return
        for job in jobs:
            path = self._by_id / job.job_id / JOB_FILE
            content = read_json(path)
            if content is not None and content.get("job_id") == job.job_id:
                write_json(path, {**content, "cancelled": time.time()})

    def _check_orphans(self) -> None:
        """Cancel jobs of commands that died between sbatch and writing down its answer."""
        for token in self._orphans.iterdir():
            if is_locked(token):
                continue  # a command is submitting right now
            listing, failure = _run(["squeue", "-h", "-u", str(os.getuid()), "-n", token.name, "-o", "%A"])
            orphans = sorted(set(listing.split()))
            if orphans and not failure:
                logger.warning("cancelling orphaned jobs %s of %s", ", ".join(orphans), token.name)
                failure = _run(["scancel", *orphans])[1]
            if failure:
                logger.warning("could not look after orphans of %s: %s", token.name, failure)
            else:
                token.unlink(missing_ok=True)

    @contextmanager
    def _enter_orphan(self, name: str) -> Iterator[None]:
        """Leave a token while a job is known to SLURM and not yet to us; it stays if that fails half-way."""
        token = self._orphans / name
        with token.open("a", encoding="utf-8") as file:
            try:
                free = flock_now(file)
            except LaunchError:
                free = True  # a filesystem without locks; submitting needs none, it is only less careful
            if not free:
                raise LaunchError(f"another command is submitting {name}; wait for it and look again.")
            yield
            token.unlink(missing_ok=True)


def _srun_args(config: SlurmConfig, cpus: int) -> list[str]:
    """Return arguments for srun: its CPUs, all tasks to end with the first that fails, and the user's own."""
    chdir = config.container_chdir if config.force_chdir is None else config.force_chdir
    container = ["--container-workdir", str(Path.cwd())] if chdir else []
    return [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1", *container, *config.srun_args]


def _run(command: list[str]) -> tuple[str, str]:
    """Run a SLURM command; returns its output and, if it failed, why in one line."""
    try:
        process = sp.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, sp.TimeoutExpired) as error:
        return "", str(error)
    if process.returncode == 0:
        return process.stdout, ""
    return process.stdout, " ".join(process.stderr.split()) or f"{command[0]} exit code {process.returncode}"

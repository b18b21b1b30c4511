"""From a profile to the exact script that sbatch gets, and its submission through submitit.

What differs from submitit's defaults: no pickles (a job finds its task in the submission folder), the CPUs of a task
handed on to srun (not inherited since SLURM 22.05), memory in whole megabytes, all tasks ended with the first that
fails, `--requeue` and `--export=ALL` whatever the site's default.
"""

import functools
import logging
import os
import re
import shlex
import shutil
import subprocess as sp
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from audiotok.errors import LaunchError
from audiotok.launchers.child import run_command
from audiotok.launchers.engine import NoAnswerError
from audiotok.launchers.profile import Profile

MAX_ARRAY_SIZE = 1001  # SLURM's default: jobs of one array, with indices from 0

# In sbatch's message: the controller gave no (sensible) answer, and may have accepted the job nevertheless.
_UNREACHABLE = re.compile(
    r"(?i)unable to contact|timed out|zero bytes|connection|communication|message (?:receive|send)|endpoint|standby"
    r"|holds no id|make sense of"
)

# Variables of a job that this command itself may run in; they would change what the new job requests.
_OF_A_JOB = re.compile(r"SLURM_(?!CONF$|CONF_SERVER$|JWT$|CLUSTERS$|CLUSTER_NAME$)|SBATCH_EXPORT$|SRUN_|PMI")

logger = logging.getLogger(__name__)


def _make_parameters(
    profile: Profile, name: str, *, mem_factor: float = 1.0, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor for a job of this profile, see `make_script`."""
    profile.check()
    shape, memory = profile.shape(), profile.node_mem_mb(mem_factor)
    gres = ":".join(filter(None, ("gpu", profile.gpu_type, str(shape.gpus_per_node))))
    chdir = profile.container_chdir if profile.force_chdir is None else profile.force_chdir
    container = ["--container-workdir", str(Path.cwd())] if chdir else []
    variables = sorted({**profile.environment(), **(environ or {})}.items())
    # What setup lines have put into PYTHONPATH stays, behind ours.
    also = {"PYTHONPATH": "${PYTHONPATH:+:$PYTHONPATH}"}
    exports = [f"export {key}={shlex.quote(value)}{also.get(key, '')}" for key, value in variables]
    parameters: dict[str, Any] = {
        "job_name": name,
        "comment": f"{name} {profile.comment or ''}".strip(),  # sites cut the names of jobs short
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": _joined(profile.exclude),
        "nodelist": _joined(profile.nodelist),
        "time": int(profile.time),
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks_per_node,
        "cpus_per_task": shape.cpus_per_task,
        "gres": gres if shape.gpus_per_node else None,
        "mem": f"{memory}M" if memory else None,
        "setup": [*profile.setup, *exports],
        "array_parallelism": int(profile.array_parallelism),
        "srun_args": [f"--cpus-per-task={shape.cpus_per_task}", "--kill-on-bad-exit=1", *container, *profile.srun_args],
        "stderr_to_stdout": True,
    }
    chosen = {key: value for key, value in parameters.items() if value not in (None, "", [])}
    nice = {} if profile.nice is None else {"nice": int(profile.nice)}
    more = {"export": "ALL", "requeue": True, "signal": f"USR2@{int(profile.signal_s)}", **nice, **profile.sbatch}
    return {**chosen, "wckey": None, "additional_parameters": more}


def make_script(
    profile: Profile,
    name: str,
    folder: Path,
    command: Sequence[str],
    *,
    array: int | None = None,
    mem_factor: float = 1,
    environ: Mapping[str, str] | None = None,
) -> str:
    """The script, to the letter, that `SbatchExecutor.submit` gives to sbatch.

    Args:
        profile: what the job requests.
        name: name of the job; also part of its comment.
        folder: on a filesystem that all nodes see; submitting makes it. Logs go there, as `%j_%t_log.out`, those of an
            array as `%A_%a_%t_log.out`.
        command: words for Python.
        array: number of jobs of the array, None for a single job.
        mem_factor: how many times the memory of the profile, at most its `max_mem_gb`.
        environ: more variables of the job than those of the profile.

    Raises:
        ConfigError: if the profile holds a value that cannot be used.
    """
    parameters = _make_parameters(profile, name, mem_factor=mem_factor, environ=environ)
    return str(_make_sbatch_string(_python_command(profile, command), folder, map_count=array, **parameters))


class Sent(NamedTuple):
    """What sbatch answered."""

    job_id: str  # of the job or of the whole array
    cluster: str = ""  # where it is, if that is another cluster than this one


def send(
    profile: Profile,
    name: str,
    folder: Path,
    command: Sequence[str],
    *,
    array: int | None = None,
    mem_factor: float = 1.0,
    environ: Mapping[str, str] | None = None,
) -> Sent:
    """Submit the script of `make_script`, whose arguments these are.

    Raises:
        ConfigError: if the profile holds a value that cannot be used.
        NoRoomError: if SLURM takes no more jobs now.
        NoAnswerError: if it gave no sensible answer, and may have the job: query squeue by name.
        LaunchError: if SLURM refuses the job, or there is no SLURM here.
    """
    executor = SbatchExecutor(folder, profile, name, mem_factor=mem_factor, environ=environ)
    try:
        return Sent(executor.submit(command, array=array))
    except LaunchError as error:
        if _UNREACHABLE.search(str(error)):
            raise NoAnswerError(str(error)) from error
        raise


class SbatchExecutor(submitit.SlurmExecutor):
    """Submits commands with the resources of a profile; for its arguments see `make_script`.

    Raises:
        ConfigError: if the profile holds a value that cannot be used.
        LaunchError: if there is no SLURM on this machine.
    """

    def __init__(self, folder: Path, profile: Profile, name: str, **more: Any) -> None:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise LaunchError("no sbatch or srun on PATH; set AUDIOTOK_LAUNCHER=local to run right here.")
        super().__init__(folder=folder, max_num_timeout=int(profile.max_num_timeout), python=profile.python)
        self.profile = profile
        self._array: int | None = None
        self._job_id: str | None = None
        self.update_parameters(**_make_parameters(profile, name, **more))

    def submit(self, command: Sequence[str], *, array: int | None = None) -> str:  # type: ignore[override]
        """Submit one job, or an array of so many whose jobs all run this command.

        Returns:
            SLURM's id of the job; those of an array are `ID_0`, `ID_1`, ….

        Raises:
            LaunchError: if SLURM refuses it, or its answer holds no id (then it may have it: query squeue by name).
        """
        self._array, self._job_id = array, None
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        try:
            self._submit_command(_python_command(self.profile, command))
        except (FailedJobError, sp.CalledProcessError) as error:
            text = " ".join(str(error).split())
            raise LaunchError(f"SLURM refused the job: {text}; correct {self.profile.where} and try again.") from error
        except FailedSubmissionError as error:
            raise LaunchError(f"the answer of sbatch holds no id: {' '.join(str(error).split())}") from error
        except OSError as error:
            if self._job_id is None:
                raise
            logger.warning("SLURM has job %s; keeping its script failed: %s", self._job_id, error)
        return str(self._job_id)

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:  # type: ignore[override]
        """Keep the id: a disk that is full after sbatch has answered must not lose the job."""
        self._job_id = super()._get_job_id_from_submission_command(string)
        return self._job_id

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return str(_make_sbatch_string(command=command, folder=self.folder, map_count=self._array, **self.parameters))

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        removed = [word for name in sorted(os.environ) if _OF_A_JOB.match(name) for word in ("-u", name)]
        return [*(["env", *removed] if removed else []), "sbatch", str(submission_file_path)]


def max_array_size(profile: Profile) -> int:
    """How many jobs an array may have: from the profile, else from SLURM, else SLURM's default."""
    if profile.max_array_size is not None:
        return int(profile.max_array_size)
    config = show_config()
    sizes = [config.get("MaxArraySize", "")]
    sizes += re.findall(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    return max(1, min((int(size) for size in sizes if size.isdecimal()), default=MAX_ARRAY_SIZE))


def show_config() -> dict[str, str]:
    """SLURM's own configuration, empty if it does not answer; queried once by a process."""
    program = shutil.which("scontrol")
    return {} if program is None else _show_config(program, os.environ.get("SLURM_CONF", ""))


@functools.cache
def _show_config(program: str, conf: str) -> dict[str, str]:
    listing, failure = run_command([program, "show", "config"], 10.0)
    pairs = (line.partition("=") for line in ([] if failure else listing.splitlines()))
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def _python_command(profile: Profile, words: Sequence[str]) -> str:
    python = profile.python or shlex.quote(sys.executable)  # the profile's may be several words, as of a container
    return f"{python} {shlex.join(words)}"


def _joined(nodes: Sequence[str] | str | None) -> str:
    return nodes if isinstance(nodes, str) else ",".join(nodes or ())

"""From a profile to the exact script that sbatch gets, and its submission.

It requests what the profile does, runs its setup lines, of which none may fail, and starts the tasks with one
`srun`, in a container if the profile has one. The CPUs of a task are handed on to srun (not inherited since SLURM
22.05), all tasks end with the first that fails; `--requeue` and `--export=ALL` hold whatever the site's default.
"""

import functools
import math
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from audiotok.errors import LaunchError
from audiotok.launchers.child import run_command
from audiotok.launchers.engine import NoAnswerError, NoRoomError
from audiotok.launchers.profile import Profile
from audiotok.launchers.slurm.inside import REQUEUE_CODE

MAX_ARRAY_SIZE = 1001  # SLURM's default: jobs of one array, with indices from 0
SEND_S = 180.0  # sbatch itself tries again for two minutes where the queue is full
BACKOFF_S = (2.0, 5.0, 10.0)  # pauses before a submission that SLURM was too busy for is tried again
PATIENCE_S = 30.0  # after that it is not

# In sbatch's message: the controller gave no (sensible) answer, and may have accepted the job nevertheless.
_UNREACHABLE = re.compile(
    r"(?i)unable to contact|timed out|zero bytes|connection|communication|message (?:receive|send)|endpoint|standby"
    r"|no answer within"
)
_BUSY = re.compile(r"(?i)temporarily|try again|rate limit|queue (?:is )?full")
# The reason of a limit stands before the general message, which speaks of size and time, too: `QOSMaxWallDuration…`.
_NO_ROOM = re.compile(rf"{_BUSY.pattern}|\w*Submit\w*Limit|MaxJobCount|too many jobs|(?:job )?submit limit")
_TOO_LARGE = re.compile(r"\b(?:QOS|Assoc|Partition)\w*(?:PerJob|Wall|Time|Node|Cpu|Mem|TRES|GRES)\w*Limit\b")
# Refusals that no other profile would avoid.
_NOT_THE_PROFILE = re.compile(r"(?i)credential|authenti|user id|permission|I/O error|munge|disabled|no space|quota")

# Variables of a job that this command itself may run in; they would change what the new job requests.
_OF_A_JOB = re.compile(r"SLURM_(?!CONF$|CONF_SERVER$|JWT$|CLUSTERS$|CLUSTER_NAME$)|SRUN_|PMI")
_INPUT = re.compile(r"^(?:SBATCH_|SLURM_(?=CLUSTERS$))")
# Options that sbatch reads from SBATCH_NAME where the name is another, and those that are never left open.
_VARIABLES = {"array-inx": "array", "mem-per-node": "mem", "timelimit": "time"}
_NEVER_OPEN = {"array", "error", "get-user-env", "input", "kill-invalid-dep", "no-requeue", "wait"}
_MEMORY = {"mem", "mem-per-cpu", "mem-per-gpu"}  # one of a group decides about all of them
_GPUS = {"cpus-per-gpu", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres"}

# Setup lines may be parts of one command (`if …`, `fi`), so bash itself finds the one that failed: DEBUG keeps the line
# of the command that runs (1 is that of a trap), and is off within sourced files and functions, whose own commands may
# fail.
_GUARD = """\
trap '((LINENO == 1)) || audiotok_line=$LINENO' DEBUG
audiotok_fail() {
  local code=$1 line
  [[ -z ${audiotok_ready-} ]] || return "$code"
  mapfile -t -s $((audiotok_line - 1)) -n 1 line <"$0"
  echo "error: setup line $2 (exit code $code): ${line[0]-}" >&2
  trap - EXIT
  exit $((code ? code : 1))
}
trap 'audiotok_code=$?; [[ ${#BASH_SOURCE[@]} != 1 ]] || audiotok_fail "$audiotok_code" failed' ERR
trap 'audiotok_fail $? "ended the script before the training"' EXIT"""
_READY = "trap - DEBUG ERR\naudiotok_ready=1"
# After srun. Elsewhere the task requests it itself, and sees why it was stopped.
_REQUEUE = f"""\
# In a container there is no scontrol: a task that ends with {REQUEUE_CODE} leaves the requeue of its job to this shell
if ((audiotok_code == {REQUEUE_CODE})); then
  id=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
  id=${{id:-$SLURM_JOB_ID}}
  until shown=$(scontrol show job -o "$id"); do sleep 2; done
  if [[ $shown == *" JobState=RUNNING "* ]]; then scontrol requeue "$id" && sleep 900; fi
fi
exit "$audiotok_code\""""


def _options(profile: Profile, name: str, *, mem_factor: float = 1.0) -> dict[str, Any]:
    """Options of sbatch for a job of this profile by their long names, without those of its files."""
    profile.check()
    shape = profile.shape()
    options: dict[str, Any] = {
        "job-name": name,
        "comment": f"{name} {profile.comment or ''}".strip(),  # sites cut the names of jobs short
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": _joined(profile.exclude),
        "nodelist": _joined(profile.nodelist),
        "nice": None if profile.nice is None else int(profile.nice),
        "time": int(profile.time),
        "nodes": shape.nodes,
        "ntasks-per-node": shape.tasks_per_node,
        "open-mode": "append",
        "export": "ALL",
        "requeue": True,
        "signal": f"USR2@{int(profile.signal_s)}",
    }
    if profile.cpu_option != "none":
        options[profile.cpu_option] = shape.cpus_per_task
    if shape.gpus_per_node and profile.gpu_option != "none":
        number = str(profile.gpus if profile.gpu_option == "gpus" else shape.gpus_per_node)
        kind = "gpu" if profile.gpu_option == "gres" else ""
        options[profile.gpu_option] = ":".join(filter(None, (kind, profile.gpu_type, number)))
    if memory := profile.node_mem_mb(mem_factor):
        option, parts = profile.mem_option, 1
        if option == "mem-per-cpu":
            parts = shape.cpus_per_task * shape.tasks_per_node
        elif option == "mem-per-gpu" and shape.gpus_per_node:
            parts = shape.gpus_per_node
        options["mem" if parts == 1 else option] = f"{math.ceil(memory / parts)}M"
    return {key: value for key, value in options.items() if value not in (None, "")} | profile.sbatch


def make_script(
    profile: Profile,
    name: str,
    folder: Path,
    command: Sequence[str],
    *,
    array: int | None = None,
    mem_factor: float = 1,
    environ: Mapping[str, str] | None = None,
    after: Sequence[str] = (),
) -> str:
    """The script, to the letter, that sbatch gets.

    Args:
        profile: what the job requests.
        name: name of the job; also part of its comment.
        folder: the submission's, `submissions/NAME` in the results folder, which all nodes see. Logs go there, as
            `%j_%t_log.out`, those of an array as `%A_%a_%t_log.out`.
        command: words for Python.
        array: number of jobs of the array, None for a single job.
        mem_factor: how many times the memory of the profile, at most its `max_mem_gb`.
        environ: more variables of the job than those of the profile.
        after: ids of the jobs that must end well before it starts; if one does not, SLURM cancels it.

    Raises:
        ConfigError: if the profile holds a value that cannot be used.
    """
    options = _options(profile, name, mem_factor=mem_factor)
    log = f"{folder}/{'%j' if array is None else '%A_%a'}_%t_log.out"
    options["output"] = log.replace("%t", "0")
    if array is not None:
        options["array"] = f"0-{array - 1}%{min(array, int(profile.array_parallelism))}"
    if after:
        own = str(options.get("dependency") or "")  # of the profile
        options["dependency"] = ",".join(filter(None, (f"afterok:{':'.join(after)}", own)))
        options["kill-on-invalid-dep"] = "yes"
    lines = ["#!/bin/bash", "", "# Parameters"]
    lines += [f"#SBATCH --{k}" + f"={shlex.quote(str(v))}" * (v is not True) for k, v in sorted(options.items())]
    variables = sorted({**profile.environment(), **(environ or {})}.items())
    # What setup lines have put into PYTHONPATH stays, behind ours.
    also = {"PYTHONPATH": "${PYTHONPATH:+:$PYTHONPATH}"}
    exports = [f"export {key}={shlex.quote(value)}{also.get(key, '')}" for key, value in variables]
    if profile.setup or exports:
        lines += ["", "# setup", *([_GUARD, *profile.setup, _READY] if profile.setup else []), *exports]
    words, python = _python(profile, folder)
    cpus = options.get("cpus-per-task")
    words = ["--cpus-per-task=" + str(cpus)] * bool(cpus) + ["--kill-on-bad-exit=1", *words, *profile.srun_args]
    srun = f"{shlex.join(['srun', '--unbuffered', '--output', log, *words])} {python} {shlex.join(command)}"
    lines += ["", "# command", "export SUBMITIT_EXECUTOR=slurm"]
    if profile.container or profile.python:
        lines += ["audiotok_code=0", f"{srun} || audiotok_code=$?", _REQUEUE, ""]
    else:
        lines += [srun, ""]
    return "\n".join(lines)


def open_environment(profile: Profile, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables with which sbatch may fill in what a profile leaves open, such as SBATCH_RESERVATION.

    sbatch prefers its variables to the options of a script, so it gets no others.
    """
    decided = _NEVER_OPEN | _options(profile, "name").keys() | {"output"}
    decided |= _MEMORY if decided & _MEMORY else set()
    decided |= _GPUS if profile.gpu_option != "none" else set()
    found = {}
    for name, value in sorted(environ.items()):
        option = _INPUT.sub("", name).lower().replace("_", "-")
        if _INPUT.match(name) and _VARIABLES.get(option, option) not in decided:
            found[name] = value
    return found


def sbatch_environment(profile: Profile) -> dict[str, str]:
    """The environment of sbatch: ours without the job that we may run in and without what the profile decides."""
    kept = open_environment(profile, os.environ)
    environ = {name: value for name, value in os.environ.items() if not _OF_A_JOB.match(name)}
    return {name: value for name, value in environ.items() if name in kept or not _INPUT.match(name)}


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
    after: Sequence[str] = (),
) -> Sent:
    """Submit the script of `make_script`, whose arguments these are; it stays in the folder as `submission.sh`.

    Raises:
        ConfigError: if the profile holds a value that cannot be used.
        NoRoomError: if SLURM takes no more jobs now.
        NoAnswerError: if it gave no sensible answer, and may have the job: query squeue by name.
        LaunchError: if SLURM refuses the job, or there is no SLURM here.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise LaunchError("no sbatch or srun on PATH; set AUDIOTOK_LAUNCHER=local to run right here.")
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "submission.sh"
    text = make_script(profile, name, folder, command, array=array, mem_factor=mem_factor, environ=environ, after=after)
    script.touch(mode=0o600)  # the results folder may be of many, and setup lines hold what is of one
    script.write_text(text, encoding="utf-8")
    variables, began = sbatch_environment(profile), time.monotonic()
    for pause in (*BACKOFF_S, None):
        output, failure = run_command(["sbatch", "--parsable", str(script)], SEND_S, environ=variables)
        if pause is None or not _BUSY.search(failure) or time.monotonic() > began + PATIENCE_S:
            break
        time.sleep(pause)
    ids = re.findall(r"^(\d+)(?:;(\S*))?\s*$", output, re.MULTILINE)  # wrappers of sites print more than that
    if ids and not failure:
        return Sent(*ids[-1])
    if ids or not failure or _UNREACHABLE.search(failure):
        found = failure or f"no job id in {' '.join(output.split())[:200]!r}"
        raise NoAnswerError(f"the answer of sbatch is unclear: {found}; SLURM may have the job.")
    raise _refusal(profile, failure)


def _refusal(profile: Profile, failure: str) -> LaunchError:
    """The error for an answer of sbatch by which SLURM has not accepted a job."""
    if _NO_ROOM.search(failure) and not _TOO_LARGE.search(failure):
        return NoRoomError(f"SLURM takes no more jobs now: {failure}.")
    advice = "see your administrator" if _NOT_THE_PROFILE.search(failure) else f"correct {profile.file}"
    return LaunchError(f"SLURM refused the job: {failure}; {advice} and try again.")


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


def _python(profile: Profile, folder: Path) -> tuple[list[str], str]:
    """Arguments of srun and the command that start Python, in the container of the profile if it has one."""
    here, chdir = str(Path.cwd()), profile.container_chdir if profile.force_chdir is None else profile.force_chdir
    workdir = ["--container-workdir", here]
    if not profile.container:  # the profile's Python may be several words
        return workdir if chdir else [], profile.python or shlex.quote(sys.executable)
    image, runtime = str(profile.container["image"]), profile.container.get("runtime")
    of_enroot = image.endswith(".sqsh") or ("#" in image and "://" not in image)
    folders = (here, str(folder.parents[1]), *profile.dataset_paths.values(), *(profile.container.get("mounts") or ()))
    mounts, python = list(dict.fromkeys(folders)), profile.python or "python3"
    if runtime == "pyxis" or (of_enroot and not runtime):
        pairs = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
        return ["--container-image", image, "--container-mounts", pairs, *workdir], python
    binds = [word for mount in mounts for word in ("--bind", mount)]
    words = ["exec", *["--nv"] * bool(profile.gpus), *binds, "--pwd", here, image]
    start = runtime or "$(command -v apptainer || command -v singularity || echo apptainer)"
    return [], f"{start} {shlex.join(words)} {python}"


def _joined(nodes: Sequence[str] | str | None) -> str:
    return nodes if isinstance(nodes, str) else ",".join(nodes or ())

"""Runs one task of a SLURM job and records how it goes: `srun … python -u -m ….slurm.inside TOKEN_FOLDER`.

Each task of `srun` is the parent of one training process (a rank) and keeps `task.json` in the folder of the
experiment, so that a state is known without `sacct`: rank 0 writes it, another rank only that it failed. SIGUSR2 comes
from SLURM ahead of the time limit, SIGTERM with scancel and preemption; both reach the child as one SIGTERM, on which
it writes a checkpoint. At the time limit rank 0 then has the job queued again. A job whose experiment has another job
by now refuses to start. Standard library only.
"""

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiotok.files import read_json, read_text, write_json
from audiotok.launchers import child
from audiotok.launchers.slurm.submissions import SUBMISSION_FILE, TASKS_FILE, WITHDRAWN, claim, is_superseded
from audiotok.status import JOB_FILE, TASK_FILE, State, same_job
from audiotok.status.judge import unmet

CAUSES = {signal.SIGUSR2: "TIMEOUT", signal.SIGTERM: "PREEMPTED", signal.SIGINT: "CANCELLED"}
POLL_S = 1.0
BEAT_S = 15.0
RESERVE_S = 15.0  # of these, kept to request the requeue
LINGER_S = 900.0  # a task that has stopped stays so long
SEEN_S = 90.0  # what another node has written is seen within this time
REFUSED = 4  # exit code of a job that must not start
COMMAND_S = 60.0  # SLURM's commands get so long within a job
REQUEUE_CODE = 200  # exit code with which a task in a container leaves the requeue to the script of its job
CONTROLLER_S = 900.0  # the requeue is tried again for so long while the controller does not answer


@dataclass(frozen=True)
class JobEnvironment:
    """Where in which job this task is."""

    job_id: str  # `A_i` in an array, else `J`; what SLURM is queried by
    raw_id: str  # as SLURM numbers it; of the last task it is the id of the whole array, so it is used in no query
    index: int  # line of `tasks.jsonl`
    rank: int
    world_size: int
    local_rank: int  # on its node
    attempt: int  # how many times the job was queued again before
    nodes: str  # in SLURM's notation

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "JobEnvironment":
        """Read what `srun` passes to a task; KeyError if this is none."""
        raw_id, index = environ["SLURM_JOB_ID"], environ.get("SLURM_ARRAY_TASK_ID", "")
        return cls(
            job_id=f"{environ['SLURM_ARRAY_JOB_ID']}_{index}" if index else raw_id,
            raw_id=raw_id,
            index=int(index or 0),
            rank=int(environ["SLURM_PROCID"]),
            world_size=int(environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"]),
            local_rank=int(environ["SLURM_LOCALID"]),
            attempt=int(environ.get("SLURM_RESTART_COUNT") or 0),
            nodes=environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"],
        )

    @property
    def port(self) -> int:
        """Port of the rendezvous: the same for all ranks, another for the next job and the next attempt."""
        return 12000 + (int(self.raw_id) + 7001 * self.attempt) % 20000  # below those that Linux gives to clients


class TaskFile:
    """Keeps the `task.json` in the folder of an experiment. What cannot be written is reported once on stderr."""

    def __init__(self, folder: Path, here: JobEnvironment, token: str) -> None:
        self.folder, self.here, self.token, self.path = folder, here, token, folder / TASK_FILE
        before = read_json(self.path) or {}
        self._beaten = float("-inf")
        self._failure = ""
        self._fields: dict[str, Any] = {"job_id": here.job_id, "token": token, "attempt": here.attempt}
        self.timeouts = int(before.get("timeouts") or 0) if same_job(before, self._fields) else 0
        self._fields |= {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._fields |= {"state": "RUNNING", "reason": "", "timeouts": self.timeouts}
        self._fields |= {"updated": None, "ended": None, "exit_code": None}

    def beat(self) -> None:
        """Write a heartbeat, every `BEAT_S`; rank 0 only."""
        if self.here.rank == 0 and time.monotonic() - self._beaten >= BEAT_S:
            self._beaten = time.monotonic()
            self._write()

    def end(self, ended: child.Outcome) -> None:
        """Write how the job ended; of several ranks the first that failed is kept."""
        reason = ended.reason if self.here.rank == 0 else f"rank {self.here.rank}: {ended.reason}"
        self._fields.update(state=ended.state, reason=reason, exit_code=ended.exit_code)
        self._fields.update(ended=time.time(), timeouts=self.timeouts)
        self._write()

    def has_ended(self, *states: str) -> bool:
        """True if some rank has written an end of this attempt, other than these."""
        now = read_json(self.path) or {}
        ours = all(now.get(key) == self._fields[key] for key in ("job_id", "token", "attempt"))
        return ours and now.get("ended") is not None and now.get("state") not in states

    def is_cancelled(self) -> bool:
        """True if one of our commands has cancelled this job."""
        job = read_json(self.folder / JOB_FILE) or {}
        return same_job(job, self._fields) and "cancelled" in job

    def _write(self) -> None:
        now = read_json(self.path) or {}
        if self.has_ended() and (now.get("host"), now.get("pid")) != (self._fields["host"], self._fields["pid"]):
            return  # another rank failed first
        self._fields["updated"] = time.time()
        try:
            write_json(self.path, self._fields, sync=self._fields["ended"] is not None)
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                _log(f"cannot write {self.path} ({error}); the run continues without")


def main(folder: Path) -> int:
    """Run the task of this process; returns its exit code."""
    signals = child.Signals(CAUSES)
    here = JobEnvironment.of(os.environ)
    try:
        task = json.loads(read_text(folder / TASKS_FILE).splitlines()[here.index])
    except (OSError, ValueError, IndexError) as error:
        _log(f"cannot read line {here.index} of {folder / TASKS_FILE} ({error}); submit the experiment again")
        return 2
    submission = read_json(folder / SUBMISSION_FILE) or {}
    if refusal := _refusal(folder, submission, task, here):
        _log(f"job {here.job_id} does not start {task['folder']}: {refusal}")
        return REFUSED
    profile = submission.get("profile") or {}
    task_file = TaskFile(Path(task["folder"]), here, folder.name)
    if blocked := _blocked(task_file.folder, task.get("needs") or {}):
        task_file.end(child.Outcome(State.BLOCKED, blocked, REFUSED))
        _log(f"job {here.job_id} does not start {task['folder']}: {blocked}")
        return REFUSED
    task_file.beat()
    ended, signalled = _run(task, signals, task_file, profile), signals.count
    if ended.state in ("TIMEOUT", "PREEMPTED") and here.rank == 0:
        ended = _settle(ended, task_file, int(profile.get("max_num_timeout", 0)))
    if here.rank == 0 or ended.state in ("FAILED", "OUT_OF_MEMORY"):
        task_file.end(ended)
    if here.rank == 0 and ended.state in ("REQUEUED", "PREEMPTED") and shutil.which("scontrol") is None:
        return REQUEUE_CODE
    if here.rank and ended.state in CAUSES.values():
        # The first to leave with an error makes srun end the others: that is for rank 0 to do, after its checkpoint.
        _linger(
            signals, lambda: task_file.has_ended("REQUEUED") or (signals.count > signalled and task_file.has_ended())
        )
    elif ended.state == "REQUEUED":
        _linger(signals, lambda: signals.count > signalled)  # leaving before SLURM ends it could end the job
    code = ended.exit_code or 0
    return 128 - code if code < 0 else code


def _refusal(folder: Path, submission: Mapping[str, Any], task: Mapping[str, Any], here: JobEnvironment) -> str:
    """Why this job must not run its task, "" if it may: two jobs of one experiment must never run at once."""
    claimed = job_id = here.job_id.split("_")[0]
    recorded = submission.get("job_id") or job_id
    try:
        if recorded == job_id:
            claimed = claim(folder, f"{job_id};{os.environ.get('SLURM_CLUSTER_NAME', '')}").partition(";")[0]
    except OSError as error:
        _log(f"cannot write into {folder} ({error}); the run continues without")
    if claimed == WITHDRAWN:
        return "its submission was withdrawn, as SLURM did not list this job when a later command looked for it"
    if {recorded, claimed} != {job_id}:
        return f"SLURM has taken its submission twice, also as job {recorded if claimed == job_id else claimed}"
    job = read_json(Path(task["folder"]) / JOB_FILE) or {}
    return f"it was submitted again, as job {job.get('job_id')}" if is_superseded(task, folder.name, job) else ""


def _blocked(folder: Path, needs: Iterable[str]) -> str:
    """Why an experiment cannot begin for want of those that it needs, whose jobs have ended; "" if it can."""
    deadline = time.monotonic() + SEEN_S
    while (held := unmet(folder, needs)) and held.state.live and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if held and held.state.live:
        return f"what it needs is not complete, though its job ended well: {held.reason.removeprefix('for ')}"
    return held.reason if held else ""


def _run(
    task: Mapping[str, Any], signals: child.Signals, task_file: TaskFile, profile: Mapping[str, Any]
) -> child.Outcome:
    folder, here, began, killed = task_file.folder, task_file.here, time.time(), child.oom_kills()
    signal_s = float(profile.get("signal_s") or 120.0)
    grace_s = {"TIMEOUT": max(signal_s - RESERVE_S, signal_s / 2)}  # other stops end with SIGKILL from SLURM
    try:
        if here.rank == 0:
            (folder / "rendezvous.txt").unlink(missing_ok=True)  # of an earlier attempt, if Dora was to use one
        command = list(task["command"])
        if command[0] == task.get("python"):  # of the submitter; in a container ours is another
            command[0] = sys.executable
        environ = _environment(os.environ, here, folder, task_file.token)
        process = child.start(command, environ=environ, cwd=task["cwd"])
    except OSError as error:
        return child.Outcome("FAILED", f"could not be started: {error}", 1)
    cause = child.attend(
        [process], signals, poll=task_file.beat, poll_s=POLL_S, grace_s=lambda cause: grace_s.get(cause, float("inf"))
    )
    log, oom_killed = Path("/proc/self/fd/1").resolve(), child.oom_kills() > killed  # our output, often not a file
    log_file = log if log.is_file() else None
    return child.outcome(process.returncode, cause, folder=folder, log=log_file, began=began, oom_killed=oom_killed)


def _environment(environ: Mapping[str, str], here: JobEnvironment, folder: Path, token: str) -> dict[str, str]:
    address = "127.0.0.1" if here.world_size == 1 else _address_of(_first_node(here.nodes))
    rank = child.rank_environment(here.rank, here.world_size, here.local_rank, address, here.port)
    identity = {"AUDIOTOK_LAUNCHER": "slurm", "AUDIOTOK_JOB_ID": here.job_id, "AUDIOTOK_JOB_TOKEN": token}
    return {**environ, "PYTHONUNBUFFERED": "1", **rank, **identity, **child.frozen_environment(folder)}


def _first_node(nodes: str) -> str:
    """The first of nodes in SLURM's notation: `n01` of `n[01-04,7]-ib,m1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _address_of(node: str) -> str:
    """Where the others reach a node: its name, or the address that SLURM knows if the name does not resolve."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", "-o", node)[0])
        return found[1] if found else node
    return node


def _settle(ended: child.Outcome, task_file: TaskFile, max_timeouts: int) -> child.Outcome:
    """Find out who stopped the job, and have it queued again if it was the time limit."""
    if task_file.is_cancelled():
        return ended._replace(state="CANCELLED", reason=child.STOPPED["CANCELLED"])
    if task_file.has_ended():
        return ended  # another rank failed, and srun ends the others for it
    if ended.state == "PREEMPTED":
        shown, _ = _scontrol("show", "job", "-o", task_file.here.job_id)
        state = _stopped_by(shown, task_file.here.attempt)
        if state == "CANCELLED":
            return ended._replace(state=state, reason="cancelled with scancel")
        if state == "PREEMPTED":
            # A partition with a GraceTime: SLURM takes a job that leaves within it for one that has ended.
            in_grace = "JobState=RUNNING" in shown.split()
            return _requeue(ended, child.requeued(ended), task_file) if in_grace else ended
        reason = ended.reason.replace(child.STOPPED["PREEMPTED"], child.STOPPED[state])
        ended = ended._replace(state=state, reason=reason)
    again = child.at_time_limit(ended, task_file.timeouts, max_timeouts)
    if again.state != "REQUEUED":
        return again
    task_file.timeouts += 1
    settled = _requeue(ended, again, task_file)
    task_file.timeouts -= settled.state != "REQUEUED"
    return settled


def _requeue(ended: child.Outcome, again: child.Outcome, task_file: TaskFile) -> child.Outcome:
    """Have a job queued again that has written its checkpoint, however long the controller is away.

    Returns `again`, or how it has `ended` after all; a job that is cancelled meanwhile stays cancelled.
    """
    task_file.end(again)  # first, as SLURM may end us while it answers
    if shutil.which("scontrol") is None:
        return again
    here, deadline, requested = task_file.here, time.monotonic() + CONTROLLER_S, False
    while True:
        shown, failure = _scontrol("show", "job", "-o", here.job_id)
        stopping = not failure and _stopped_by(shown, here.attempt) == "CANCELLED"
        if task_file.is_cancelled() or (stopping and not requested):
            return ended._replace(state="CANCELLED", reason=f"cancelled when it had {ended.reason}")
        if stopping:
            return again  # on its way to the queue, though the answer to our request was lost
        requested = requested or not failure
        failure = failure or _scontrol("requeue", here.job_id)[1]
        if not failure:
            return again
        answers = not _scontrol("ping")[1]
        if answers or time.monotonic() > deadline:
            return ended._replace(reason=f"{ended.reason}; could not be queued again: {failure}")
        time.sleep(2.0)


def _stopped_by(shown: str, attempt: int) -> str:
    """Find in `scontrol show job` what ended a job with SIGTERM; PREEMPTED if nothing else is found."""
    fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if fields.get("Reason") == "TimeLimit":
        return "TIMEOUT"
    stopping = fields.get("JobState") in ("COMPLETING", "CANCELLED") and fields.get("PreemptTime", "None") == "None"
    queued_again = fields.get("Restarts", str(attempt)) != str(attempt)
    return "CANCELLED" if stopping and not queued_again else "PREEMPTED"


def _scontrol(*words: str) -> tuple[str, str]:
    return child.run_command(["scontrol", *words], COMMAND_S)


def _linger(signals: child.Signals, over: Callable[[], bool]) -> None:
    """Wait for what makes this task leave; SLURM may end it before."""
    deadline = time.monotonic() + LINGER_S
    while not over() and time.monotonic() < deadline:
        signals.sleep(POLL_S)


def _log(message: str) -> None:
    sys.stderr.write(f"audiotok.launchers.slurm.inside: {message}.\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))

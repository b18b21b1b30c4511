"""Runs one task of a SLURM job and writes down how it goes: `srun … python -u -m launchers.task TOKEN_FOLDER`.

Each task of `srun` is the parent of one training process (a rank). It reads its line of `tasks.jsonl`, tells the child
its rank, and keeps `task.json` in the folder of the experiment: a start, a heartbeat, an end and its reason. So a state
is known without `sacct`. That file is written by rank 0; another rank writes in it only that it failed.

SIGUSR2 comes from SLURM ahead of the time limit, SIGTERM with scancel and preemption. Both reach the child as one
SIGTERM, on which it writes a checkpoint. At the time limit rank 0 then has the job queued again, `max_num_timeout`
times; it continues where it was. A disk that cannot be written costs the markers, not the run. Standard library only.
"""

import json
import os
import re
import signal
import socket
import subprocess as sp
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiotok.status import JOB_FILE, read_json, write_json
from launchers.process import Signals, Verdict, attend, frozen_environment, oom_kills, rank_environment, start, verdict

TASK_FILE = "task.json"
TASKS_FILE, SUBMISSION_FILE = "tasks.jsonl", "submission.json"
CAUSES = {signal.SIGUSR2: "TIMEOUT", signal.SIGTERM: "PREEMPTED", signal.SIGINT: "CANCELLED"}
BEAT_S = 15.0
POLL_S = 1.0
SIGNAL_S = 120.0  # before the time limit, if the submission does not tell
RESERVE_S = 15.0  # of these, kept to ask for the requeue
PATIENCE_S = (
    900.0  # a controller that does not answer is asked again for so long, a task that has stopped stays so long
)
ASK_S = 2.0
_CANCELLED = "it was cancelled"
FIRST_PORT, PORTS = 12000, 20000  # below the ports that Linux gives to clients


@dataclass(frozen=True)
class Place:
    """Where in which job this task is.

    Attributes:
        job_id: `A_i` in an array, else `J`; what SLURM is asked by.
        raw_id: as SLURM numbers it; that of the last task is the id of the whole array, so nothing is asked by it.
        index: line of `tasks.jsonl`.
        rank: of `world_size` tasks, and `local_rank` on its node.
        attempt: how many times the job was queued again before.
        nodes: list of its nodes, in SLURM's notation.
    """

    job_id: str
    raw_id: str
    index: int
    rank: int
    world_size: int
    local_rank: int
    attempt: int
    nodes: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Place":
        """Read what `srun` tells a task; KeyError if this is none."""
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
        return FIRST_PORT + (int(self.raw_id) + 7001 * self.attempt) % PORTS


class Marker:
    """The `task.json` of an experiment. What cannot be written is told once on stderr.

    Args:
        folder: of the experiment.
        place: this task.
        token: name of its submission.
    """

    def __init__(self, folder: Path, place: Place, token: str) -> None:
        self.path = folder / TASK_FILE
        before = read_json(self.path) or {}
        ours = before.get("job_id") == place.job_id
        self.timeouts = int(before.get("timeouts") or 0) if ours else 0
        self._rank = place.rank
        self._beaten = float("-inf")
        self._failure = ""
        self._fields: dict[str, Any] = {
            "job_id": place.job_id,
            "token": token,
            "attempt": place.attempt,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
            "updated": None,
            "ended": None,
            "state": "RUNNING",
            "reason": "",
            "exit_code": None,
            "timeouts": self.timeouts,
        }

    def beat(self) -> None:
        """Say that the job is alive, every `BEAT_S`; rank 0 only."""
        if self._rank == 0 and time.monotonic() - self._beaten >= BEAT_S:
            self._beaten = time.monotonic()
            self._write()

    def end(self, ended: Verdict) -> None:
        """Say how the job ended; of several ranks the first that failed is heard."""
        reason = ended.reason if self._rank == 0 else f"rank {self._rank}: {ended.reason}"
        self._fields.update(state=ended.state, reason=reason, exit_code=ended.exit_code, ended=time.time())
        self._fields["timeouts"] = self.timeouts
        self._write()

    def has_ended(self, *states: str) -> bool:
        """Tell whether some rank has written an end of this attempt, other than these."""
        now = read_json(self.path) or {}
        ours = all(now.get(key) == self._fields[key] for key in ("job_id", "attempt"))
        return ours and now.get("ended") is not None and now.get("state") not in states

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
                tell(f"cannot write {self.path} ({error}); the run goes on without")


def main(folder: Path) -> int:
    """Run the task of this process; returns its exit code."""
    signals = Signals(CAUSES)
    place = Place.of(os.environ)
    submission = read_json(folder / SUBMISSION_FILE) or {}
    try:
        with (folder / TASKS_FILE).open(encoding="utf-8") as lines:
            task = json.loads(lines.read().splitlines()[place.index])
    except (OSError, ValueError, IndexError) as error:
        tell(f"cannot read line {place.index} of {folder / TASKS_FILE} ({error}); submit the experiment again")
        return 2
    experiment, profile = Path(task["folder"]), submission.get("profile") or {}
    marker = Marker(experiment, place, folder.name)
    marker.beat()
    ended, heard = run(task, place, signals, marker, profile), signals.count
    if ended.state in ("TIMEOUT", "PREEMPTED") and place.rank == 0:
        ended = settle(ended, place, marker, experiment, profile)
    if place.rank == 0 or ended.state in ("FAILED", "OUT_OF_MEMORY"):
        marker.end(ended)
    if place.rank and ended.state in CAUSES.values():
        # The first to leave with an error makes srun end the others: that is for rank 0 to do, after its checkpoint.
        linger(signals, lambda: marker.has_ended("REQUEUED") or (signals.count > heard and marker.has_ended()))
    elif ended.state == "REQUEUED":
        linger(signals, lambda: signals.count > heard)
    code = ended.exit_code or 0
    return 128 - code if code < 0 else code


def run(task: Mapping[str, Any], place: Place, signals: Signals, marker: Marker, profile: Mapping[str, Any]) -> Verdict:
    """Run the training process of this rank to its end."""
    folder, began, killed = Path(task["folder"]), time.time(), oom_kills()
    signal_s = float(profile.get("signal_s") or SIGNAL_S)
    grace_s = {"TIMEOUT": max(signal_s - RESERVE_S, signal_s / 2)}  # other stops end with SIGKILL from SLURM

    try:
        if place.rank == 0:
            (folder / "rendezvous.txt").unlink(missing_ok=True)  # of an earlier attempt, if Dora was told to use one
        child = start(task["command"], environ=environment(os.environ, place, folder), cwd=task["cwd"])
    except OSError as error:
        return Verdict("FAILED", f"could not be started: {error}", 1)
    cause = attend(
        [child], signals, look=marker.beat, poll_s=POLL_S, grace_s=lambda cause: grace_s.get(cause, float("inf"))
    )
    return verdict(child.returncode, cause, folder=folder, log=own_log(), began=began, oom_killed=oom_kills() > killed)


def environment(environ: Mapping[str, str], place: Place, folder: Path) -> dict[str, str]:
    """Return the environment of the training process: ours, its rank, its job and its frozen configuration."""
    address = "127.0.0.1" if place.world_size == 1 else address_of(first_node(place.nodes))
    rank = rank_environment(place.rank, place.world_size, place.local_rank, address, place.port)
    identity = {"AUDIOTOK_LAUNCHER": "slurm", "AUDIOTOK_JOB_ID": place.job_id}
    return {**environ, "PYTHONUNBUFFERED": "1", **rank, **identity, **frozen_environment(folder)}


def first_node(nodes: str) -> str:
    """Return the first name of a list of nodes; SLURM takes its notation apart."""
    listing, _ = ask(["scontrol", "show", "hostnames", nodes])
    return (listing.split() or [nodes])[0]


def address_of(node: str) -> str:
    """Return what the others reach a node by: its name, or the address that SLURM knows if the name means nothing."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        shown, _ = ask(["scontrol", "show", "node", "-o", node])
        found = re.search(r"\bNodeAddr=(\S+)", shown)
        return found[1] if found else node
    return node


def settle(ended: Verdict, place: Place, marker: Marker, folder: Path, profile: Mapping[str, Any]) -> Verdict:
    """Find out who stopped the job, and have it queued again if it was the time limit."""
    if "cancelled" in _job(folder, place):
        return ended._replace(state="CANCELLED", reason="cancelled while it was running")
    if marker.has_ended():
        return ended  # another rank failed, and srun ends the others for it
    if ended.state == "PREEMPTED":
        shown = ask(["scontrol", "show", "job", "-o", place.job_id])[0]
        ended = ended._replace(state=stopped_by(shown, place.attempt))
        if ended.state == "PREEMPTED" and "JobState=RUNNING" in shown.split():
            # A partition with a GraceTime: SLURM takes a job that leaves within it for one that has ended.
            return _queue_again(ended, place, marker, folder, ended.reason)
    if ended.state == "CANCELLED":
        return ended._replace(reason="cancelled with scancel")
    if ended.state != "TIMEOUT":
        return ended
    ended = ended._replace(reason=ended.reason.replace("told to end from outside", "reached its time limit"))
    most = int(profile.get("max_num_timeout", 0))
    if marker.timeouts >= most:
        return ended._replace(reason=f"{ended.reason}, after {most} times more time" if most else ended.reason)
    marker.timeouts += 1
    settled = _queue_again(ended, place, marker, folder, f"{ended.reason} ({marker.timeouts} of {most})")
    if settled.state != "REQUEUED":
        marker.timeouts -= 1
    return settled


def _queue_again(ended: Verdict, place: Place, marker: Marker, folder: Path, reason: str) -> Verdict:
    """Have a job queued again that has written its checkpoint; the verdict says whether that went well."""
    queued = ended._replace(state="REQUEUED", reason=f"{reason}; queued again to go on")
    marker.end(queued)  # first, as SLURM may end us while it answers
    failure = requeue(place, lambda: "cancelled" in _job(folder, place))
    if not failure:
        return queued
    if failure == _CANCELLED:
        return ended._replace(state="CANCELLED", reason=f"cancelled when it had {ended.reason}")
    return ended._replace(reason=f"{ended.reason}; could not be queued again: {failure}")


def stopped_by(shown: str, attempt: int) -> str:
    """Tell from `scontrol show job` what ended a job with SIGTERM; PREEMPTED if it does not tell."""
    told = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if told.get("Reason") == "TimeLimit":
        return "TIMEOUT"
    stopping = told.get("JobState") in ("COMPLETING", "CANCELLED") and told.get("PreemptTime", "None") == "None"
    queued_again = told.get("Restarts", str(attempt)) != str(attempt)
    return "CANCELLED" if stopping and not queued_again else "PREEMPTED"


def requeue(place: Place, cancelled: Callable[[], bool], patience_s: float = PATIENCE_S) -> str:
    """Have a job queued again, however long the controller is away; returns why it is not, "" if it is.

    A job that somebody cancels meanwhile stays cancelled.
    """
    deadline = time.monotonic() + patience_s
    asked = False
    while True:
        shown, failure = ask(["scontrol", "show", "job", "-o", place.job_id])
        stopping = not failure and stopped_by(shown, place.attempt) == "CANCELLED"
        if cancelled() or (stopping and not asked):
            return _CANCELLED
        if stopping:
            return ""  # on its way to the queue, though the answer to our question was lost
        asked = asked or not failure
        if not failure and not (failure := ask(["scontrol", "requeue", place.job_id])[1]):
            return ""
        answers = not ask(["scontrol", "ping"])[1]
        if answers or time.monotonic() > deadline:
            return failure
        time.sleep(ASK_S)


def linger(signals: Signals, over: Callable[[], bool]) -> None:
    """Wait for what makes this task leave; SLURM ends it before that if it likes."""
    deadline = time.monotonic() + PATIENCE_S
    while not over() and time.monotonic() < deadline:
        signals.sleep(POLL_S)


def ask(command: list[str]) -> tuple[str, str]:
    """Run a SLURM command; returns its output and, if it failed, why in one line."""
    try:
        process = sp.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, sp.TimeoutExpired) as error:
        return "", str(error)
    if process.returncode == 0:
        return process.stdout, ""
    return process.stdout, " ".join(process.stderr.split()) or f"{command[0]} exit code {process.returncode}"


def own_log() -> Path | None:
    """Return the file that our output goes to, None if it is not a file."""
    try:
        path = Path("/proc/self/fd/1").readlink()
    except OSError:
        return None
    return path if path.is_file() else None


def tell(words: str) -> None:
    """Say something in the log of the job."""
    sys.stderr.write(f"launchers.task: {words}.\n")
    sys.stderr.flush()


def _job(folder: Path, place: Place) -> dict[str, Any]:
    job = read_json(folder / JOB_FILE) or {}
    return job if job.get("job_id") == place.job_id else {}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))

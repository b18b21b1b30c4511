"""Runs one task of a SLURM job and writes down how it goes: `srun … python -u -m ….slurm.inside TOKEN_FOLDER`.

Each task of `srun` is the parent of one training process (a rank). It reads its line of `tasks.jsonl`, tells the child
its rank, and keeps `task.json` in the folder of the experiment: a start, a heartbeat, an end and its reason. So a state
is known without `sacct`. That file is written by rank 0; another rank writes in it only that it failed.

SIGUSR2 comes from SLURM ahead of the time limit, SIGTERM with scancel and preemption. Both reach the child as one
SIGTERM, on which it writes a checkpoint. At the time limit rank 0 then has the job queued again, `max_num_timeout`
times; it continues where it was. A disk that cannot be written costs the markers, not the run. Standard library only.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from audiotok.launchers.job.marker import Marker, tell
from audiotok.launchers.job.place import Place, address_of, first_node
from audiotok.launchers.job.process import Signals, attend, frozen_environment, rank_environment, start
from audiotok.launchers.job.stopped import settle
from audiotok.launchers.job.verdict import Outcome, oom_kills, verdict
from audiotok.launchers.slurm.submission import SUBMISSION_FILE, TASKS_FILE
from audiotok.status import read_json

CAUSES = {signal.SIGUSR2: "TIMEOUT", signal.SIGTERM: "PREEMPTED", signal.SIGINT: "CANCELLED"}
POLL_S = 1.0
SIGNAL_S = 120.0  # before the time limit, if the submission does not tell
RESERVE_S = 15.0  # of these, kept to ask for the requeue
PATIENCE_S = 900.0  # a task that has stopped stays so long


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


def run(task: Mapping[str, Any], place: Place, signals: Signals, marker: Marker, profile: Mapping[str, Any]) -> Outcome:
    """Run the training process of this rank to its end."""
    folder, began, killed = Path(task["folder"]), time.time(), oom_kills()
    signal_s = float(profile.get("signal_s") or SIGNAL_S)
    grace_s = {"TIMEOUT": max(signal_s - RESERVE_S, signal_s / 2)}  # other stops end with SIGKILL from SLURM

    try:
        if place.rank == 0:
            (folder / "rendezvous.txt").unlink(missing_ok=True)  # of an earlier attempt, if Dora was told to use one
        child = start(task["command"], environ=environment(os.environ, place, folder), cwd=task["cwd"])
    except OSError as error:
        return Outcome("FAILED", f"could not be started: {error}", 1)
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


def linger(signals: Signals, over: Callable[[], bool]) -> None:
    """Wait for what makes this task leave; SLURM ends it before that if it likes."""
    deadline = time.monotonic() + PATIENCE_S
    while not over() and time.monotonic() < deadline:
        signals.sleep(POLL_S)


def own_log() -> Path | None:
    """Return the file that our output goes to, None if it is not a file."""
    try:
        path = Path("/proc/self/fd/1").readlink()
    except OSError:
        return None
    return path if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))

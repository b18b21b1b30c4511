"""`audiotok doctor --try`: a real job through the very profile, which reports how far it comes.

The job goes the way of every other: script, setup lines, container, output folder, signal ahead of the time limit. It
ends itself after that signal, about half a minute after its start.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from audiotok.errors import LaunchError
from audiotok.files import read_json, write_json
from audiotok.launchers.child import last_error
from audiotok.launchers.engine import Check, Engine, Job, Level, Task
from audiotok.launchers.profile import Profile
from audiotok.status import TASK_FILE, State

QUEUE_S, RUN_S, POLL_S = 300.0, 300.0, 2.0  # patience with the queue and with the job
TIME_MIN, SIGNAL_S = 5, 150.0  # time limit of the job, and how long it waits for the signal
REPORT_FILE = "trial.json"


def try_job(open_engine: Callable[[Path], Engine], profile: Profile, root: Path) -> Iterator[Check]:
    """Submit a job of the profile, but for its time, follow it, and cancel it if it does not end.

    It gets a folder of its own in the results folder `root`, and the engine of that; it stays if something fails.

    Raises:
        LaunchError: if the job could not be cancelled.
    """
    root.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root)).absolute()
    experiment = home / "xps" / "trial"
    experiment.mkdir(parents=True)
    engine = open_engine(home)
    minutes = min(int(profile.time), TIME_MIN)
    # So the signal comes as soon as SLURM looks at time limits, twice a minute.
    short = replace(profile, time=minutes, signal_s=60 * minutes - 1, max_num_timeout=0)
    command = (sys.executable, "-u", "-m", "audiotok.launchers.slurm.trial", str(experiment))
    try:
        (job,) = engine.submit([Task("trial", "doctor --try", experiment, command, Path.cwd())], short)
    except LaunchError as error:
        shutil.rmtree(home)
        yield Check.fail("try:submit", str(error), f"see the lines above, and {profile.file}")
        return
    failed = False
    try:
        yield Check.ok("try:submit", f"job {job.job_id} is accepted; waiting for its start, {QUEUE_S:.0f} s at most")
        for check in _follow(engine, job, profile):
            failed |= check.verdict is not Level.OK
            yield check
    finally:
        engine.refresh()
        if engine.verdict(job).state.live:
            engine.cancel([job])
        if not failed:
            shutil.rmtree(home, ignore_errors=True)


def _follow(engine: Engine, job: Job, profile: Profile) -> Iterator[Check]:
    """Wait for the end of the job, then judge it step by step."""
    began, started, verdict = time.monotonic(), False, engine.verdict(job)
    deadline = began + QUEUE_S
    while verdict.state.live and time.monotonic() < deadline:
        time.sleep(POLL_S)
        engine.refresh()
        verdict = engine.verdict(job)
        if not started and verdict.state is not State.PENDING and not engine.failure:
            started, deadline = True, time.monotonic() + RUN_S
            yield Check.ok("try:queue", f"it started within {time.monotonic() - began:.0f} s")
    if not started:
        found = f"it has not started within {QUEUE_S:.0f} s ({verdict.reason or 'no reason given'}); it is cancelled"
        yield Check.warn("try:queue", found, "try again later, or request less")
        return
    report, advice = read_json(job.folder / REPORT_FILE), f"correct {profile.file}; the log of the job is {job.log}"
    if report is None and not job.log.exists():
        found = f"{job.log} is not here ({verdict.state}): the nodes do not see this folder, or did not start the job"
        yield Check.fail("try:output", found, "set output_dir in the profile to a folder that all nodes see")
        return
    if report is None:
        found = last_error(job.log) or f"{verdict.state} {verdict.reason}, and the log is empty"
        yield Check.fail("try:start", found, f"setup, container or python: {advice}")
        return
    yield Check.ok("try:start", f"setup and {report['python']} on {report['host']}")
    yield Check.ok("try:output", f"what the job has written into {job.folder.parents[2]} is seen here")
    if profile.gpus and not report["gpus"]:
        yield Check.fail("try:torch", f"the profile requests {profile.gpus} GPUs, torch sees none there", advice)
    else:
        yield Check.ok("try:torch", f"it can be imported and sees {report['gpus']} GPUs")
    state = (read_json(job.folder / TASK_FILE) or {}).get("state")
    if state == State.TIMEOUT:
        by = "the job itself" if report["scontrol"] else "its script, as there is no scontrol where Python runs"
        yield Check.ok("try:signal", f"it came ahead of the time limit; a job is queued again by {by}")
    else:
        found = f"no signal ahead of the time limit within {SIGNAL_S:.0f} s: the job ended {state or verdict.state}"
        yield Check.fail("try:signal", found, f"without it no checkpoint is written at the time limit: {advice}")


def main(folder: Path) -> int:
    """Run in the job: report what is there, then wait for the signal; returns the exit code."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    report: dict[str, Any] = {"python": sys.executable, "host": socket.gethostname()}
    # One that cannot be imported is the last error of the log. Only here, as launchers need no torch.
    report |= {"scontrol": shutil.which("scontrol"), "gpus": import_module("torch").cuda.device_count()}
    if os.environ.get("RANK", "0") == "0":
        write_json(folder / REPORT_FILE, report)
    deadline = time.monotonic() + SIGNAL_S
    while not stops and time.monotonic() < deadline:
        time.sleep(0.2)
    return 128 + signal.SIGTERM if stops else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

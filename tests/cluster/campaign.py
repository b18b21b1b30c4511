"""A campaign of random faults against both engines: `python -m tests.cluster.campaign --faults 160 --seed 1`.

Rounds of six experiments on the local queue and on a real SLURM, struck while they are submitted, wait and run, and
launched again and again with `--retry` as a user would. At the end of a round every experiment must be complete as if
nothing had happened. Exit code 1 if one was lost (not the history of an undisturbed run), doubled (two processes at
once), cancelled by mistake, or stuck (not complete in three minutes of launching). `--seed` with the seed of a round
repeats its dice, not its timing.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess as sp
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.cluster.slurm import TestCluster
from tests.fakes.tiny import FAKES, TinyProject, environment_of, processes
from tests.fakes.witness import EPOCHS, STEPS, runs_of, uninterrupted

EXPERIMENTS = 6
SETTLE_S = 180.0
OPTIONS: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "seconds": 5}
COUNTS = ("lost", "doubled", "cancelled by mistake", "stuck")


class Field:
    """The experiments of one round, and what strikes them.

    Attributes:
        cancelled: jobs that were cancelled on purpose, or that SLURM itself has lost.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str], dice: random.Random) -> None:
        self.dice, self.cancelled = dice, set[str]()
        self.found: Counter[str] = Counter()
        self.project = TinyProject(folder, {"CUDA_VISIBLE_DEVICES": "", "USER": "", "LOGNAME": "", **environ})
        self.environ = TinyProject.grid_environ(EXPERIMENTS, **OPTIONS)

    def start(self, *arguments: str) -> "sp.Popen[str]":
        return self.project.start("grid", "many", "--no_monitoring", *arguments, environ=self.environ)

    def launch(self, *arguments: str) -> str:
        """Launch the grid; it may fail, as on a cluster that does not answer."""
        process = self.start("--retry", *arguments)
        try:
            return process.communicate(timeout=120)[0]
        except sp.TimeoutExpired:
            process.kill()
            self.found["stuck"] += 1
            return process.communicate()[0]

    def jobs(self) -> dict[int, str]:
        """Ids of the jobs that are recorded, by index of the experiment."""
        found = {}
        for index in range(1, EXPERIMENTS + 1):
            with contextlib.suppress(LookupError, OSError, ValueError):
                found[index] = str(self.project.job(index=index)["job_id"])
        return found

    def live(self) -> list[str]:
        """Ids of jobs of experiments that are not complete."""
        verdicts = self.verdicts()
        return [job_id for index, job_id in self.jobs().items() if verdicts.get(index) in ("PENDING", "RUNNING")]

    def verdicts(self) -> dict[int, str]:
        found = {}
        for index in range(1, EXPERIMENTS + 1):
            with contextlib.suppress(LookupError):
                self.project.experiment(index=index)
                found[index] = self.project.verdicts(index)[-1]
        return found

    def is_done(self) -> bool:
        return list(self.verdicts().values()) == ["COMPLETED"] * EXPERIMENTS

    def processes(self, *words: str) -> list[int]:
        """Ids of processes of this round with all these words among their arguments."""
        mark, found = f"TINY_PROJECT={self.project.folder}".encode(), []
        for pid in processes():
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if all(word in arguments for word in words) and mark in environment_of(pid):
                    found.append(pid)
        return found

    def strike(self, number: signal.Signals, *words: str) -> bool:
        """Send a signal to one of these processes; False if there is none."""
        found = self.processes(*words)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.dice.choice(found), number)
        return bool(found)

    def look(self) -> None:
        """Count the jobs that are shown as cancelled and were not."""
        jobs = self.jobs()
        for index, verdict in self.verdicts().items():
            if verdict == "CANCELLED" and index in jobs and jobs[index] not in self.cancelled:
                print(f"    job {jobs[index]} of index {index} is CANCELLED by mistake", flush=True)
                self.cancelled.add(jobs[index])
                self.found["cancelled by mistake"] += 1

    def settle(self) -> None:
        """Launch until all is done, and judge every experiment."""
        deadline = time.monotonic() + SETTLE_S
        while not self.is_done() and time.monotonic() < deadline:
            self.launch()
            self.look()
            time.sleep(1.0)
        self.found["stuck"] += EXPERIMENTS - list(self.verdicts().values()).count("COMPLETED")
        for index in range(1, EXPERIMENTS + 1):
            folder = self.project.experiment(index=index)
            runs = runs_of(folder)
            self.found["doubled"] += sum(one["beat"] > two["began"] for one, two in itertools.pairwise(runs))
            history = json.loads((folder / "history.json").read_text()) if (folder / "history.json").exists() else []
            self.found["lost"] += history != uninterrupted(index)


def kill_trainer(field: Field) -> bool:
    """Kill one training process."""
    return field.strike(signal.SIGKILL, "dora", "run")


def kill_launcher(field: Field) -> bool:
    """Kill a command at a random moment of its work."""
    process = field.start("--retry")
    time.sleep(field.dice.uniform(0.2, 2.5))
    process.kill()
    process.communicate()
    return True


def two_launchers(field: Field) -> bool:
    """Two people launch at once."""
    several = [field.start("--retry") for _ in range(2)]
    for process in several:
        process.communicate(timeout=120)
    return True


def requeue(field: Field) -> bool:
    """Queue a running job again by our command."""
    running = [index for index, verdict in field.verdicts().items() if verdict == "RUNNING"]
    if running:
        folder = field.project.experiment(index=field.dice.choice(running))
        command = [sys.executable, "-m", "audiotok.cli", "requeue", "-P", "tinyxp", folder.name]
        sp.run(command, cwd=field.project.folder, env=field.project.environ, capture_output=True, timeout=120)
    return bool(running)


def cancel_one(field: Field) -> bool:
    """Cancel one experiment by our command."""
    live = {index: job for index, job in field.jobs().items() if job in field.live()}
    if live:
        index = field.dice.choice(list(live))
        field.cancelled.add(live[index])
        field.project.start("info", "-f", field.project.experiment(index=index).name, "-C").communicate(timeout=120)
    return bool(live)


def cancel_all(field: Field) -> bool:
    """Cancel the grid."""
    field.cancelled.update(field.jobs().values())
    field.launch("-C")
    field.cancelled.update(field.jobs().values())
    return True


def kill_supervisor(field: Field) -> bool:
    """Kill what looks after the local queue."""
    return field.strike(signal.SIGKILL, "audiotok.launchers.local.supervisor")


def kill_runner(field: Field) -> bool:
    """Kill the parent of a local job."""
    return field.strike(signal.SIGKILL, "audiotok.launchers.local.runner")


def stop_runner(field: Field) -> bool:
    """End the parent of a local job as a machine does that goes down."""
    return field.strike(signal.SIGTERM, "audiotok.launchers.local.runner")


COMMON = (kill_trainer, kill_launcher, two_launchers, requeue, cancel_one, cancel_all)
LOCAL: tuple[Callable[[Field], bool], ...] = (*COMMON, kill_supervisor, kill_runner, stop_runner)


class SlurmField(Field):
    """The same on SLURM, whose sbatch and squeue go wrong as files of a folder say."""

    def __init__(self, folder: Path, cluster: TestCluster, dice: random.Random) -> None:
        self.cluster, self.faults = cluster, folder / "faults"
        bin_folder = folder / "bin"
        for path in (self.faults, bin_folder):
            path.mkdir(parents=True)
        environ = {"AUDIOTOK_LAUNCHER": "slurm", "FAULTS": str(self.faults), **cluster.environ}
        for name in ("sbatch", "squeue"):
            (bin_folder / name).symlink_to(FAKES / f"{name}_fault.sh")
            environ[f"REAL_{name.upper()}"] = str(shutil.which(name))
        environ["PATH"] = os.pathsep.join([str(bin_folder), os.environ["PATH"]])
        super().__init__(folder / "project", environ, dice)
        # A job of the same user that has nothing to do with us.
        self.bystander = cluster.run("sbatch", "--parsable", "--begin=now+1hour", "-o", "/dev/null", "--wrap", "true")

    @property
    def next_call(self) -> int:
        """Number of the next call of sbatch."""
        calls = self.faults / "calls"
        return len(calls.read_text().splitlines()) + 1 if calls.exists() else 1

    def settle(self) -> None:
        super().settle()
        self.found["cancelled by mistake"] += self.bystander.strip() not in self.cluster.jobs("PENDING")


def _slurm(field: Field) -> SlurmField:
    assert isinstance(field, SlurmField)
    return field


def _submission_goes_wrong(name: str) -> Callable[[Field], bool]:
    def fault(field: Field) -> bool:
        field = _slurm(field)
        mark = field.faults / f"{name}-{field.next_call}"
        mark.touch()
        cancel_one(field)  # so that there is something to submit
        field.launch()
        mark.unlink()
        return True

    fault.__doc__ = f"A submission goes wrong: {name}."
    fault.__name__ = f"sbatch_{name.replace('-', '_')}"
    return fault


def sbatch_outlives_its_launcher(field: Field) -> bool:
    """A launcher is killed in sbatch, which submits later, perhaps after another launcher."""
    field = _slurm(field)
    cancel_one(field)
    call = field.next_call
    mark = field.faults / f"wait-{call}"
    mark.touch()
    process = field.start("--retry")
    deadline = time.monotonic() + 20.0
    while field.next_call == call and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    if field.dice.random() < 0.7:
        field.launch()
    mark.unlink()
    process.communicate()  # sbatch holds its output open until it has answered
    return field.next_call > call


def squeue_empty(field: Field) -> bool:
    """One answer of squeue lists no job."""
    (_slurm(field).faults / "squeue-empty").touch()
    field.launch()
    return True


def squeue_fails(field: Field) -> bool:
    """One query of squeue is not answered."""
    (_slurm(field).faults / "squeue-fails").touch()
    field.launch()
    return True


def kill_parent(field: Field) -> bool:
    """Kill the parent process of a job within SLURM."""
    return field.strike(signal.SIGKILL, "audiotok.launchers.slurm.inside")


def time_is_up(field: Field) -> bool:
    """SLURM signals a job ahead of its time limit."""
    live = field.live()
    return bool(live) and bool(_slurm(field).cluster.output("scancel", "--signal=USR2", field.dice.choice(live)) or 1)


def scancel(field: Field) -> bool:
    """The user cancels a job with scancel."""
    live = field.live()
    if live:
        field.cancelled.add(job_id := field.dice.choice(live))
        _slurm(field).cluster.output("scancel", job_id)
    return bool(live)


def scontrol_requeue(field: Field) -> bool:
    """An administrator queues a job again."""
    live = field.live()
    return bool(live) and bool(_slurm(field).cluster.output("scontrol", "requeue", field.dice.choice(live)) or 1)


def preempt(field: Field) -> bool:
    """A more urgent job takes both nodes."""
    _slurm(field).cluster.preempt()
    return True


def kill_controller(field: Field) -> bool:
    """The controller dies, and comes back; a launcher comes before it."""
    cluster = _slurm(field).cluster
    cluster.kill_controller()
    if field.dice.random() < 0.5:
        field.launch()
    cluster.start_controller()
    return True


def kill_node(field: Field) -> bool:
    """A node falls over with all that runs on it, and comes back."""
    cluster, node = _slurm(field).cluster, field.dice.choice(["n1", "n2"])
    cluster.kill_node(node)
    time.sleep(field.dice.uniform(0.0, 4.0))
    cluster.start_node(node)
    return True


SBATCH_FAULTS = ("refuse", "lose-answer", "kill-before", "kill-after", "banner")
SLURM: tuple[Callable[[Field], bool], ...] = (
    *COMMON, *map(_submission_goes_wrong, SBATCH_FAULTS), sbatch_outlives_its_launcher, squeue_empty, squeue_fails,
    kill_parent, time_is_up, scancel, scontrol_requeue, preempt, kill_controller, kill_node,
)  # fmt: skip


@contextlib.contextmanager
def fields(engine: str) -> Iterator[Callable[[random.Random], Field]]:
    """Makes the field of a round; the cluster is the same for all rounds."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="campaign-")))
        if engine == "slurm":
            cluster = stack.enter_context(TestCluster(root / "c"))
            cluster.change(SlurmdTimeout="5", MessageTimeout="3")
        numbers = itertools.count(1)

        def make(dice: random.Random) -> Field:
            folder = root / f"round{next(numbers)}"
            if engine == "slurm":
                return SlurmField(folder, cluster, dice)
            environ = {"AUDIOTOK_LAUNCHER": "local", "AUDIOTOK_LOCAL_SLOTS": "3", "AUDIOTOK_LOCAL_GRACE_S": "3"}
            return Field(folder, environ, dice)

        yield make


def play(field: Field, faults: tuple[Callable[[Field], bool], ...], most: int) -> int:
    """One round; returns how many faults struck."""
    field.launch()
    struck = 0
    while struck < most and not field.is_done():
        time.sleep(field.dice.uniform(0.0, 1.0))
        fault = field.dice.choice(faults)
        if fault(field):
            struck += 1
            print(f"    {fault.__name__}", flush=True)
        field.look()
        if field.dice.random() < 0.3:
            field.launch()
            field.look()
    field.settle()
    return struck


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=160, help="in all, half of them on each engine")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each further one adds 1")
    parser.add_argument("--engine", choices=("local", "slurm", "both"), default="both")
    args = parser.parse_args()
    engines = ("local", "slurm") if args.engine == "both" else (args.engine,)
    total: Counter[str] = Counter()
    seed = args.seed
    for engine in engines:
        struck = 0
        with fields(engine) as make:
            while struck < args.faults / len(engines):
                field = make(random.Random(seed))
                print(f"{engine}, seed {seed}", flush=True)
                try:
                    struck += play(field, SLURM if engine == "slurm" else LOCAL, 12)
                finally:
                    if any(field.found.values()):
                        print(field.project.report())
                    if isinstance(field, SlurmField):
                        field.cluster.clear()
                        field.cluster.change(SlurmdTimeout="5", MessageTimeout="3")
                    field.project.close()
                print(f"    {', '.join(f'{field.found[name]} {name}' for name in COUNTS)}", flush=True)
                total += field.found
                seed += 1
        total["faults"] += struck
        print(f"{engine}: {struck} faults", flush=True)
    print(f"{total['faults']} faults: {', '.join(f'{total[name]} {name}' for name in COUNTS)}")
    return int(any(total[name] for name in COUNTS))


if __name__ == "__main__":
    sys.exit(main())

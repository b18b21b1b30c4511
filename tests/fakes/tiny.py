"""Drives the tiny Dora project as a user does: real `python -m dora …` commands in processes of their own."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess as sp
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audiotok.launchers.local.queue import JobStore
from audiotok.status import experiment_state

FAKES = Path(__file__).parent
REPOSITORY = FAKES.parent.parent
_MARK = "TINY_PROJECT"  # in the environment of whatever a project starts
# What a developer's shell may hold and a test must not.
_PREFIXES = ("AUDIOTOK", "SLURM", "SBATCH", "DORA", "TINY", "OMP", "MKL", "CUDA", "RANK", "WORLD", "LOCAL_RANK")


class TinyProject:
    """A copy of the tiny project in `folder`, with the environment that its commands run in."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        shutil.copytree(FAKES / "tinyproject", folder, dirs_exist_ok=True)
        self.folder = folder
        self.outputs = folder / "outputs"
        self.store = JobStore(self.outputs / "local")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(_PREFIXES)}
        path = os.pathsep.join([str(FAKES / "torch_stub"), str(REPOSITORY)])
        self.environ = {**clean, "PYTHONPATH": path, _MARK: str(folder), **environ}

    def start(self, *arguments: str, environ: Mapping[str, str] | None = None) -> "sp.Popen[str]":
        """Start a dora command in a session of its own, as in a terminal of its own."""
        return sp.Popen(
            [sys.executable, "-m", "dora", "-P", "tinyxp", *arguments],
            cwd=self.folder,
            env={**self.environ, **(environ or {})},
            stdin=sp.PIPE,
            stdout=sp.PIPE,
            stderr=sp.STDOUT,
            text=True,
            start_new_session=True,
        )

    def dora(
        self, *arguments: str, code: int | None = 0, answer: str = "", environ: Mapping[str, str] | None = None
    ) -> str:
        """Run a dora command to its end and return all it says."""
        process = self.start(*arguments, environ=environ)
        said, _ = process.communicate(answer, timeout=120)
        assert code in (None, process.returncode), said
        return said

    def requeue(self, index: int) -> None:
        """Have an experiment's job stopped with a checkpoint and queued again."""
        command = [sys.executable, "-m", "audiotok.cli", "requeue", "-P", "tinyxp", self.experiment(index=index).name]
        done = sp.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def states(self, grid: str, **environ: str) -> list[str]:
        """Return the first letters of the states that `dora grid` shows, by experiment."""
        said = self.dora("grid", grid, "--no_monitoring", environ=environ)
        return [word[:3] for word in shown_states(said)]

    def many(
        self,
        count: int | Sequence[Mapping[str, Any]],
        *arguments: str,
        array: bool = True,
        slurm: Mapping[str, Any] | None = None,
        code: int = 0,
        environ: Mapping[str, str] | None = None,
        **options: Any,
    ) -> str:
        """Run `dora grid many` and return all it says.

        Args:
            count: experiments with index 1 to `count`, or what each of them changes.
            arguments: for `dora grid`.
            array: whether they are one array.
            slurm: what all of them ask of the cluster.
            code: exit code that it must have.
            environ: more of its environment.
            options: what all experiments change.
        """
        grid = self.grid_environ(count, array=array, slurm=slurm, **options)
        arguments = ("grid", "many", "--no_monitoring", *arguments)
        return self.dora(*arguments, code=code, environ={**grid, **(environ or {})})

    @staticmethod
    def grid_environ(
        count: int | Sequence[Mapping[str, Any]],
        *,
        array: bool = True,
        slurm: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, str]:
        """Return the environment that tells `dora grid many` what is in the grid."""
        runs = [{"index": index} for index in range(1, count + 1)] if isinstance(count, int) else list(count)
        values = {"TINY_RUNS": runs, "TINY_SLURM": slurm or {}, "TINY_OPTIONS": options}
        return {**{name: json.dumps(value) for name, value in values.items()}, "TINY_ARRAY": "1" if array else ""}

    def experiment(self, **values: Any) -> Path:
        """Return the folder of the experiment with these values."""
        wanted = {f"{key}={json.dumps(value)}" for key, value in values.items()}
        for argv in self.outputs.glob("xps/*/.argv.json"):
            if wanted <= set(json.loads(argv.read_text())):
                return argv.parent
        raise LookupError(f"no experiment with {wanted}")

    def job(self, **values: Any) -> dict[str, Any]:
        """Return the `job.json` of the experiment with these values."""
        return dict(json.loads((self.experiment(**values) / "job.json").read_text()))

    def spans(self) -> list[dict[str, Any]]:
        """Return what experiments wrote about themselves, in the order they began."""
        spans = [json.loads(path.read_text()) for path in self.outputs.glob("xps/*/span.json")]
        return sorted(spans, key=lambda span: float(span["began"]))

    def book(self) -> dict[str, str]:
        """Return the true state of every local job."""
        ids = sorted(path.stem for path in self.store.jobs.glob("L*.json"))
        return {name: record.state for name in ids if (record := self.store.checked(name)) is not None}

    def settle(self) -> None:
        """Wait until no local job waits or runs."""
        self.wait(lambda: not self.store.unfinished())

    def close(self) -> None:
        """End what is left on this machine, so that no test leaves a process behind."""
        mark = f"{_MARK}={self.folder}".encode()

        def kill() -> bool:
            left = [pid for pid in processes() if mark in environment_of(pid)]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        self.wait(kill)

    def supervisor_pid(self) -> int:
        """Return the process id of the supervisor of this project."""
        return process_of("audiotok.launchers.local.supervisor", str(self.store.root))

    def verdicts(self, count: int) -> list[str]:
        """Return what files alone tell of the experiments 1 to `count`."""
        states = [experiment_state(self.experiment(index=index)) for index in range(1, count + 1)]
        return ["NOT_STARTED" if state is None else state.state for state in states]

    def wait(self, condition: Callable[[], bool], seconds: float = 180.0) -> None:
        """Wait for a condition; fails with what everybody has written down if it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"what the test waits for did not happen\n{self.report()}"
            time.sleep(0.05)

    def report(self) -> str:
        """Return all that is written down about the experiments, for a person to find out what went wrong."""
        lines = []
        for folder in sorted(self.outputs.glob("xps/*")):
            lines += ["", folder.name, (folder / ".argv.json").read_text() if (folder / ".argv.json").exists() else ""]
            for name in ("job.json", "task.json", "status.json"):
                lines += [name, (folder / name).read_text() if (folder / name).exists() else "-"]
        for log in sorted(self.outputs.rglob("*.out")) + sorted(self.outputs.rglob("*.log")):
            lines += ["", str(log), log.read_text(errors="replace")[-1500:]]
        return "\n".join(lines)


def shown_states(table: str) -> list[str]:
    """Return the states in a table of `dora grid`, by row."""
    return re.findall(r"^\S*\d+  .*?\b([A-Z]{3}[A-Z_]*|N/A)\b", table, flags=re.MULTILINE)


def processes() -> list[int]:
    """Return the ids of all processes."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def environment_of(pid: int) -> set[bytes]:
    """Return the environment of a process as `NAME=value`; empty for one that is gone or a zombie."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def process_of(*words: str) -> int:
    """Return the id of the process with all these words among its arguments."""
    for pid in processes():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if all(word in arguments for word in words):
            return pid
    raise LookupError(f"no process of {words}")

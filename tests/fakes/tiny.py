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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launchers.jobs import JobStore
from launchers.local import LocalJob, cancel_jobs

FAKES = Path(__file__).parent
REPOSITORY = FAKES.parent.parent
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
        self.environ = {**clean, "PYTHONPATH": path, **environ}

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

    def dora(self, *arguments: str, code: int = 0, answer: str = "", environ: Mapping[str, str] | None = None) -> str:
        """Run a dora command to its end and return all it says."""
        process = self.start(*arguments, environ=environ)
        said, _ = process.communicate(answer, timeout=120)
        assert process.returncode == code, said
        return said

    def states(self, grid: str, **environ: str) -> list[str]:
        """Return the states that `dora grid` shows, by experiment."""
        said = self.dora("grid", grid, "--no_monitoring", environ=environ)
        return re.findall(r"^\S*\d+  .*?\b([A-Z]{3}|N/A)\b", said, flags=re.MULTILINE)

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
        return {name: record.state for name in ids if (record := self.store.judge(name)) is not None}

    def settle(self) -> None:
        """Wait until no local job waits or runs."""
        self.wait(lambda: not self.store.unfinished())

    def close(self) -> None:
        """Cancel what is left, so that no test leaves a process behind."""
        cancel_jobs(self.store, [LocalJob(self.store, name) for name in self.store.unfinished()])
        with contextlib.suppress(LookupError, ProcessLookupError):
            os.kill(self.supervisor_pid(), signal.SIGTERM)
        self.wait(lambda: not self.store.is_held("supervisor"))

    def supervisor_pid(self) -> int:
        """Return the process id of the supervisor of this project."""
        return process_of("launchers.supervisor", str(self.store.root))

    @staticmethod
    def wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for a condition; fails if it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "what the test waits for did not happen"
            time.sleep(0.05)


def process_of(*words: str) -> int:
    """Return the id of the process with all these words among its arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if all(word in arguments for word in words):
            return int(folder.name)
    raise LookupError(f"no process of {words}")

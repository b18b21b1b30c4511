"""Programs that stay in the background for as long as the tests: started, asked after, ended by their ids."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess as sp
import time
from collections.abc import Callable, Mapping
from pathlib import Path

START_S = 180.0


class Daemons:
    """The daemons of one test cluster.

    Args:
        root: folder that their output goes to.
        environ: what they get beside the environment of the tests.
    """

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self._root = root
        self._environ = environ
        self._processes: dict[str, sp.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        """Start a daemon under a name of ours."""
        with (self._root / f"{name}.out").open("ab") as output:
            self._processes[name] = sp.Popen(
                command,
                env={**os.environ, **self._environ},
                stdin=sp.DEVNULL,
                stdout=output,
                stderr=sp.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_the_tests,
            )

    def kill(self, name: str, number: signal.Signals) -> None:
        """End a daemon with a signal and wait until it has gone."""
        process = self._processes.pop(name)
        process.send_signal(number)
        try:
            process.wait(30)
        except sp.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End all, the last that was started first."""
        for name in reversed(list(self._processes)):
            self.kill(name, signal.SIGTERM)

    def is_up(self, name: str) -> bool:
        """True while this daemon runs."""
        return name in self._processes and self._processes[name].poll() is None

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a daemon is ready.

        Raises:
            RuntimeError: if it, or another, ends instead, with what they said.
        """
        until(lambda: ready() or not all(self.is_up(one) for one in self._processes), seconds=START_S)
        if not ready():
            logs = {path.name: path.read_text(errors="replace")[-1500:] for path in self._root.glob("*.out")}
            raise RuntimeError(f"{name} did not come up: {logs}")


def until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Wait for a condition, at most so long; returns whether it came."""
    deadline = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


def free_ports(names: tuple[str, ...]) -> dict[str, str]:
    """Return a free port of the loopback for each name."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: str(one.getsockname()[1]) for name, one in zip(names, sockets, strict=True)}


def answers(port: str) -> bool:
    """True if something listens at this port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def _die_with_the_tests() -> None:
    """Have the kernel end a daemon when the process that started it is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

"""How the threads of a process wait for each other on a CPU."""

import os
from collections.abc import Mapping, MutableMapping

_SPINS = "GOMP_SPINCOUNT", "10000"
_CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly(environ: MutableMapping[str, str]) -> None:
    """Have threads of PyTorch sleep soon while they wait, unless the environment has chosen; before torch is imported.

    GNU's OpenMP has a thread that waits turn 300 000 times, some milliseconds, in which a program that shares the cores
    cannot run. With 10 000 a step takes as long on cores of its own, and half as long beside a program on each core.
    """
    if not any(name in environ for name in _CHOSEN):
        name, value = _SPINS
        environ[name] = value


def spinning(threads: int, environ: Mapping[str, str]) -> str:
    """A line of advice where so many threads would spin on cores that others use; empty where they do not."""
    cores, load = os.cpu_count() or 1, _load()
    if threads < 2 or load < cores - 0.5 or any(name in environ for name in _CHOSEN):
        return ""
    return (
        f"the cores of this machine are in use (load {load:.1f} on {cores}), and {threads} threads slow each other "
        f"down there: {'='.join(_SPINS)} in the environment makes this run up to twice as fast, with the same numbers"
    )


def _load() -> float:
    """Programs that run here, a mean over the last minute; 0 where the system counts none."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0

"""What this machine can run at once: its GPUs, its cores, and the share of them that a local job gets.

Environment variables: AUDIOTOK_LOCAL_SLOTS (most jobs at once), AUDIOTOK_LOCAL_GRACE_S (seconds that a
cancelled job gets to end by itself), CUDA_VISIBLE_DEVICES (the GPUs that may be used). Standard library only.
"""

import functools
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from audiotok.errors import ConfigError
from audiotok.launchers.child import ask

SLOTS_VARIABLE = "AUDIOTOK_LOCAL_SLOTS"
GRACE_VARIABLE = "AUDIOTOK_LOCAL_GRACE_S"
GRACE_S = 10.0
CPUS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What a local job gets: `gpus` of the `visible` ones, `threads` per process, one of `slots` places.

    `grace_s` is the time in seconds between SIGTERM and SIGKILL when it is cancelled.
    """

    gpus: int
    visible: tuple[str, ...]
    slots: int
    threads: int
    grace_s: float


def share(
    gpus_wanted: int, environ: Mapping[str, str], *, cpus_wanted: int | None = None, cores: int | None = None
) -> Share:
    """Divide this machine among jobs of one kind.

    By default GPU jobs run one per GPU (or per group of GPUs), other jobs one per `cpus_wanted` cores. A job that asks
    for more GPUs than there are runs on those there are, or on the CPU: one grid serves cluster and laptop.

    Args:
        gpus_wanted: GPUs that the configuration asks for, 0 for none.
        environ: environment variables.
        cpus_wanted: cores for a job without GPU; by default two.
        cores: CPU cores that may be used; by default those this process may run on.

    Raises:
        ConfigError: if one of our environment variables holds no such number.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    visible = find_gpus(environ)
    gpus = min(gpus_wanted, len(visible))
    if gpus < gpus_wanted:
        logger.info("%d GPUs asked for, this machine has %d: running on those", gpus_wanted, len(visible))
    slots = _slots_asked(environ) or (len(visible) if gpus else max(1, cores // (cpus_wanted or CPUS)))
    at_once = max(1, min(slots, len(visible) // gpus if gpus else slots))
    threads = max(1, cores // (at_once * max(1, gpus)))
    return Share(gpus=gpus, visible=visible, slots=slots, threads=threads, grace_s=_grace_s(environ))


def find_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the GPUs that may be used: those of CUDA_VISIBLE_DEVICES if set, else those nvidia-smi lists."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = (name.strip() for name in chosen.split(","))
        return tuple(name for name in names if name not in ("", "-1", "NoDevFiles"))
    program = shutil.which("nvidia-smi")
    return _list_gpus(program) if program else ()


@functools.cache  # a grid asks once for each experiment, and the answer takes a second
def _list_gpus(program: str) -> tuple[str, ...]:
    listing, failure = ask([program, "-L"])
    if failure:
        logger.warning("nvidia-smi -L failed (%s): taking this machine as one without GPUs", failure)
        return ()
    return tuple(str(index) for index in range(sum(line.startswith("GPU ") for line in listing.splitlines())))


def _slots_asked(environ: Mapping[str, str]) -> int | None:
    text = environ.get(SLOTS_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{SLOTS_VARIABLE}={text!r} in the environment; give a whole number, at least 1.")
    return int(text)


def _grace_s(environ: Mapping[str, str]) -> float:
    text = environ.get(GRACE_VARIABLE, "").strip() or str(GRACE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{GRACE_VARIABLE}={text!r} in the environment; give a number of seconds, 0 or more.")
    return seconds

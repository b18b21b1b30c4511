"""The limit of open files (`ulimit -n`): found before data workers start, and not taken for a file that is damaged."""

import errno
import os
import resource

from audiotok.errors import ConfigError

_PER_WORKER = 5  # pipes, queues and batches on their way, in the training process; measured: 4.2 to 6 while it is read
_RESERVE = 32  # audio, checkpoints, logs, connections
_FULL = frozenset({errno.EMFILE, errno.ENFILE})


def require_open_files(num_workers: int) -> None:
    """Check that this process may open as many files as so many more data workers need.

    Raises:
        ConfigError: naming the limit and how to raise it.
    """
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _open_now() + _PER_WORKER * num_workers + _RESERVE if num_workers else 0
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ConfigError(
            f"{num_workers} data workers (dataset.num_workers, of all splits together) need {needed} open files; the "
            f"limit is {limit}. {_advice(needed, highest)}, or lower dataset.num_workers."
        )


def require_a_file() -> None:
    """Check, after a file could not be opened, that any can.

    Raises:
        ConfigError: if this process, or this machine, has as many files open as it may.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as err:
        if err.errno not in _FULL:
            raise
        limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
        if err.errno == errno.ENFILE or limit == resource.RLIM_INFINITY:  # a greater limit of this process is no help
            raise ConfigError("this machine has as many files open as it can; lower dataset.num_workers.") from err
        raise ConfigError(f"all {limit} files that may be open are. {_advice(2 * limit, highest)}.") from err


def _advice(number: int, highest: int) -> str:
    allowed = highest == resource.RLIM_INFINITY or number <= highest
    more = "" if allowed else f" (beyond {highest} an administrator must)"
    return f"Run `ulimit -n {number}` first{more}, on a cluster as a line of `setup` in its profile"


def _open_now() -> int:
    try:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208  on Linux and macOS
    except OSError:
        return 0

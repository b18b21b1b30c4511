"""The submission lock of a Dora folder: one command at a time submits, and whoever waits is told for whom.

It is an flock, so the kernel frees it however its holder ends. The file also names the holder, for people to read.
"""

import contextlib
import errno
import fcntl
import getpass
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from audiotok.errors import LaunchError

PATIENCE_S = 600.0
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})

logger = logging.getLogger(__name__)


def user_name() -> str:
    """Name of this user; works without a terminal, and for a user id that no one has named."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def user_and_host() -> str:
    """This user on this machine, as `alice@login1`."""
    return f"{user_name()}@{socket.gethostname()}"


class SubmitLock:
    """The lock on one file; the process that holds it may take it again.

    A filesystem without locks (some mounts of Lustre) is warned about once; two people must then not submit at once.

    Args:
        path: the file; made with its folder on first use, for everybody to lock.
        patience_s: how long to wait for somebody else.
        log: what a person at the terminal is told goes here.
    """

    def __init__(
        self, path: Path, *, patience_s: float = PATIENCE_S, log: Callable[[str], object] = logger.warning
    ) -> None:
        self.path = path
        self.patience_s = patience_s
        self.log = log
        self._depth = 0

    @property
    def held(self) -> bool:
        """True while this process holds it."""
        return self._depth > 0

    def holder(self) -> str:
        """Who has it, as `alice@login1 (process 4711, since 14:03:22)`; "someone" if that cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            name, pid, since = self.path.read_text(encoding="utf-8").split()
            return f"{name} (process {pid}, since {time.strftime('%H:%M:%S', time.localtime(float(since)))})"
        return "someone"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only one to submit, for the length of the block.

        Raises:
            LaunchError: if somebody else keeps it for longer than the patience; the message names them.
        """
        with self._take(self.patience_s) as held:
            if not held:
                raise LaunchError(
                    f"{self.holder()} has been submitting for {self.patience_s:.0f} s and keeps {self.path}; "
                    "nothing was submitted: wait for them, or end that process, and try again."
                )
            yield

    @contextlib.contextmanager
    def try_hold(self) -> Iterator[bool]:
        """Hold it if it is free right now; yields whether it was."""
        with self._take(0.0) as held:
            yield held

    @contextlib.contextmanager
    def _take(self, patience_s: float) -> Iterator[bool]:
        if self._depth:
            self._depth += 1
            try:
                yield True
            finally:
                self._depth -= 1
            return
        try:
            descriptor = self._open()
        except OSError as error:
            if patience_s:
                raise LaunchError(f"cannot open {self.path} ({error}); it is needed to submit.") from error
            yield False
            return
        try:
            if not self._wait(descriptor, patience_s):
                yield False
                return
            self._sign(descriptor, f"{user_and_host()} {os.getpid()} {time.time():.0f}\n")
            self._depth = 1
            try:
                yield True
            finally:
                self._depth = 0
                self._sign(descriptor, "")
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            return os.open(self.path, os.O_RDONLY)  # somebody else's; a lock needs no more
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, 0o666)
        return descriptor

    def _wait(self, descriptor: int, patience_s: float) -> bool:
        deadline, told = time.monotonic() + patience_s, False
        while not self._lock(descriptor):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
            if not told and (holder := self.holder()) != "someone":
                self.log(f"waiting for {holder}, who is submitting right now")
                told = True
        return True

    def _lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning(
                "%s stands on a filesystem without locks (%s); do not submit twice at once", self.path, error
            )
        return True

    @staticmethod
    def _sign(descriptor: int, text: str) -> None:
        """Write who holds it; a full disk or somebody else's file must not keep anybody from submitting."""
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)

"""The submission lock of a Dora folder, whose file names its holder. Standard library only."""

import contextlib
import getpass
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from audiotok.errors import LaunchError
from audiotok.files import NoLocksError, hold_lock, read_text

PATIENCE_S, _POLL_S = 600.0, 0.1

logger = logging.getLogger(__name__)


def user_name() -> str:
    """Name of this user; works without a terminal, and for a user id without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def user_and_host() -> str:
    """This user on this machine, as `alice@login1`."""
    return f"{user_name()}@{socket.gethostname()}"


class SubmitLock:
    """A lock whose file, made on first use, names its holder, so that others can see for whom they wait.

    The process that holds it may take it again. On a filesystem without locks it warns and goes ahead; two users must
    then not submit at once. Messages for the user go to `log`.
    """

    def __init__(
        self, path: Path, *, patience_s: float = PATIENCE_S, log: Callable[[str], object] = logger.warning
    ) -> None:
        self.path, self.patience_s, self.log = path, patience_s, log
        self._depth = 0

    @property
    def held(self) -> bool:
        """True while this process holds it."""
        return self._depth > 0

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold it for the length of the block.

        Raises:
            LaunchError: if another process keeps it for longer than the patience; the message names that one.
        """
        with self._take(self.patience_s) as held:
            if not held:
                raise LaunchError(
                    f"{self._holder() or 'someone'} has been submitting for {self.patience_s:.0f} s and keeps "
                    f"{self.path}; nothing was submitted: wait for them, or end that process, and try again."
                )
            yield

    def try_hold(self) -> AbstractContextManager[bool]:
        """Hold it if it is free now; yields whether it was."""
        return self._take(0.0)

    @contextlib.contextmanager
    def _take(self, patience_s: float) -> Iterator[bool]:
        with contextlib.ExitStack() as stack:
            if not self._depth:
                if not self._enter(stack, patience_s):
                    yield False
                    return
                self._sign(f"{user_and_host()} {os.getpid()} {time.time():.0f}\n")
                stack.callback(self._sign, "")  # while it is still held
            self._depth += 1
            try:
                yield True
            finally:
                self._depth -= 1

    def _enter(self, stack: contextlib.ExitStack, patience_s: float) -> bool:
        try:
            held = stack.enter_context(hold_lock(self.path, patience_s=0.0))
            if held or not patience_s:
                return held
            time.sleep(_POLL_S)  # until its holder has signed it
            if holder := self._holder():
                self.log(f"waiting for {holder}, who is submitting right now")
            return stack.enter_context(hold_lock(self.path, patience_s=patience_s))
        except NoLocksError as error:
            warning = "%s stands on a filesystem without locks (%s); do not submit twice at once"
            logger.warning(warning, self.path, error)
            return True
        except OSError as error:
            if patience_s:
                raise LaunchError(f"cannot open {self.path} ({error}); it is needed to submit.") from error
            return False

    def _holder(self) -> str:
        """Its holder, as `alice@login1 (process 4711, since 14:03:22)`; "" if that cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            name, pid, since = read_text(self.path).split()
            return f"{name} (process {pid}, since {time.strftime('%H:%M:%S', time.localtime(float(since)))})"
        return ""

    def _sign(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk or another user's file must not prevent submitting
            self.path.write_text(text, encoding="utf-8")

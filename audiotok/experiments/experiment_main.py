"""Entry point of the experiments: composes them, keeps them frozen, finds them again, runs them.

Overrides become an experiment in `ComposingMain`. Its configuration is frozen when it is submitted or first run
(`frozen`). A process with AUDIOTOK_FROZEN=…/frozen.json in its environment runs exactly that one. In any
process, a run of an experiment that is frozen otherwise than today's configuration says so, and runs the frozen one.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dora.hydra import _simplify_argv
from dora.xp import XP, get_xp, is_xp

from audiotok.errors import ConfigError
from audiotok.experiments.experiment import Experiment
from audiotok.experiments.frozen import (
    FROZEN_FILE,
    FROZEN_VARIABLE,
    Frozen,
    differences,
    find_frozen,
    freeze,
    read_frozen,
    thaw,
)
from audiotok.experiments.main import ComposingMain
from audiotok.experiments.run import run_frozen
from audiotok.files import write_text

logger = logging.getLogger(__name__)

_SIG = re.compile(r"[0-9a-zA-Z_-]+")


class ExperimentMain(ComposingMain):
    """Entry point of the experiments; see `dora.hydra.HydraMain`."""

    def __init__(self, main: Callable[..., Any], config_name: str, config_path: str, **kwargs: Any) -> None:
        self._named: dict[tuple[str, ...], str] = {}  # overrides that were looked up by signature
        super().__init__(main, config_name=config_name, config_path=config_path, **kwargs)

    def get_xp(self, argv: Sequence[str]) -> Experiment:
        """Experiment of a list of overrides; in a job, the frozen one that it is to run.

        Raises:
            ConfigError: see `compose`.
        """
        path = os.environ.get(FROZEN_VARIABLE)
        if path:
            frozen, self.dora = find_frozen(Path(path), self.dora)
            return thaw(frozen, self.dora, _simplify_argv(argv) or frozen.argv)
        for start, sig in self._named.items():
            if tuple(argv[: len(start)]) == start:
                return self._get_named_xp(sig, list(start), argv)
        return self.compose(argv)

    def get_xp_from_sig(self, sig: str) -> Experiment:
        """Experiment of a signature, with the configuration it was frozen with.

        Without a frozen file, as experiments of earlier versions have none, with that of today. The signature is the
        one asked for in either case, whatever the overrides would give today.

        Raises:
            ConfigError: if no experiment has it here.
        """
        argv = self._read_argv(sig)
        frozen = self._read_frozen(sig)
        if frozen is not None:
            return thaw(frozen, self.dora, argv)
        xp = self.compose(argv)
        if xp.sig != sig:
            logger.warning("%s was made by another version: its overrides now give %s", sig, xp.sig)
            xp.sig = sig
            xp.link.history_file = xp.history
        return xp

    def get_argv_from_sig(self, sig: str) -> list[str]:
        """Overrides that a signature stands for; `get_xp` of them is then that experiment, as it is frozen.

        Raises:
            ConfigError: if no experiment has it here.
        """
        argv = self._read_argv(sig)
        self._named[tuple(argv)] = sig
        return argv

    def init_xp(self, xp: XP) -> XP:
        """Make the folder of an experiment, with its overrides and its frozen configuration."""
        xp.folder.mkdir(parents=True, exist_ok=True)
        _write_argv(xp._argv_cache, xp.argv)
        freeze(xp)
        shared = xp._shared_argv_cache
        if shared is not None:
            for folder in (shared.parent.parent, shared.parent):
                folder.mkdir(mode=0o777, parents=True, exist_ok=True)
                _open_to_all(folder)
            _write_argv(shared, xp.argv)
            _open_to_all(shared)
        return xp

    def __call__(self) -> Any:
        """Run the experiment of the command line."""
        argv = self._get_argv()
        if not self._is_active(argv):
            return self._main()
        xp = self.init_xp(self._prefer_frozen(self.get_xp(argv)))
        with xp.enter():
            return self._main()

    def _main(self) -> Any:
        if not is_xp():
            return super()._main()  # type: ignore[no-untyped-call]
        xp = get_xp()
        if isinstance(xp, Experiment) and xp.is_frozen:
            return run_frozen(xp, self.main, self._job_name, self.config_name)
        before = list(sys.argv)
        sys.argv[1:] = xp.argv  # with ints for floats written as floats
        try:
            return super()._main()  # type: ignore[no-untyped-call]
        finally:
            sys.argv[:] = before

    def _prefer_frozen(self, xp: Experiment) -> Experiment:
        """The experiment as it is frozen, if that is not what it would be today."""
        if xp.is_frozen:
            if FROZEN_VARIABLE not in os.environ:
                logger.warning("%s: today's configuration gives another signature; running the frozen one", xp.sig)
            return xp
        frozen = self._read_frozen(xp.sig)
        lines = [] if frozen is None else differences(frozen.cfg, xp.frozen_values(), self.dora)
        if frozen is None or not lines:
            return xp
        logger.warning(
            "%s was frozen with other values; running those (--clear starts anew): %s", xp.sig, "; ".join(lines)
        )
        return thaw(frozen, self.dora, xp.argv)

    def _get_named_xp(self, sig: str, start: Sequence[str], argv: Sequence[str]) -> Experiment:
        """Experiment of overrides that begin with those of a signature (`dora info -f SIG`).

        If today's configuration no longer gives that signature, the frozen experiment, unless the overrides that
        follow make another one of it.
        """
        frozen = self._read_frozen(sig)
        if frozen is None:
            return self.compose(argv)
        try:
            xp = self.compose(argv)
            if xp.sig == sig or xp.sig != self.compose(start).sig:
                return xp
        except ConfigError:
            if list(argv) != list(start):
                raise
        return thaw(frozen, self.dora, _simplify_argv(argv))

    def _read_argv(self, sig: str) -> list[str]:
        xps = self.dora.dir / self.dora.xps
        shared = None if self.dora.shared is None else self.dora.shared / self.dora.xps
        if _SIG.fullmatch(sig) and ((xps / sig).is_dir() or (shared is not None and (shared / sig).is_dir())):
            try:
                argv = list(super().get_argv_from_sig(sig))
            except (RuntimeError, ValueError, OSError) as error:
                frozen = self._read_frozen(sig)
                if frozen is None:
                    raise ConfigError(f"the overrides of {xps / sig} cannot be read: {error}") from error
                return frozen.argv
            return argv
        raise ConfigError(
            f"no experiment with signature {sig!r} in {xps}; `dora grid NAME` lists them; set "
            "AUDIOTOK_OUTPUT_DIR if they are elsewhere"
        )

    def _read_frozen(self, sig: str) -> Frozen | None:
        path = self.dora.dir / self.dora.xps / sig / FROZEN_FILE
        if not path.exists():
            return None
        try:
            return read_frozen(path)
        except ConfigError as error:
            logger.warning("%s", error)
            return None


def experiment_main(
    config_name: str, config_path: str, **kwargs: Any
) -> Callable[[Callable[..., Any]], ExperimentMain]:
    """Decorator of the training function; the arguments are Hydra's."""

    def decorate(main: Callable[..., Any]) -> ExperimentMain:
        return ExperimentMain(main, config_name=config_name, config_path=config_path, **kwargs)

    return decorate


def _write_argv(path: Path, argv: Sequence[str]) -> None:
    text = json.dumps(list(argv))
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _open_to_all(path: Path) -> None:
    try:
        path.chmod(0o777)
    except PermissionError:
        logger.debug("%s belongs to somebody else", path)

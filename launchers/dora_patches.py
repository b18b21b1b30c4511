"""Makes Dora's commands use our launchers, tables and errors: the one place that replaces names in its modules."""

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, NamedTuple

import dora.info
from dora.log import colorize, simple_log
from dora.main import DecoratedMain
from dora.shep import no_log

from audiotok.errors import AudiotokError
from audiotok.experiments.frozen import FROZEN_VARIABLE
from audiotok.launchers.grid import get_explorer, run_grid
from audiotok.launchers.info import metrics_text
from audiotok.launchers.profile import ProfileLauncher, profile_of
from audiotok.launchers.sheep import GridSheep
from audiotok.launchers.shepherd import GridShepherd, detect
from audiotok.launchers.table import load_history, monitor
from audiotok.launchers.watch import follow, left_alone
from audiotok.status import State, experiment_state
from audiotok.status.amendments import amendment_lines
from audiotok.terminal import in_colour, prepare_streams
from audiotok.text import clean_text


class OneShepherd(GridShepherd):
    """The shepherd of `dora launch` and `dora info`, which are about one experiment."""

    sig: ClassVar[str] = ""

    def get_sheep_from_argv(self, argv: Sequence[str]) -> GridSheep:
        """The experiment of these arguments."""
        return self._look_at(super().get_sheep_from_argv(argv))

    def get_sheep_from_job_id(self, job_id: str) -> GridSheep | None:
        """The experiment of a job, None if there is no such job."""
        sheep = super().get_sheep_from_job_id(job_id)
        return sheep and self._look_at(sheep)

    def _look_at(self, sheep: GridSheep) -> GridSheep:
        OneShepherd.sig = sheep.xp.sig
        return sheep


class InfoShepherd(OneShepherd):
    """Of `dora info`: also logs the state, and how today's configuration differs from the frozen one."""

    def __init__(self, main: DecoratedMain, log: Callable[[str], None] = no_log) -> None:
        super().__init__(main, dora.info.log if log is no_log else log)

    def _look_at(self, sheep: GridSheep) -> GridSheep:
        if hasattr(self.main, "drift"):
            for line in self.main.drift(sheep.xp):
                self.log(f"Configuration has changed since: {line}")
        for line in amendment_lines(sheep.xp.folder):
            self.log(f"Amended {clean_text(line)}")
        code = None if sheep.job is None else sheep.job.record.content.get("code")
        if isinstance(code, dict):
            commit, changes, _ = str(code.get("commit")).partition("-dirty")
            commit = f" (commit {commit}{' with uncommitted changes' * bool(changes)})" if commit else ""
            self.log(f"Code is {self.find_moved(Path(str(code.get('path'))))}{commit}")
        by_hand = experiment_state(sheep.xp.folder) if sheep.verdict() is None else None
        state, reason = sheep.verdict() or by_hand or ("none: it was neither submitted nor run here", "")
        self.log(f"State is {state}{' of a run by hand' if by_hand else ''}{f': {reason}' if reason else ''}")
        if state not in (State.WAITING, State.BLOCKED):
            for sig, (needed, why) in self.needs(sheep.xp).items():
                self.log(f"Needs {sig}, which is {needed}{f': {why}' if why else ''}")
        logs = [sheep.xp.folder / name for name in ("solver.log.0", f"{self.main.main_module}.log")]
        if by_hand and (log := next(filter(Path.exists, logs), None)):
            self.log(f"Log of that run is {log}")
        return super()._look_at(sheep)


def _bold(text: str) -> str:
    return colorize(text, "1") if in_colour(sys.stderr) else text


def _red(text: str) -> str:
    return colorize(text, "31") if in_colour(sys.stderr) else text


def _launch_log(*words: Any) -> None:
    """Log of `dora launch`, with a line about Ctrl-C of ours."""
    attached = any(re.match(r"-\w*a|--att", word) for word in sys.argv[1:])  # the job is then stopped
    is_left = words[0] == "KeyboardInterrupt received..." and not attached
    simple_log("Launch:", *([left_alone(OneShepherd.sig)] if is_left else words))


def _tail(_: str, command: Sequence[Any]) -> None:
    """In place of `execvp`: `tail` is the only command that `dora info` becomes."""
    follow(Path(command[-1]), OneShepherd.sig)


def _metrics_of(xp: Any) -> list[Any]:
    """Metrics of an experiment for `dora info -m`; a damaged history is an error, not tried ten times."""
    with contextlib.suppress(FileNotFoundError):
        return load_history(xp.history)
    return []


class _Patch(NamedTuple):
    module: str
    name: str
    ours: Any
    why: str


# All names replaced in Dora. Its commands look them up when they run, so replacing them in the modules is enough.
PATCHES = (
    _Patch("dora.grid", "run_grid", run_grid, "`dora grid`: plans, locks, relative links"),
    _Patch("dora.grid", "_get_explore", get_explorer, "an unknown grid is an error, not exit code 0"),
    _Patch("dora.grid", "Shepherd", GridShepherd, "for a project that takes it from there"),
    _Patch("dora.grid", "Launcher", ProfileLauncher, "likewise: checks the keys of a profile"),
    _Patch("dora.grid", "monitor", monitor, "likewise: the table with progress and reasons"),
    _Patch("dora.launch", "Shepherd", OneShepherd, "`dora launch` submits with our engines"),
    _Patch("dora.launch", "log", _launch_log, "Ctrl-C says that the job goes on"),
    _Patch("dora.run", "Shepherd", GridShepherd, "`dora run` looks for a job of the experiment first"),
    _Patch(
        "dora.info", "Shepherd", InfoShepherd, "`dora info` also shows states and what changed in the configuration"
    ),
    _Patch("dora.info", "os", SimpleNamespace(execvp=_tail), "likewise for Ctrl-C of `dora info -t`"),
    _Patch("dora.info", "json", SimpleNamespace(dumps=metrics_text), "`dora info -m`: a table, not one line of JSON"),
    _Patch("dora.log", "bold", _bold, "no escape codes in a pipe"),
    _Patch("dora.run", "red", _red, "likewise"),
)


def install(main: DecoratedMain) -> None:
    """Make `dora run`, `grid`, `launch` and `info` use our launchers; may be called more than once.

    Under the `dora` command line mistakes of the user also end in one line and exit code 2. The entry point gets the
    profile of the cluster in place of Dora's defaults.

    Raises:
        ConfigError: if AUDIOTOK_LAUNCHER names no engine.
        AttributeError: if this version of Dora lacks a name that is to be replaced.
    """
    report_mistakes_in_one_line()
    detect(os.environ)
    if _is_dora_command() and FROZEN_VARIABLE not in os.environ:
        profile_of(main)  # a mistake in it shows at once
    main.get_slurm_config = lambda: profile_of(main)  # type: ignore[method-assign]
    if type(main).get_xp_history is DecoratedMain.get_xp_history:
        main.get_xp_history = _metrics_of  # type: ignore[method-assign]
    for patch in PATCHES:
        module = importlib.import_module(patch.module)
        getattr(module, patch.name)  # fails where Dora has renamed it
        setattr(module, patch.name, patch.ours)


def report_mistakes_in_one_line() -> None:
    """Under the `dora` command line, end mistakes of the user in one line and exit code 2.

    `install` does it too; but composing the configuration, which comes before that, can find mistakes. Notebooks and
    other programs keep their own handling of exceptions.
    """
    if _is_dora_command() and not isinstance(sys.excepthook, _OneLineHook):
        prepare_streams()
        sys.excepthook = _OneLineHook(sys.excepthook)


def _is_dora_command() -> bool:
    """True if this process is `dora …` or `python -m dora …`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == "dora.__main__" or Path(sys.argv[0]).name == "dora"


class _OneLineHook:
    def __init__(self, previous: Callable[[type[BaseException], BaseException, TracebackType | None], Any]) -> None:
        self._previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130)  # as of a shell after Ctrl-C
        if isinstance(error, BrokenPipeError):  # `dora grid GRID | head`: no word, nor when Python flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141)  # 128 + SIGPIPE
        if not isinstance(error, AudiotokError):
            self._previous(kind, error, traceback)
            return
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2)  # Python ends with the code of a SystemExit that comes out of a hook

"""Watching a grid or a log: a scheduler is queried seldom, files are looked at often, and Ctrl-C leaves the jobs."""

import re
import shlex
import subprocess as sp
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dora.grid import RunGridArgs
from dora.log import simple_log

from audiotok.status import JOB_FILE, STATUS_FILE
from audiotok.terminal import Screen, in_colour

QUERY_S = 10.0  # between two queries of a scheduler
LOOK_S = 1.0  # between two looks at the files of experiments, longer where a look takes long
LOG_S = 300.0  # between two tables without a change, where they are not written over each other
_ONCE = re.compile(r"-[rRD]+|--(ret|rep|cl|dry|no_m)\w*")  # flags of `dora grid` that a second command must not repeat


def watch(
    args: RunGridArgs, sheeps: Sequence[Any], update: Callable[[], bool], table: Callable[[Callable[..., None]], bool]
) -> None:
    """Show a table until all experiments have ended, and at once when something changed; once without `args.monitor`.

    Args:
        args: of `dora grid`.
        sheeps: the experiments.
        update: queries their engines; returns whether one is a scheduler of many users, which is to be spared.
        table: prints the table with the function it is given, and returns whether all experiments have ended.
    """
    given_s, screen = _given_s(args), Screen(in_place=in_colour(sys.stdout) and not args.jupyter)
    stamp: list[int] = []
    states: list[Any] = []
    spare, query_at, print_at = True, 0.0, 0.0
    while True:
        began, before, stamp = time.monotonic(), stamp, _stamp(sheeps)
        if (is_due := began >= query_at) or not spare:
            spare = update()
        if is_due:
            query_at = time.monotonic() + (given_s or QUERY_S)
        before_states, states = states, [sheep.state() for sheep in sheeps]
        if is_due or stamp != before or states != before_states:
            lines: list[str] = []
            last = table(lambda *words: lines.append(" ".join(map(str, words)))) or not args.monitor  # noqa: B023
            if lines and (last or args.jupyter or screen.in_place or states != before_states or began >= print_at):
                if args.jupyter:
                    from IPython import display

                    display.clear_output(wait=True)  # type: ignore[no-untyped-call]
                screen.show("\n".join(lines))
                print_at = time.monotonic() + (given_s or LOG_S)
            if last:
                return
        now = time.monotonic()
        time.sleep(max(LOOK_S, min(5 * (now - began), query_at - now)))  # a slow look delays the next, but no query


def again() -> str:
    """The command that this process was started with, without the flags that submit or delete again."""
    return shlex.join(["dora", *(word for word in sys.argv[1:] if not _ONCE.fullmatch(word))])


def follow(log: Path, sig: str) -> NoReturn:
    """Show a log as it grows, until Ctrl-C."""
    try:
        code = sp.run(["tail", "-n", "200", "-f", str(log)], check=False).returncode
    except KeyboardInterrupt:
        simple_log("Log:", left_alone(sig))
        code = 130  # as of a shell after Ctrl-C
    sys.exit(code)


def left_alone(sig: str) -> str:
    """What Ctrl-C leaves of the job of an experiment, and how to go on."""
    return f"the job goes on; `dora info -f {sig} -t` follows its log again, `dora info -f {sig} -C` cancels it."


def _given_s(args: RunGridArgs) -> float | None:
    """Seconds of `--interval`, which counts in minutes; None if it was not given."""
    given = any(re.match(r"-i|--int", word) for word in sys.argv[1:]) and args._from_commandline
    return None if args.interval == RunGridArgs.interval and not given else max(1.0, args.interval * 60)


def _stamp(sheeps: Sequence[Any]) -> list[int]:
    """When the files of experiments that have not ended were written last."""
    live = [sheep.xp.folder / name for sheep in sheeps if not sheep.is_done() for name in (JOB_FILE, STATUS_FILE)]
    return [_mtime_ns(path) for path in live]


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0

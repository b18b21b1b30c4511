"""The table of `dora grid`: what every experiment does, why it failed, how good it is, and when all of it ends.

Takes the place of `dora.grid.monitor`, with its contract: any `dora.explore.Explorer` gives the columns of metrics.
Only files that changed since the last refresh are read again, so that a thousand experiments take a second.

An explorer may have a method `process_live(sheep, parts)`: then `process_history(history)` is called when a history has
changed, and only `process_live`, which adds what changes by itself, at every refresh.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import treetable as tt
from dora.explore import Explorer
from dora.main import DecoratedMain

from audiotok.launchers.engine import FAILURE_STATES, LIVE_STATES
from audiotok.launchers.watching.progress import FileCache, Progress, in_words, progress_of, totals_line
from audiotok.status import STATUS_FILE, State, Verdict, read_json

REASON_WIDTH = 60
PRESET = "(preset)"  # name of an experiment that is as its preset
_MARK = 0xE000  # of the private-use area of Unicode; see `_marked`
_COLOURED = re.compile(r"\033\[([\d;]*)m|([\ue000-\ue07f]+)")
_GREEN, _RED, _BLUE, _GREY, _YELLOW = "32", "31", "34", "90", "33"
_COLOURS = {
    **dict.fromkeys(FAILURE_STATES, _RED),
    **dict.fromkeys(LIVE_STATES, _YELLOW),
    **{"PENDING": _GREY, "RUNNING": _BLUE, "COMPLETING": _BLUE, "COMPLETED": _GREEN},
}

History = list[dict[str, Any]]


def monitor(
    args: Any, main: DecoratedMain, explorer: Explorer, herd: Sequence[Any], maybe_print: Callable[..., Any]
) -> bool:
    """Show a grid once; states are those of the shepherd's last update.

    Args:
        args: of `dora grid`: `trim`, `trim_last`, `silent`, `jupyter`.
        main: the decorated entry point.
        explorer: says which metrics are shown.
        herd: the sheep of the grid, not empty.
        maybe_print: `print`, or something that prints nothing.

    Returns:
        True if every experiment has ended one way or the other; one in state UNKNOWN has not.
    """
    verdicts = [verdict_of(sheep) for sheep in herd]
    finished = all(
        sheep.is_done() and (verdict is None or verdict.state != "UNKNOWN")
        for sheep, verdict in zip(herd, verdicts, strict=True)
    )
    if getattr(args, "silent", False):
        return finished
    progress = [_progress.read(Path(sheep.xp.folder) / STATUS_FILE) for sheep in herd]
    names, base_name = names_of(main, [sheep.xp for sheep in herd])
    metrics = _metrics(args, main, explorer, herd)
    rows = [
        _Row(index, name, sheep, verdict, done, parts).line()
        for index, (name, sheep, verdict, done, parts) in enumerate(
            zip(names, herd, verdicts, progress, metrics, strict=True)
        )
    ]
    states = [verdict.state if verdict else None for verdict in verdicts]
    jobs = [str(sheep.current_job_id) for sheep in herd if not sheep.is_done()]
    if base_name:
        maybe_print("Base name: ", base_name)
    maybe_print(_table(explorer, rows, coloured=_wants_colour(args)))
    maybe_print(totals_line(states, progress, jobs))
    return finished


def verdict_of(sheep: Any) -> Verdict | None:
    """State of a sheep and why, None if it has no job; any Dora sheep will do."""
    verdict = getattr(sheep, "verdict", None)
    if verdict is not None:
        found = verdict() if callable(verdict) else verdict
        return found if found is None else Verdict(State.of(found.state), str(found.reason))
    state = sheep.state()
    return None if state is None else Verdict(State.of(state), "")


def names_of(main: DecoratedMain, xps: Sequence[Any]) -> tuple[list[str], str]:
    """Names of experiments, and what all have in common; none is empty."""
    names, base_name = main.get_names(list(xps))
    if len(names) == 1:
        return [base_name or PRESET], ""
    return [name or ("(base)" if base_name else PRESET) for name in names], base_name


def read_history(path: Path) -> History:
    """Read a `history.json`; empty where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    try:
        history = orjson.loads(content)
    except ValueError:  # NaN and Infinity, which only the slower module knows
        try:
            history = json.loads(content)
        except ValueError:
            return []
    return [epoch for epoch in history if isinstance(epoch, dict)] if isinstance(history, list) else []


@dataclass(frozen=True)
class _Row:
    """One experiment of the table."""

    index: int
    name: str
    sheep: Any
    verdict: Verdict | None
    progress: Progress
    parts: Mapping[str, Any]

    def line(self) -> dict[str, Any]:
        """What treetable takes: one mapping for each group of columns."""
        state, reason = self.verdict or ("N/A", "")
        left = self.progress.left_s if state == "RUNNING" else None
        meta = {
            "name": self.name,
            "index": self.index,
            "sid": self.sheep.current_job_id or "",
            "sig": self.sheep.xp.sig,
            "state": _marked(state),
            "progress": str(self.progress) or None,
            "eta": None if left is None else in_words(left),
            "why": _short(reason) or None,
        }
        return {"Meta": meta, **self.parts}


def _metrics(args: Any, main: DecoratedMain, explorer: Explorer, herd: Sequence[Any]) -> list[Mapping[str, Any]]:
    """What the explorer makes of each history."""
    live: Callable[[Any, Any], Mapping[str, Any]] | None = getattr(explorer, "process_live", None)
    trims = getattr(args, "trim", None) is not None or getattr(args, "trim_last", False)
    own = type(main).get_xp_history is not DecoratedMain.get_xp_history  # histories that only this project can find
    if live is not None and not trims and not own:
        cache = _summaries.setdefault(explorer, FileCache(lambda path: explorer.process_history(read_history(path))))
        return [live(sheep, cache.read(sheep.xp.history)) for sheep in herd]
    histories: list[History] = [
        main.get_xp_history(sheep.xp) if own else _histories.read(sheep.xp.history) for sheep in herd
    ]
    if getattr(args, "trim", None) is not None:
        histories = [history[: len(histories[args.trim])] for history in histories]
    elif getattr(args, "trim_last", False):
        histories = [history[: min(map(len, histories))] for history in histories]
    return [_processed(explorer, sheep, history) for sheep, history in zip(herd, histories, strict=True)]


def _processed(explorer: Explorer, sheep: Any, history: History) -> Mapping[str, Any]:
    try:
        parts: Mapping[str, Any] = explorer.process_sheep(sheep, history)
    except NotImplementedError:  # Dora's way to say that only process_history is there
        parts = explorer.process_history(history)
    return parts


def _table(explorer: Explorer, rows: Sequence[Mapping[str, Any]], *, coloured: bool) -> str:
    """The table, with the state of each row in its colour."""
    groups = [tt.group("Meta", _meta(explorer, rows), shorten=False), *explorer.get_grid_metrics()]
    table = tt.table(shorten=True, groups=groups)
    text: str = tt.treetable(rows, table, colors=explorer.get_colors() if coloured else None)
    outer = ""

    def paint(match: re.Match[str]) -> str:
        nonlocal outer
        code, marked = match.groups()
        if marked is None:
            outer = code
            return match.group()
        word = "".join(chr(ord(letter) - _MARK) for letter in marked)
        return f"\033[{_COLOURS.get(word, '0')}m{word}\033[0m\033[{outer}m" if coloured else word

    return "\n".join(line.rstrip() for line in _COLOURED.sub(paint, text).split("\n"))


def _meta(explorer: Explorer, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Columns of the explorer; after the state come those of ours that are not empty."""
    leaves = [leaf.update(display="#") if leaf.key == "index" else leaf for leaf in explorer.get_grid_meta()]
    ours = [tt.leaf("progress", align=">", display="epochs"), tt.leaf("eta", align=">"), tt.leaf("why")]
    theirs = {leaf.key for leaf in leaves}
    extra = [leaf for leaf in ours if leaf.key not in theirs and any(row["Meta"][leaf.key] is not None for row in rows)]
    place = next((index for index, leaf in enumerate(leaves, 1) if leaf.key == "state"), len(leaves))
    return leaves[:place] + extra + leaves[place:]


def _marked(word: str) -> str:
    """Put a word into the private-use area of Unicode.

    treetable counts the escape codes of colours as text; so what is to be coloured goes through it one character for
    one, and is found again afterwards.
    """
    return "".join(chr(_MARK + ord(letter)) if letter.isascii() else letter for letter in word)


def _short(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) <= REASON_WIDTH else text[: REASON_WIDTH - 1].rstrip() + "…"


def _wants_colour(args: Any) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return bool(getattr(args, "jupyter", False)) or sys.stdout.isatty()


_progress: FileCache[Progress] = FileCache(lambda path: progress_of(read_json(path)))
_histories: FileCache[History] = FileCache(read_history)
_summaries: dict[Explorer, FileCache[Mapping[str, Any]]] = {}

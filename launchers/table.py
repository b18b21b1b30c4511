"""The table of `dora grid`: what every experiment does, why it failed, how good it is, and when the grid will be done.

Only files that changed since the last refresh are read again, so that a thousand experiments take a second. Any
`dora.explore.Explorer` gives the columns of metrics. It may have a method `process_live(sheep, parts)`: then
`process_history(history)` is called when a history has changed, and `process_live`, which adds what changes by itself,
at every refresh.
"""

import os
import re
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import treetable as tt
from dora.explore import Explorer
from dora.main import DecoratedMain

from audiotok.files import UnreadableError, content_of, parse_json_fast, read_bytes
from audiotok.status import STATUS_FILE, State, Verdict, read_json
from audiotok.status.progress import Progress, progress_of, with_amended_epochs
from audiotok.terminal import in_colour, size_of
from audiotok.text import duration_text, shortened

_REASON_WIDTH = 60
_NAME_SHARE = 0.45  # of the width of a terminal, at most
PRESET = "(preset)"  # name of an experiment that is as its preset
_GONE = object()
_MARK = 0xE000  # of the private-use area of Unicode; see `_marked`
_COLOURED = re.compile(r"\033\[([\d;]*)m|([\ue000-\ue07f]+)")
# Grey, blue and green; other states are yellow while they live and red once they failed.
_COLOURS = {State.RUNNING: "34", State.COMPLETING: "34", State.COMPLETED: "32"}
_COLOURS |= dict.fromkeys((State.PENDING, State.WAITING, State.EXTENDED), "90")

_History = list[dict[str, Any]]
_Rows = Sequence[Mapping[str, Any]]
T = TypeVar("T")


def monitor(
    args: Any, main: DecoratedMain, explorer: Explorer, herd: Sequence[Any], maybe_print: Callable[..., Any]
) -> bool:
    """Show a grid once, with the states of the shepherd's last update; the contract of `dora.grid.monitor`.

    Returns True if every experiment has ended; one in state UNKNOWN or WAITING has not.
    """
    verdicts = [_verdict_of(sheep) for sheep in herd]
    states = [None if verdict is None else verdict.state for verdict in verdicts]
    done = [sheep.is_done() for sheep in herd]
    finished = all(done) and not {State.UNKNOWN, State.WAITING} & {*states}
    if getattr(args, "silent", False):
        return finished
    progress = [_progress.read(Path(sheep.xp.folder) / STATUS_FILE) for sheep in herd]
    progress = [
        one if state in (State.COMPLETED, State.RUNNING) else with_amended_epochs(one, Path(sheep.xp.folder))
        for sheep, state, one in zip(herd, states, progress, strict=True)
    ]
    names, base_name = names_of(main, [sheep.xp for sheep in herd])
    columns = zip(herd, names, verdicts, progress, strict=True)
    meta = [_meta(index, *values) for index, values in enumerate(columns)]
    rows = [{"Meta": one, **parts} for one, parts in zip(meta, _metrics(args, main, explorer, herd), strict=True)]
    coloured = in_colour(sys.stdout) or (getattr(args, "jupyter", False) and not os.environ.get("NO_COLOR"))
    width = size_of(sys.stdout).columns
    jobs = [str(sheep.current_job_id) for sheep, ended in zip(herd, done, strict=True) if not ended]
    table, totals = _table(explorer, rows, coloured=coloured, width=width), _totals_line(states, progress, jobs)
    for text in (f"Base name: {base_name}" * bool(base_name), table, totals):
        if text:
            maybe_print(text if text is table or not width else textwrap.fill(text, width))
    return finished


def _verdict_of(sheep: Any) -> Verdict | None:
    """State of a sheep and why, None if it has no job; any Dora sheep will do."""
    if held := getattr(sheep, "held", lambda: None)():
        return held  # type: ignore[no-any-return]
    verdict = getattr(sheep, "verdict", None)
    if verdict is not None:
        return verdict() if callable(verdict) else verdict  # type: ignore[no-any-return]
    state = sheep.state()
    return None if state is None else Verdict(State.of(state), "")


def names_of(main: DecoratedMain, xps: Sequence[Any], *, whole: bool = False) -> tuple[list[str], str]:
    """Names of experiments by the parameters in which they differ, defaults too, and the parameters that all share.

    Args:
        main: the project, which shortens the names of parameters.
        xps: the experiments.
        whole: whether these stay whole, `losses.mmd=10` in place of `los.mmd=10.0`.
    """
    part: Callable[[str, Any], str] = _whole_part if whole else main.short_name_part
    parts = [dict(main.get_name_parts(xp)) for xp in xps]
    keys = list(dict.fromkeys(key for one in parts for key in one))
    pairs = zip(xps, parts, strict=True)
    rows = [{key: one[key] if key in one else _value_of(xp, key) for key in keys} for xp, one in pairs]
    shared = [key for key in keys if len(rows) > 1 and all(row[key] == rows[0][key] for row in rows)]

    def name(row: Mapping[str, Any], chosen: Iterable[str]) -> str:
        return " ".join(part(key, row[key]) for key in chosen if row[key] is not _GONE)

    own = [key for key in keys if key not in shared]
    return [name(row, own) or PRESET for row in rows], name(rows[0], shared) if rows else ""


def _whole_part(key: str, value: Any) -> str:
    return f"{key}={str(value).removesuffix('.0') if isinstance(value, float) else value}"


def _value_of(xp: Any, key: str) -> Any:
    """Value of a parameter that an experiment leaves as its preset has it; `_GONE` where that is not known."""
    if key in getattr(xp, "choices", ()):
        return xp.choices[key]
    value = xp.frozen_values() if hasattr(xp, "frozen_values") else getattr(xp, "cfg", None)
    for part in key.split("."):
        value = value.get(part, _GONE) if isinstance(value, Mapping) else getattr(value, part, _GONE)
    return value


def load_history(path: Path) -> list[Any]:
    """Read a `history.json`.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableError: if it is damaged.
    """
    history: list[Any] = content_of(path, read_bytes(path), list, parse_json_fast)
    return history


def _read_history(path: Path) -> _History:
    """Read a `history.json`; empty where there is none or it is damaged."""
    try:
        history = load_history(path)
    except (OSError, UnreadableError):
        return []
    return [epoch for epoch in history if isinstance(epoch, dict)]


def _meta(index: int, sheep: Any, name: str, verdict: Verdict | None, progress: Progress) -> dict[str, Any]:
    """What stands left of the metrics of an experiment."""
    state, reason = verdict or ("N/A", "")
    left_s, reason = progress.left_s if state == State.RUNNING else None, " ".join(reason.split())
    short = reason if len(reason) <= _REASON_WIDTH else reason[: _REASON_WIDTH - 1].rstrip() + "…"
    return {
        "name": name,
        "index": index,
        "sid": sheep.current_job_id or "",
        "sig": sheep.xp.sig,
        "state": _marked(state),
        "progress": str(progress) or None,
        "eta": None if left_s is None else duration_text(left_s),
        "why": short or None,
    }


def _metrics(args: Any, main: DecoratedMain, explorer: Explorer, herd: Sequence[Any]) -> list[Mapping[str, Any]]:
    """What the explorer makes of each history."""
    live: Callable[[Any, Any], Mapping[str, Any]] | None = getattr(explorer, "process_live", None)
    trim, trim_last = getattr(args, "trim", None), getattr(args, "trim_last", False)
    own = type(main).get_xp_history is not DecoratedMain.get_xp_history  # histories that only this project can find
    if live is not None and trim is None and not trim_last and not own:
        cache = _summaries.setdefault(explorer, _FileCache(lambda path: explorer.process_history(_read_history(path))))
        return [live(sheep, cache.read(sheep.xp.history)) for sheep in herd]
    read: Callable[[Any], _History] = main.get_xp_history if own else lambda xp: _histories.read(xp.history)
    histories = [read(sheep.xp) for sheep in herd]
    if trim is not None:
        histories = [history[: len(histories[trim])] for history in histories]
    elif trim_last:
        histories = [history[: min(map(len, histories))] for history in histories]
    return [_processed(explorer, sheep, history) for sheep, history in zip(herd, histories, strict=True)]


def _processed(explorer: Explorer, sheep: Any, history: _History) -> Mapping[str, Any]:
    try:
        return explorer.process_sheep(sheep, history)
    except NotImplementedError:  # of an explorer that has only process_history
        return explorer.process_history(history)


def _table(explorer: Explorer, rows: Sequence[Mapping[str, Any]], *, coloured: bool, width: int = 0) -> str:
    """The table, with the state of each row in its colour; not wider than that, 0 for no limit."""
    groups = [tt.group("Meta", _meta_columns(explorer, rows), shorten=False), *explorer.get_grid_metrics()]
    notes = ""
    if width:
        groups, rows, notes = _fitted(groups, rows, width)
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
        return f"\033[{_colour(word)}m{word}\033[0m\033[{outer}m" if coloured else word

    return "\n".join(line.rstrip() for line in _COLOURED.sub(paint, text).split("\n")) + notes


def _fitted(groups: Sequence[Any], rows: _Rows, width: int) -> tuple[list[Any], _Rows, str]:
    """Groups and rows of a table that is not wider, and the lines below it, with the reasons that stood in it.

    What identifies an experiment and its state stay. Of metrics come as many as fit, one of each group in turn, those
    that nothing has measured last.
    """
    single = [[node.update(groups=[leaf]) for leaf in node.groups] if node.groups else [node] for node in groups]
    single[0] = [node for node in single[0] if node.groups[0].key != "why"]
    chosen = [[node for node in single[0] if node.groups[0].key != "sid"], *([] for _ in groups[1:])]
    longest = max(len(row["Meta"]["name"]) for row in rows)
    room = width + 2 - sum(_width(rows, node) + 2 for node in chosen[0]) + longest
    longest = min(longest, max(min(room, int(_NAME_SHARE * width)), 16))
    rows = [{**row, "Meta": {**row["Meta"], "name": shortened(row["Meta"]["name"], longest)}} for row in rows]
    room -= longest
    more = [(0, 9, node) for node in single[0] if node not in chosen[0]]  # the ids of jobs
    more += [(place, rank, node) for place, nodes in enumerate(single[1:], 1) for rank, node in enumerate(nodes)]
    for place, _, node in sorted(more, key=lambda one: (_is_empty(rows, one[2]), one[1], one[0])):
        if (needs := _width(rows, node) + (2 if chosen[place] else 3)) <= room:
            chosen[place].append(node)
            room -= needs
    kept = [
        group.update(groups=[node.groups[0] for node in nodes if node in some]) if group.groups else group
        for group, nodes, some in zip(groups, single, chosen, strict=True)
        if some
    ]
    reasons: dict[str, list[str]] = {}
    for meta in (row["Meta"] for row in rows if row["Meta"]["why"]):
        reasons.setdefault(meta["why"], []).append(f"#{meta['index']}")
    more_of = {why: f" and {len(some) - 5} more" if len(some) > 5 else "" for why, some in reasons.items()}
    lines = [f"{' '.join(some[:5])}{more_of[why]}: {why}" for why, some in reasons.items()]
    return kept, rows, "".join(f"\n{textwrap.fill(line, width)}" for line in lines)


def _width(rows: _Rows, node: Any) -> int:
    """Columns that a column of the table takes."""
    return max(map(len, tt.treetable(rows, tt.table(groups=[node], shorten=True)).split("\n")))


def _is_empty(rows: _Rows, node: Any) -> bool:
    cells = [row.get(node.key) for row in rows]
    return all(cell is None or (node.groups and cell.get(node.groups[0].key) is None) for cell in cells)


def _meta_columns(explorer: Explorer, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Columns of the explorer; after the state come those of ours that are not empty."""
    leaves = [leaf.update(display="#") if leaf.key == "index" else leaf for leaf in explorer.get_grid_meta()]
    ours = [tt.leaf("progress", align=">", display="epochs"), tt.leaf("eta", align=">"), tt.leaf("why")]
    theirs = {leaf.key for leaf in leaves}
    extra = [leaf for leaf in ours if leaf.key not in theirs and any(row["Meta"][leaf.key] is not None for row in rows)]
    place = next((index for index, leaf in enumerate(leaves, 1) if leaf.key == "state"), len(leaves))
    return leaves[:place] + extra + leaves[place:]


def _marked(word: str) -> str:
    """A word in the private-use area of Unicode.

    treetable counts the escape codes of colours as text, so a word to be coloured passes through it one character for
    one and is found again afterwards.
    """
    return "".join(chr(_MARK + ord(letter)) if letter.isascii() else letter for letter in word)


def _colour(word: str) -> str:
    state = State.__members__.get(word)
    if state is None:  # N/A
        return "0"
    return _COLOURS.get(state, "33" if state.live else "31")


class _FileCache(Generic[T]):
    """Contents of files, parsed again only where they changed; `parse` must accept a missing or damaged file."""

    def __init__(self, parse: Callable[[Path], T]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[tuple[int, int, int], T]] = {}

    def read(self, path: Path) -> T:
        """Content of a file, as of now."""
        try:
            stat = path.stat()
        except OSError:
            self._known.pop(path, None)
            return self._parse(path)
        key = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._known.get(path)
        if known is None or known[0] != key:
            known = self._known[path] = (key, self._parse(path))
        return known[1]


def _grid_left_s(states: Sequence[State | None], progress: Sequence[Progress]) -> float | None:
    """Seconds until a grid is done: the work left divided by the number of running jobs; None if nothing runs.

    Pending experiments are taken to last as long as the others.
    """
    known = [one.whole_s for one in progress if one.whole_s is not None]
    pairs = [(state, one) for state, one in zip(states, progress, strict=True) if state is not None and state.live]
    running = [one.left_s for state, one in pairs if state is State.RUNNING]
    if not known or not running:
        return None
    usual = statistics.fmean(known)
    rest = [usual if left is None else left for left in running]
    waiting = [usual * (1.0 - one.share) for state, one in pairs if state is not State.RUNNING]
    return max(max(rest), (sum(rest) + sum(waiting)) / len(rest))


def _totals_line(states: Sequence[State | None], progress: Sequence[Progress], jobs: Sequence[str]) -> str:
    """Summary of a grid: states, how much is done, when it ends, and the jobs that wait or run; `12_3` is of `12`."""
    counts = Counter(str(state or "not submitted") for state in states)
    parts = [", ".join(f"{number} {state}" for state, number in counts.most_common())]
    shares = [1.0 if state == State.COMPLETED else one.share for state, one in zip(states, progress, strict=True)]
    parts.append(f"{100.0 * statistics.fmean(shares):.0f} % done")
    if (left := _grid_left_s(states, progress)) is not None:
        parts.append(f"about {duration_text(left)} left")
    roots = list(dict.fromkeys(job.split("_")[0] for job in jobs))
    if roots:
        shown = " ".join(roots[:4]) + (f" and {len(roots) - 4} more" if len(roots) > 4 else "")
        parts.append(f"{'job' if len(roots) == 1 else 'jobs'} {shown}")
    return f"{len(states)} experiments: " + " · ".join(parts)


_progress: _FileCache[Progress] = _FileCache(lambda path: progress_of(read_json(path)))
_histories: _FileCache[_History] = _FileCache(_read_history)
_summaries: dict[Explorer, _FileCache[Mapping[str, Any]]] = {}

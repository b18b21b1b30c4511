"""Content of the page of one run: its parameters beside those of the others, how it went, its log."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiotok.files import is_file_in
from audiotok.report.table import clock_text
from audiotok.results.experiments import Experiments
from audiotok.results.metrics import CODEC
from audiotok.results.protocols import describe, read_protocol
from audiotok.results.records import Experiment
from audiotok.results.tables import MISSING, format_value, short_names
from audiotok.status import JOB_FILE, read_json
from audiotok.text import clean_text

_LOG_LINES = 30
_LOG_BYTES = 2**14
_MAX_NEIGHBOURS = 12


@dataclass(frozen=True)
class _Parameter:
    """A parameter of one run."""

    name: str  # dotted key
    value: str  # of this run
    # `override` of this run; `configuration`: others override it, this run has the default; `codec` that it builds on.
    source: str
    others: list[tuple[str, int]]  # values of the other runs and how many have each; empty if all have the same


@dataclass(frozen=True)
class Run:
    """One run."""

    sig: str  # signature
    label: str  # the swept parameters, in a few words
    state: str  # as in `Experiments.runs`
    reason: str  # why; may be empty
    problems: list[str]  # what could not be read
    facts: list[tuple[str, str]]  # names and values, such as host and duration
    own: list[_Parameter]  # parameters in which the runs of the grid differ
    common: list[_Parameter]  # parameters that all runs of the grid have alike
    neighbours: list[tuple[str, str, str]]  # that differ in one parameter only: signature, parameter, value
    log: str  # path of the log, empty if there is none
    tail: str  # its last lines, of runs that have not completed


def run_pages(experiments: Experiments) -> Iterator[Run]:
    """Content of the page of each run, in the order of `runs`."""
    swept = experiments.swept if len(experiments.runs) > 1 else []
    values = {name: experiments.runs[name].tolist() for name in experiments.parameters}
    texts = {name: [format_value(value) for value in column] for name, column in values.items()}
    exact = {name: list(map(repr, values[name])) for name in swept}
    counts = {name: Counter(column) for name, column in texts.items()}
    groups = _groups(exact)
    for place, record in enumerate(experiments.records):
        own: list[_Parameter] = []
        common: list[_Parameter] = []
        for name, column in texts.items():
            others = counts[name] - Counter([column[place]]) if name in exact else Counter()
            source = "override" if name in record.overrides else "configuration"
            source = "codec" if name.startswith(CODEC) and name not in record.overrides else source
            parameter = _Parameter(clean_text(name), column[place], source, list(others.items()))
            (own if name in exact else common).append(parameter)
        neighbours = [
            (experiments.records[other].sig, clean_text(name), texts[name][other])
            for name in swept
            for other in groups[name][_without(exact, name, place)]
            if other != place
        ]
        log = _log_file(record)
        yield Run(
            sig=record.sig,
            label=_run_label({name: texts[name][place] for name in swept}),
            state=clean_text(record.state),
            reason=clean_text(record.reason),
            problems=[clean_text(line) for line in record.problems],
            facts=_facts(record),
            own=own,
            common=common,
            neighbours=neighbours[:_MAX_NEIGHBOURS],
            log="" if log is None else clean_text(str(log)),
            tail="" if log is None or record.state == "COMPLETED" else _log_tail(log),
        )


def _run_label(values: Mapping[str, str]) -> str:
    """Swept parameters in a few words: the last part of each name, and the value; missing ones only if all are."""
    shorts = short_names(values)
    there = [name for name, value in values.items() if value != MISSING] or list(values)
    return ", ".join(f"{clean_text(shorts[name])}={values[name]}" for name in there)


def _log_file(record: Experiment) -> Path | None:
    """The log of a run: the one its job names, the latest of submitit, or the trainer's; always inside its folder."""
    path = (read_json(record.folder / JOB_FILE) or {}).get("log")
    names = [Path(path).name] if isinstance(path, str) and path else []
    submitit = sorted(record.folder.glob("submitit/*_log.out"), key=_changed_at, reverse=True)
    candidates = [*(record.folder / folder / name for folder in ("logs", "submitit") for name in names), *submitit]
    candidates += [record.folder / name for name in ("train.log", "solver.log.0")]
    return next((path for path in candidates if is_file_in(record.folder, path)), None)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a link that leads nowhere
        return 0.0


def _log_tail(path: Path) -> str:
    """Last lines of a log, without escape sequences; what cannot be read is empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(
        " " * (len(line) - len(line.lstrip(" "))) + clean_text(line).strip() for line in lines[-_LOG_LINES:]
    )


def _facts(record: Experiment) -> list[tuple[str, str]]:
    status = record.status
    facts = {
        "epochs": f"{record.epochs} of {status['epochs']}" if "epochs" in status else str(record.epochs),
        "amended": record.amended,
        "duration": clock_text(record.duration_s),
        "GPU hours": format_value(record.gpu_hours),
        "evaluate": describe(read_protocol(record)),
        "host": record.host,
        "commit": record.commit,
        "launcher": status.get("launcher"),
        "job": status.get("job_id"),
        "started": _moment(status.get("started")),
        "ended": _moment(status.get("ended")),
        "folder": str(record.folder.absolute()),
    }
    return [(name, clean_text(str(value))) for name, value in facts.items() if value not in (None, "", "-")]


def _moment(seconds: Any) -> str | None:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(seconds)))
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _without(exact: Mapping[str, list[str]], name: str, place: int) -> tuple[str, ...]:
    return tuple(column[place] for other, column in exact.items() if other != name)


def _groups(exact: Mapping[str, list[str]]) -> dict[str, dict[tuple[str, ...], list[int]]]:
    """For each parameter, the runs that have all others alike."""
    groups: dict[str, dict[tuple[str, ...], list[int]]] = {}
    for name, column in exact.items():
        groups[name] = {}
        for place in range(len(column)):
            groups[name].setdefault(_without(exact, name, place), []).append(place)
    return groups

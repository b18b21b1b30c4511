"""What launching a grid would do: who is new, reused, retried or cancelled, what jobs request, what has changed.

A plan is made from the decisions (`launchers.decide`) that a launch follows, and writes nothing. A launch is recorded
in `<dora.dir>/plans/<grid>.json` (in the folder of a grid Dora takes every name for a signature).
"""

import hashlib
import json
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from audiotok.experiments.disk import folder_bytes
from audiotok.launchers.decide import FORCE, Action, Decision
from audiotok.launchers.grid_file import grid_of
from audiotok.launchers.links import linked
from audiotok.launchers.lock import user_and_host
from audiotok.launchers.needs import record_path
from audiotok.launchers.profile import Profile
from audiotok.launchers.shepherd import ENGINES
from audiotok.launchers.table import PRESET
from audiotok.status import State, read_json, read_status, write_json
from audiotok.status.progress import progress_in, progress_of
from audiotok.text import number_in

SAMPLE = 20  # folders of finished experiments that are measured, at most
SHOWN = 5  # experiments of a group that are listed
_TITLES = {  # in their order; first what the launch changes
    Action.NEW: "new",
    Action.RETRY: "retried",
    Action.REPLACE: "replaced",
    Action.CANCEL: "cancelled: no longer in the grid",
    Action.BLOCKED: "blocked",
    Action.KEEP: "left alone: waiting or running",
    Action.REUSE: "reused: done already",
}
_SECRET = ("setup", "srun_args")  # fields of a profile that may hold secrets
_FAILED = "left alone: failed; --retry submits them again"


@dataclass(frozen=True)
class Entry:
    """One experiment of a plan."""

    sig: str
    name: str  # with all its parameters
    folder: Path  # may not exist
    state: str  # of its latest job, "" without one
    decision: Decision
    profile: Profile | None  # what its job requests; None if it left the grid
    size: int | None = None  # bytes of its folder once completed, by its configuration; None if that is not known

    @property
    def action(self) -> Action:
        """What is done about it."""
        return self.decision.action

    def as_json(self) -> dict[str, Any]:
        """As plain containers; without resources if it left the grid."""
        content: dict[str, Any] = {"sig": self.sig, "name": self.name, "action": str(self.action)}
        content |= {"state": str(self.state), "reason": self.decision.reason}
        if self.decision.needs:
            content["needs"] = {sig: str(state) for sig, state in self.decision.needs.items()}
        if self.profile is not None:
            gpus, cpus = _resources(self.profile)
            memory = (self.profile.total_mem_gb or 0.0) * self.decision.mem_factor
            content |= {"gpus": gpus, "cpus": cpus, "mem_gb": memory or None, "time_min": self.profile.time}
        return content


@dataclass(frozen=True)
class Request:
    """What the jobs of a plan request in all."""

    jobs: int
    gpu_hours: float  # GPUs × time limit, an upper bound
    cpu_hours: float
    likely_gpu_hours: float | None  # with the median duration of finished experiments; None without any
    likely_cpu_hours: float | None
    disk_bytes: int | None  # growth of their folders to the size of each, or else to the median of finished ones
    free_bytes: int
    finished: int  # finished experiments of this grid, which the likely figures come from
    measured: int  # finished experiments of this grid that the size comes from; 0: from configurations


class _Member(NamedTuple):
    """An experiment of a recorded launch: its name, and the profile that it was submitted with."""

    name: str
    profile: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Changes:
    """What has changed since the last launch of a grid."""

    time: float  # of that launch, unix seconds
    user: str
    added: list[str]  # names of experiments
    removed: list[str]
    profile: dict[str, int]  # number of experiments by change of their profile: {"time 60 → 90": 40}

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.profile)


@dataclass(frozen=True)
class Plan:
    """What launching a grid would do."""

    grid: str
    launcher: str  # name of the engine
    entries: list[Entry]  # in the order of the grid, then those that are cancelled
    request: Request
    changes: Changes | None = None  # None if it was not launched before
    environment: dict[str, str] = field(default_factory=dict)  # variables that fill in what profiles leave open
    idle: list[str] = field(default_factory=list)  # overrides that do nothing, a line each

    def counts(self) -> dict[Action, int]:
        """Number of experiments by action, in the order of `Action`."""
        found = Counter(entry.action for entry in self.entries)
        return {action: found[action] for action in Action if found[action]}

    def as_json(self) -> dict[str, Any]:
        """As plain containers."""
        return {
            "grid": self.grid,
            "launcher": self.launcher,
            "counts": {str(action): number for action, number in self.counts().items()},
            "request": vars(self.request),
            "environment": self.environment,
            "idle": self.idle,
            "changes": None if self.changes is None else vars(self.changes),
            "experiments": [entry.as_json() for entry in self.entries],
        }


def make_plan(root: Path, grid: str, launcher: str, entries: Sequence[Entry], members: Iterable[str]) -> Plan:
    """Sum up decisions.

    Args:
        root: `dora.dir`.
        grid: name of the grid.
        launcher: engine that would submit.
        entries: experiments that patterns select, and those to cancel.
        members: signatures of the whole grid, whatever the patterns.
    """
    changes = _changes_since(root, grid, _members_of(entries), members)
    fill_in, environment = getattr(ENGINES[launcher], "environment", None), dict[str, str]()
    for entry in entries:
        if fill_in and entry.action.submits and entry.profile:
            environment |= fill_in(entry.profile, os.environ)
    return Plan(grid, launcher, list(entries), _request(root, grid, entries), changes, environment)


def remember(root: Path, grid: str, entries: Iterable[Entry], sigs: Iterable[str]) -> None:
    """Record a launch; called under the lock of the grid.

    Args:
        root: `dora.dir`.
        grid: name of the grid.
        entries: experiments of the launch; with patterns, not all of the grid.
        sigs: signatures of the whole grid: records of others are dropped.

    Raises:
        OSError: if the disk refuses; the record is then as before.
    """
    whole = set(sigs)
    known = {sig: one for sig, one in _read(root, grid)[1].items() if sig in whole} | _members_of(entries)
    keys = {sig: json.dumps(member.profile, sort_keys=True) for sig, member in known.items()}
    number = {key: index for index, key in enumerate(dict.fromkeys(keys.values()))}  # a profile is written once
    experiments = {sig: {"name": one.name, "profile": number[keys[sig]]} for sig, one in known.items()}
    content = {"grid": grid, "time": time.time(), "user": user_and_host()}
    content |= {"profiles": [json.loads(key) for key in number], "experiments": experiments}
    path = record_path(root, grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def plan_text(plan: Plan, *, shown: int | None = SHOWN) -> str:
    """A plan as text, with so many experiments of each group listed (None: all)."""
    whole = sum(entry.action is not Action.CANCEL for entry in plan.entries)
    counts = ", ".join(f"{number} {action}" for action, number in plan.counts().items())
    lines = [f"Plan of {plan.grid} on {plan.launcher}: {_count(whole, 'experiment')}" + (f" ({counts})" * bool(counts))]
    if common := _common(plan.entries):
        lines.append(f"all of them: {common}")
    lines += _chain_lines(plan.entries)
    for title, entries in _groups(plan.entries).items():
        listed = [line.replace(FORCE, FORCE.replace("GRID", plan.grid)) for line in _listed(entries, shown, common)]
        lines += ["", f"{title} ({len(entries)})", *listed]
    variables = ", ".join(f"{name}={value}" for name, value in plan.environment.items())
    requests = [*_request_lines(plan.request), *[f"from the environment: {variables}"] * bool(variables)]
    notes = [f"note: {line}" for line in plan.idle]
    return "\n".join([*lines, "", *requests, *_change_lines(plan.changes, shown), *notes])


def _request(root: Path, grid: str, entries: Sequence[Entry]) -> Request:
    submitted = [entry for entry in entries if entry.action.submits]
    profiles = [entry.profile for entry in submitted if entry.profile]
    resources = [_resources(profile) for profile in profiles]

    def in_all(hours: Iterable[float]) -> list[float]:
        """GPU-hours and CPU-hours of what is submitted, by the hours of each."""
        pairs = list(zip(resources, hours, strict=True))
        return [sum(one[kind] * hour for one, hour in pairs) for kind in (0, 1)]

    xps = root / "xps"
    left = [xps / name for name in sorted(linked(root / "grids" / grid))]  # some of them left the grid
    finished = _finished(dict.fromkeys([*(entry.folder for entry in entries), *left]))
    durations = [seconds / 3600 for seconds in finished.values() if seconds is not None]
    likely: Sequence[float | None] = (None, None)
    if durations:  # a retried experiment resumes from its checkpoint
        usual_h = statistics.median(durations)
        likely = in_all(_hours_left(entry, usual_h) for entry in submitted)
    measured: list[int] = []
    if any(entry.size is None for entry in submitted):
        evenly = list(finished)[:: max(1, len(finished) // SAMPLE)]
        measured = [folder_bytes(folder) for folder in evenly[:SAMPLE]]
    usual = statistics.median_high(measured) if measured else None
    sizes = [(entry, usual if entry.size is None else entry.size) for entry in submitted]
    disk = sum(max(0, size - folder_bytes(entry.folder)) for entry, size in sizes if size is not None)
    base = next(path for path in (root, *root.parents) if path.is_dir())
    gpu_hours, cpu_hours = in_all(profile.time / 60 for profile in profiles)
    return Request(
        jobs=len(submitted),
        gpu_hours=gpu_hours,
        cpu_hours=cpu_hours,
        likely_gpu_hours=likely[0],
        likely_cpu_hours=likely[1],
        disk_bytes=None if any(size is None for _, size in sizes) else disk,
        free_bytes=shutil.disk_usage(base).free,
        finished=len(durations),
        measured=len(measured),
    )


def _hours_left(entry: Entry, usual_h: float) -> float:
    """Hours that an experiment likely takes, where others of its grid have taken so many."""
    if entry.action is Action.NEW and entry.state != State.EXTENDED:
        return usual_h
    progress = progress_in(entry.folder)
    if entry.state == State.EXTENDED and progress.left_s is not None:
        return progress.left_s / 3600
    return usual_h * (1.0 - progress.share)


def _finished(folders: Iterable[Path]) -> dict[Path, float | None]:
    """Folders of completed experiments, and the seconds that each took, None if not known."""
    statuses = ((folder, read_status(folder) or {}) for folder in folders)
    return {
        folder: progress_of(status).whole_s for folder, status in statuses if status.get("state") == State.COMPLETED
    }


def _resources(profile: Profile) -> tuple[int, int]:
    """GPUs and CPU cores that a job requests."""
    shape = profile.shape()
    return profile.gpus, shape.tasks * shape.cpus_per_task


def _members_of(entries: Iterable[Entry]) -> dict[str, _Member]:
    """What is recorded of the experiments that stay in the grid, by signature."""
    staying = [entry for entry in entries if entry.action is not Action.CANCEL]
    profiles = {entry.sig: _recorded(entry.profile.as_json()) if entry.profile else {} for entry in staying}
    return {entry.sig: _Member(entry.name, profiles[entry.sig]) for entry in staying}


def _recorded(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a profile as they are recorded: those in which secrets stand, such as `export KEY=…`, by a digest."""
    texts = {
        name: json.dumps(value, sort_keys=True)
        for name, value in profile.items()
        if name in _SECRET and value and not isinstance(value, str)  # a digest of a record stays
    }
    return {**profile, **{name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()}}


def _read(root: Path, grid: str) -> tuple[dict[str, Any] | None, dict[str, _Member]]:
    """The record of the last launch, whole and by signature; a damaged file counts as none."""
    content = read_json(record_path(root, grid)) or {}
    try:
        profiles, known = content["profiles"], content["experiments"].items()
        return content, {sig: _Member(str(one["name"]), _recorded(profiles[one["profile"]])) for sig, one in known}
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        return None, {}


def _changes_since(root: Path, grid: str, members: Mapping[str, _Member], sigs: Iterable[str]) -> Changes | None:
    """Compare a grid, of which `sigs` are all, with its last launch; None if none is recorded."""
    content, then = _read(root, grid)
    if content is None:
        return None
    whole, fields = set(sigs), Counter[str]()
    for sig in members.keys() & then.keys():
        before, now = then[sig].profile, members[sig].profile
        both = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
        fields.update(f"{name} {_word(before[name])} → {_word(now[name])}" for name in both)
    return Changes(
        time=number_in(content, "time") or 0.0,
        user=str(content.get("user", "")),
        added=[member.name for sig, member in members.items() if sig not in then],
        removed=[member.name for sig, member in then.items() if sig not in whole],
        profile=dict(sorted(fields.items())),
    )


def _word(value: Any) -> str:
    return "none" if value in (None, "", [], {}) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _bytes(size: float) -> str:
    """A size on disk in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{_hours(size)} TB"


def _groups(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Experiments by what is done about them, in the order of the grid."""
    order, groups = list(_TITLES), dict[str, list[Entry]]()
    for entry in sorted(entries, key=lambda entry: order.index(entry.action)):
        failed = entry.action is Action.KEEP and not State.of(entry.state).live
        groups.setdefault(_FAILED if failed else _TITLES[entry.action], []).append(entry)
    return groups


def _common(entries: Sequence[Entry]) -> str:
    """The whole parameters that the names of all experiments of the grid begin with."""
    names = [entry.name.split(" ") for entry in entries if entry.action is not Action.CANCEL]
    if len(names) < 2:
        return ""
    alike = takewhile(lambda words: len(set(words)) == 1 and not {*"[{("} & {*words[0]}, zip(*names, strict=False))
    return " ".join(words[0] for words in alike)


def _listed(entries: Sequence[Entry], shown: int | None, common: str) -> list[str]:
    """A line each, grouped by their reasons."""
    by_reason: dict[str, list[Entry]] = {}
    for entry in entries:
        by_reason.setdefault(entry.decision.reason, []).append(entry)
    lines = []
    for reason, alike in by_reason.items():
        if reason:
            lines.append(f"  {reason}" + (f" ({len(alike)})" if len(alike) < len(entries) else ""))
        lines += _first([f"{one.sig}  {one.name.removeprefix(common).strip() or PRESET}" for one in alike], shown)
    return lines


def _first(lines: Sequence[str], shown: int | None) -> list[str]:
    """The first of many lines, indented, and how many more there are."""
    first = lines if shown is None or len(lines) <= shown + 1 else lines[:shown]
    more = [f"… {len(lines) - len(first)} more (`audiotok plan` with --all lists them)"] * (len(first) < len(lines))
    return [f"    {line}" for line in [*first, *more]]


def _chain_lines(entries: Iterable[Entry]) -> list[str]:
    """How many wait for what, a line for each grid that they are over."""
    waiting, needed = Counter[str](), dict[str, dict[str, State]]()
    for entry in entries:
        for sig, state in entry.decision.needs.items():
            needed.setdefault(grid_of(sig), {})[sig] = state
        waiting.update({grid_of(sig) for sig in entry.decision.needs})
    lines = []
    for grid, states in needed.items():
        counts = ", ".join(f"{number} {state}" for state, number in Counter(states.values()).items())
        what = _count(len(states), "experiment") + f" of {grid}" * bool(grid)
        lines.append(f"chain: {waiting[grid]} wait{'s' * (waiting[grid] == 1)} for {what} ({counts})")
    return lines


def _request_lines(request: Request) -> list[str]:
    if not request.jobs:
        return ["requests: nothing, no job is submitted"]
    jobs = _count(request.jobs, "job")
    limits = f"at most {_hours(request.gpu_hours)} GPU-hours and {_hours(request.cpu_hours)} CPU-hours"
    if request.likely_gpu_hours is None or request.likely_cpu_hours is None:
        likely = "; how much of that is used is unknown until an experiment of this grid has finished"
    else:
        known = f"{_count(request.finished, 'finished experiment')} of this grid"
        gpu, cpu = _hours(request.likely_gpu_hours), _hours(request.likely_cpu_hours)
        likely = f"; likely {gpu} GPU-hours and {cpu} CPU-hours, going by {known}"
    free = f"; {_bytes(request.free_bytes)} free"
    if request.disk_bytes is None:
        disk = f"disk: unknown until an experiment of this grid has finished{free}"
    else:
        measured, small = _count(request.measured, "finished experiment"), request.disk_bytes > request.free_bytes
        basis = f"going by {measured}" if request.measured else "networks and checkpoints that are kept"
        disk = f"disk: about {_bytes(request.disk_bytes)}, {basis}{free}{' — not enough' if small else ''}"
    return [f"requests: {jobs}, {limits}{likely}", disk]


def _change_lines(changes: Changes | None, shown: int | None) -> list[str]:
    if changes is None:
        return ["since the last submission: this grid has not been submitted from here before"]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changes.time))
    head = f"since the last submission ({when}, {changes.user}):"
    if not changes:
        return [f"{head} nothing has changed"]
    lines = [head]
    for sign, what, names in (("+", "added", changes.added), ("-", "removed", changes.removed)):
        lines += [f"  {len(names)} {what}"] * bool(names) + _first([f"{sign} {name}" for name in names], shown)
    return lines + [f"  {change} ({number} experiments)" for change, number in changes.profile.items()]

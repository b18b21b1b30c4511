"""What launching a grid would do: who is new, reused, retried or cancelled, what it asks for, what has changed.

A plan is made from the same decisions (`launchers.decide`) that a launch follows, and writes nothing. What a launch did
is remembered in `<dora.dir>/plans/<grid>.json`, so that the next plan can say what has changed since.
"""

import os
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiotok.launchers.decide import Action, Decision, memory_gb, profile_fields
from audiotok.launchers.plans.memory import Changes, Member, changes_since
from audiotok.launchers.profile import Profile
from audiotok.launchers.watching.progress import progress_of
from audiotok.status import read_status

SAMPLE = 20  # folders of finished experiments that are measured, at most


@dataclass(frozen=True)
class Entry:
    """One experiment of a plan.

    Attributes:
        sig: its signature.
        name: what people call it, with all its parameters.
        folder: its folder, which may not exist.
        state: state of its latest job, "" without one.
        decision: what is done about it, and why.
        profile: what its job asks for; None if it left the grid.
    """

    sig: str
    name: str
    folder: Path
    state: str
    decision: Decision
    profile: Profile | None

    @property
    def action(self) -> Action:
        """What is done about it."""
        return self.decision.action

    @property
    def gpus(self) -> int:
        """GPUs that its job asks for."""
        return self.profile.gpus if self.profile else 0

    @property
    def cpus(self) -> int:
        """CPU cores that its job asks for."""
        if self.profile is None:
            return 0
        shape = self.profile.shape()
        return shape.tasks * shape.cpus_per_task

    @property
    def hours(self) -> float:
        """Time limit of its job."""
        return self.profile.time / 60 if self.profile else 0.0

    def as_json(self) -> dict[str, Any]:
        """For machines; without what an experiment that left the grid would no longer ask for."""
        told: dict[str, Any] = {"sig": self.sig, "name": self.name, "action": str(self.action), "state": self.state}
        told["reason"] = self.decision.reason
        if self.profile is not None:
            memory = memory_gb(self.profile) * self.decision.mem_factor
            told |= {"gpus": self.gpus, "cpus": self.cpus, "mem_gb": memory or None, "time_min": self.profile.time}
        return told


@dataclass(frozen=True)
class Request:
    """What a plan asks for in all.

    Attributes:
        jobs: jobs that are submitted.
        gpu_hours: GPUs × time limit: the most it can take.
        cpu_hours: likewise for cores.
        likely_gpu_hours: what it takes if it lasts as long as what has finished; None if nothing has.
        likely_cpu_hours: likewise for cores.
        disk_bytes: what their folders grow by, if they end up as large as those that have finished.
        free_bytes: what the disk has left.
        finished: how many finished experiments of this grid the likely figures come from.
        measured: how many finished experiments the size comes from: of this grid, or of all where it has none.
    """

    jobs: int
    gpu_hours: float
    cpu_hours: float
    likely_gpu_hours: float | None
    likely_cpu_hours: float | None
    disk_bytes: int | None
    free_bytes: int | None
    finished: int
    measured: int


@dataclass(frozen=True)
class Plan:
    """What launching a grid would do.

    Attributes:
        grid: name of the grid.
        launcher: engine that would be submitted with.
        entries: experiments in the order of the grid, then those that are cancelled as they left it.
        request: what it asks for.
        changes: since the last submission; None if there was none.
    """

    grid: str
    launcher: str
    entries: list[Entry]
    request: Request
    changes: Changes | None = None

    def counts(self) -> dict[Action, int]:
        """Number of experiments by action, in the order of `Action`."""
        found = Counter(entry.action for entry in self.entries)
        return {action: found[action] for action in Action if found[action]}

    def as_json(self) -> dict[str, Any]:
        """For machines: plain containers."""
        return {
            "grid": self.grid,
            "launcher": self.launcher,
            "counts": {str(action): number for action, number in self.counts().items()},
            "request": vars(self.request),
            "changes": None if self.changes is None else vars(self.changes),
            "experiments": [entry.as_json() for entry in self.entries],
        }


def make_plan(root: Path, grid: str, launcher: str, entries: Sequence[Entry], members: Iterable[str]) -> Plan:
    """Sum up decisions.

    Args:
        root: `dora.dir`.
        grid: name of the grid.
        launcher: engine that would be submitted with.
        entries: experiments that patterns leave, and those to cancel.
        members: signatures of the whole grid, whatever the patterns.
    """
    changes = changes_since(root, grid, members_of(entries), members)
    return Plan(grid, launcher, list(entries), _request(root, grid, entries), changes)


def members_of(entries: Iterable[Entry]) -> dict[str, Member]:
    """What is to be remembered of a plan that was carried out; see `launchers.plans.memory.remember`."""
    staying = [entry for entry in entries if entry.action is not Action.CANCEL]
    return {entry.sig: Member(entry.name, profile_fields(entry.profile) if entry.profile else {}) for entry in staying}


def folder_bytes(folder: Path) -> int:
    """Size of all files of a folder, links not followed; 0 if there is none."""
    total = 0
    for base, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(base) / name).lstat().st_size
            except OSError:  # it went away meanwhile
                continue
    return total


def _request(root: Path, grid: str, entries: Sequence[Entry]) -> Request:
    """Add up what is submitted, and what of it is likely to be used."""
    asked = [entry for entry in entries if entry.action.submits]
    finished = _finished(_folders(root, grid, entries))
    usual = [seconds / 3600 for seconds in finished.values() if seconds is not None]
    hours = None
    if usual:  # a retried experiment goes on from its checkpoint
        hours = [statistics.median(usual) * (1.0 - _share(entry)) for entry in asked]
    sizes = [folder_bytes(folder) for folder in _some(list(finished or _finished(_some(_all_folders(root), 200))))]
    disk = None
    if sizes:
        disk = sum(max(0, statistics.median_high(sizes) - folder_bytes(entry.folder)) for entry in asked)
    base = next((path for path in (root, *root.parents) if path.is_dir()), None)
    return Request(
        jobs=len(asked),
        gpu_hours=sum(entry.gpus * entry.hours for entry in asked),
        cpu_hours=sum(entry.cpus * entry.hours for entry in asked),
        likely_gpu_hours=None if hours is None else _product([entry.gpus for entry in asked], hours),
        likely_cpu_hours=None if hours is None else _product([entry.cpus for entry in asked], hours),
        disk_bytes=disk,
        free_bytes=None if base is None else shutil.disk_usage(base).free,
        finished=len(usual),
        measured=len(sizes),
    )


def _folders(root: Path, grid: str, entries: Sequence[Entry]) -> list[Path]:
    """Folders of a grid as it is, and as it was."""
    linked = root / "grids" / grid
    names = [path.name for path in linked.iterdir()] if linked.is_dir() else []
    return list(dict.fromkeys([*(entry.folder for entry in entries), *(root / "xps" / name for name in names)]))


def _all_folders(root: Path) -> list[Path]:
    return sorted((root / "xps").iterdir()) if (root / "xps").is_dir() else []


def _finished(folders: Iterable[Path]) -> dict[Path, float | None]:
    """Folders of experiments that have completed, and the seconds that each took, None if not known."""
    found = {}
    for folder in folders:
        status = read_status(folder)
        if status is not None and status.get("state") == "COMPLETED":
            found[folder] = progress_of(status).whole_s
    return found


def _some(folders: Sequence[Path], most: int = SAMPLE) -> Sequence[Path]:
    """A few of them, from all over."""
    return folders[:: max(1, len(folders) // most)][:most]


def _share(entry: Entry) -> float:
    """Part of its work that an experiment has behind it."""
    return 0.0 if entry.action is Action.NEW else progress_of(read_status(entry.folder)).share


def _product(each: Sequence[int], hours: Sequence[float]) -> float:
    return sum(number * hour for number, hour in zip(each, hours, strict=True))

"""One experiment as a record of the content of its files, and many of them at once, from the cache where that holds.

A damaged file is a line in `Experiment.problems`, and a line of the log, not an error: the others still count.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from audiotok.results.cache import Block, Shard, StaleCacheError, load_shards
from audiotok.results.codecs import CHECKPOINT
from audiotok.results.read import History, encodable, hashable, read_history
from audiotok.status.amendments import amendment_text
from audiotok.text import clean_text, number_in

_MAX_LOGGED = 10
_MAX_TEXT = 200  # characters of the name of a host or a commit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """One experiment, as read from its files."""

    sig: str  # Dora's signature
    folder: Path  # its folder; it may not exist yet
    overrides: dict[str, Any] = field(default_factory=dict)  # parsed, by dotted key
    # Values of its configuration for parameters that other experiments override and it does not.
    configured: dict[str, Any] = field(default_factory=dict)
    state: str = "NOT_STARTED"  # name of a `status.State`
    reason: str = ""  # why it is in that state; may be empty
    status: dict[str, Any] = field(default_factory=dict)  # content of `status.json`, empty when there is none
    profile_gpus: Any = None  # GPUs requested for its job, None if unknown
    epochs: int = 0  # epochs in the history
    last_epoch: int = 0  # number of the last one that measured anything, 0 without one
    measured_s: float | None = None  # seconds of all stages of all epochs, None if none was measured
    amendments: list[dict[str, Any]] = field(default_factory=list)  # see `status.amendments`, the oldest first
    problems: list[str] = field(default_factory=list)  # what could not be read, one line each
    block: Block = field(default_factory=Block, repr=False, compare=False)  # what holds its numbers, at `place`
    place: int = field(default=0, repr=False, compare=False)

    @cached_property
    def history(self) -> History:
        """One {stage: {metric: number}} per epoch, epoch 1 first; read from the file on first use."""
        return read_history(self.folder / "history.json", [])

    @property
    def amended(self) -> str:
        """What was amended since it was made: `optim.epochs 200 → 300`; empty if nothing was."""
        return encodable("; ".join(map(amendment_text, self.amendments))[:_MAX_TEXT])

    @property
    def host(self) -> str:
        """Machine of the last job; may be empty."""
        return self._text("host")

    @property
    def commit(self) -> str:
        """Commit of the code that ran; may be empty."""
        return self._text("commit")

    def _text(self, name: str) -> str:
        return encodable(str(self.status.get(name) or "")[:_MAX_TEXT])

    @property
    def duration_s(self) -> float:
        """Seconds of work: all stages of all epochs, else of its last job; NaN if unknown."""
        if self.measured_s is not None:
            return self.measured_s
        start, updated, end = (number_in(self.status, name) for name in ("started", "updated", "ended"))
        end = updated if end is None else end
        return math.nan if start is None or end is None else end - start

    @property
    def gpu_hours(self) -> float:
        """GPUs × hours of work; 0 on the CPU and before it starts, NaN if unknown."""
        gpus = number_in({"gpus": self.profile_gpus, **self.status}, "gpus")
        if gpus == 0 or not (self.status or self.epochs):
            return 0.0
        return math.nan if gpus is None else gpus * self.duration_s / 3600

    @property
    def touched_s(self) -> float:
        """Unix seconds of its last sign of life: by its status, else by the times of its files."""
        times = [number_in(self.status, name) for name in ("started", "updated", "ended")]
        entry = self.block.entries[self.place]
        marks = [mark for name in ("history", "argv", "state") for mark in entry[name]["marks"]]
        files = [mark[1] / 1e9 for mark in marks if mark is not None]
        return max((time for time in times if time is not None), default=max(files, default=0.0))


def read_experiment(folder: str | Path) -> Experiment:
    """Read one experiment, without the cache; damaged or missing files become problems, never errors."""
    path = Path(folder)
    key = str(path.absolute())
    shard = Shard("", "", [key], cached=False)
    return _record(path, shard.overrides[key], *shard.load([])[key])


def load_records(folders: Mapping[Path, Sequence[Path]], *, cached: bool = True) -> list[Experiment]:
    """Read experiments, given by results folder, in that order."""
    for use_cache in (cached, cached, False):  # another process may rewrite the cache meanwhile
        shards = [shard for root, paths in folders.items() for shard in _shards(root, paths, cached=use_cache)]
        each = [values for shard in shards for values in shard.overrides.values()]
        of_codec = any(str(values.get("solver")).startswith("lm/") for values in each)  # a preset may name the codec
        keys = list(dict.fromkeys([*(key for values in each for key in values), *([CHECKPOINT] if of_codec else [])]))
        with contextlib.suppress(StaleCacheError):
            places = load_shards(shards, keys)
            break
    overrides = {folder: values for shard in shards for folder, values in shard.overrides.items()}
    paths = [(path, str(path.absolute())) for group in folders.values() for path in group]
    records = [_record(path, overrides[key], *places[key]) for path, key in paths]
    for record in records:
        if record.problems and not os.path.lexists(record.folder):
            record.problems.clear()  # of a grid, and not submitted yet
    damaged = [record for record in records if record.problems]
    for record in damaged[:_MAX_LOGGED]:
        for problem in record.problems:
            logger.warning("%s", clean_text(f"{record.folder}: {problem}"))
    if len(damaged) > _MAX_LOGGED:
        logger.warning("and %d more experiments with files that cannot be read", len(damaged) - _MAX_LOGGED)
    return records


def _shards(root: Path, folders: Iterable[Path], *, cached: bool) -> list[Shard]:
    """Groups by the first two digits: a change rewrites little, and a cold start has pieces to share out."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(folder.name[:2], []).append(str(folder.absolute()))
    return [Shard(str(root.absolute()), name, group, cached=cached) for name, group in groups.items()]


def _record(folder: Path, overrides: dict[str, Any], block: Block, place: int) -> Experiment:
    entry = block.entries[place]
    argv, state, history, config = (entry[name] for name in ("argv", "state", "history", "config"))
    problems = [line for part in (history, state, argv, config) for line in part["problems"]]
    if problems and not folder.is_dir():
        problems = ["no folder for this signature"]
    amended = {key: pair[1] for one in argv["amendments"] for key, pair in one["keys"].items()}
    configured = {key: amended.get(key, _configured(text)) for key, text in config["values"].items()}
    facts = {name: state[name] for name in ("state", "reason", "status", "profile_gpus")}
    facts |= {"epochs": history["epochs"], "last_epoch": history["last_epoch"], "measured_s": history["duration"]}
    facts |= {"amendments": argv["amendments"], "problems": problems}
    return Experiment(folder.name, folder, overrides, configured, **facts, block=block, place=place)


@lru_cache(maxsize=2**12)
def _configured(text: str) -> Any:
    return hashable(json.loads(text))

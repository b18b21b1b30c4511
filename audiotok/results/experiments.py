"""Experiments as records: what the files of each one say, from the cache where it still holds.

A damaged file is a line in `Experiment.problems`, and a line of the log, not an error: the others still count.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from audiotok.results.block import Block
from audiotok.results.cache import VERSION
from audiotok.results.entries import Entry
from audiotok.results.files import encodable
from audiotok.results.history import History, read_history
from audiotok.results.read import hashable
from audiotok.results.shards import OpenShard, Shard, load_shard
from audiotok.results.workers import load_shards

CACHE_FOLDER = Path(".cache", "audiotok", f"results-{VERSION}")
POOL_BYTES = 2**26  # of JSON: with less, starting processes takes longer than parsing
_MAX_LOGGED = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """One experiment, as its files tell it.

    Attributes:
        sig: Dora's signature.
        folder: its folder; it may not exist yet.
        overrides: parameters given to it, parsed, by dotted key.
        configured: values of its configuration for parameters that other experiments override and it does not.
        state: NOT_STARTED, or the verdict of `audiotok.status`: PENDING, RUNNING, STALE, COMPLETED, ...
        reason: why it is in that state; may be empty.
        status: content of `status.json`, empty when there is none.
        profile_gpus: GPUs that its job asked for, None if unknown.
        epochs: epochs in the history.
        last_epoch: number of the last one that measured anything, 0 without one.
        measured_s: seconds of all stages of all epochs, None if none was measured.
        problems: what could not be read, one line each.
        block: where its numbers are, at `place`.
    """

    sig: str
    folder: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    configured: dict[str, Any] = field(default_factory=dict)
    state: str = "NOT_STARTED"
    reason: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    profile_gpus: Any = None
    epochs: int = 0
    last_epoch: int = 0
    measured_s: float | None = None
    problems: list[str] = field(default_factory=list)
    block: Block = field(default_factory=lambda: Block([]), repr=False, compare=False)
    place: int = field(default=0, repr=False, compare=False)

    @cached_property
    def history(self) -> History:
        """One {stage: {metric: number}} per epoch, epoch 1 first; read from the file when first asked for."""
        return read_history(self.folder / "history.json", [])

    @property
    def host(self) -> str:
        """Machine of the last job; may be empty."""
        return _text(self.status.get("host"))

    @property
    def commit(self) -> str:
        """Commit of the code that ran; may be empty."""
        return _text(self.status.get("commit"))

    @property
    def duration_s(self) -> float:
        """Seconds of work: all stages of all epochs, else of its last job; NaN if unknown."""
        if self.measured_s is not None:
            return self.measured_s
        start, end = _number(self.status.get("started")), _number(self.status.get("ended"))
        return (_number(self.status.get("updated")) if math.isnan(end) else end) - start

    @property
    def gpu_hours(self) -> float:
        """GPUs × hours of work; 0 on the CPU and before it starts, NaN if unknown."""
        gpus = _number(self.status.get("gpus", self.profile_gpus))
        if gpus == 0 or not (self.status or self.epochs):
            return 0.0
        return gpus * self.duration_s / 3600

    @property
    def touched_s(self) -> float:
        """Unix seconds of its last sign of life, by its own word, else by the times of its files."""
        told = [_number(self.status.get(name)) for name in ("started", "updated", "ended")]
        entry = self.block.entries[self.place]
        marks = [found for name in ("history", "argv", "state") for found in entry[name]["marks"]]
        files = [found[1] / 1e9 for found in marks if found is not None]
        return max((time for time in told if math.isfinite(time)), default=max(files, default=0.0))


def read_experiment(folder: str | Path) -> Experiment:
    """Read one experiment, without the cache; damaged or missing files become problems, never errors."""
    path = Path(folder)
    (block,) = [block for block in load_shard(Shard(None, "", (str(path.absolute()),)), []) if block.entries]
    return _record(path, block, 0)


def load_records(folders: Mapping[Path, Sequence[Path]]) -> list[Experiment]:
    """Read experiments.

    Args:
        folders: folders of experiments by results folder, whose cache is used.

    Returns:
        Records in the same order.
    """
    opened = [shard.open() for root, paths in folders.items() for shard in _shards(root, paths)]
    keys = tuple(dict.fromkeys(key for shard in opened for key in _overridden(shard)))
    stale = [shard.stale_bytes() for shard in opened]
    if sum(stale) >= POOL_BYTES:
        cold = [shard.shard for shard, size in zip(opened, stale, strict=True) if size]
        blocks = [block for found in load_shards(cold, keys) for block in found]
        opened = [shard for shard, size in zip(opened, stale, strict=True) if not size]
    else:
        blocks = []
    blocks += [block for shard in opened for block in load_shard(shard.shard, keys, shard)]
    places: dict[str, tuple[Block, int]] = {}
    for block in blocks:
        places |= {entry["folder"]: (block, place) for place, entry in enumerate(block.entries) if "folder" in entry}
    paths = [path for group in folders.values() for path in group]
    records = [_record(path, *places[str(path.absolute())]) for path in paths]
    _report(records)
    return records


def _shards(root: Path, folders: Iterable[Path]) -> list[Shard]:
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(folder.name[:2], []).append(str(folder.absolute()))
    base = str(root.absolute())
    return [Shard(Path(base, CACHE_FOLDER, name), base, tuple(group)) for name, group in groups.items()]


def _overridden(shard: OpenShard) -> dict[str, None]:
    return dict.fromkeys(key for folder in shard.shard.folders for key in shard.overrides(folder))


def _record(folder: Path, block: Block, place: int) -> Experiment:
    entry: Entry = block.entries[place]
    argv, state, history, config = entry["argv"], entry["state"], entry["history"], entry.get("config", {})
    problems = [line for part in (history, state, argv, config) for line in part.get("problems", ())]
    if problems and not folder.is_dir():
        problems = ["no folder for this signature"]
    return Experiment(
        sig=folder.name,
        folder=folder,
        overrides=entry["overrides"],
        configured={key: _configured(text) for key, text in config.get("values", {}).items()},
        state=state["state"],
        reason=state["reason"],
        status=state["status"],
        profile_gpus=state["profile_gpus"],
        epochs=history["epochs"],
        last_epoch=history["last_epoch"],
        measured_s=history["duration"],
        problems=problems,
        block=block,
        place=place,
    )


@lru_cache(maxsize=2**12)
def _configured(text: str) -> Any:
    return hashable(json.loads(text))


def _report(records: Sequence[Experiment]) -> None:
    """Log what is damaged; a thousand lines of it would help nobody."""
    damaged = [record for record in records if record.problems]
    for record in damaged[:_MAX_LOGGED]:
        logger.warning("%s: %s", record.folder, encodable("; ".join(record.problems)))
    if len(damaged) > _MAX_LOGGED:
        logger.warning("and %d more experiments with files that cannot be read", len(damaged) - _MAX_LOGGED)


def _text(value: Any) -> str:
    return encodable(str(value or ""))


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # JSON allows integers of any size
        return math.nan

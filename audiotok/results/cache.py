"""Cache of what the JSON files hold: an Arrow IPC stream per shard of signatures, `ROOT/.cache/audiotok/results-3/0a`.

Its metadata hold an entry per experiment (JSON of parts, each with size and time of the files that it was read from),
sizes and checksums; its record batches are columns of float64, read as needed. A file that is damaged, foreign or of
another version counts as absent. Nothing in it is executed.
"""

import itertools
import json
import logging
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from audiotok.files import replacing
from audiotok.results.read import (
    FROZEN_FILE,
    SavedConfig,
    StageTable,
    encodable,
    hashable,
    parse_json,
    parse_overrides,
    read_json_file,
    read_tables,
)
from audiotok.status import AMENDED_FILE, JOB_FILE, STATUS_FILE, TASK_FILE, experiment_state
from audiotok.status.amendments import EPOCHS, read_amendments

VERSION = 3
CACHE_FOLDER = Path(".cache", "audiotok", f"results-{VERSION}")
MIN_BYTES_FOR_PROCESSES = 2**26  # of JSON; with less, starting processes takes longer than parsing
_MAX_PROCESSES = 4
_MAX_OVERRIDES = 1000  # of one experiment
_MAX_BYTES = 2**32  # of a shard
_MAX_TEXT = 2000  # characters of a reason
_REST_S = 30.0  # a file that changed less than that ago may be changing still, and is not worth keeping
_ABANDONED_S = 3600.0
_FILES = {  # parts of an entry, and the files that each is read from
    "history": ("history.json",),
    "argv": (".argv.json", AMENDED_FILE),
    "state": (STATUS_FILE, JOB_FILE, TASK_FILE, AMENDED_FILE),
    "config": (FROZEN_FILE,),
}
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, MemoryError, pa.ArrowException)
_DRIVER = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
import audiotok
# Not the package itself: its __init__ imports pandas, which takes half of the memory and of the time to start.
package = sys.modules["audiotok.results"] = types.ModuleType("audiotok.results")
package.__path__ = [f"{path}/results" for path in audiotok.__path__]
from audiotok.results import cache
cache._serve()
"""

Mark = list[int] | None  # size in bytes and time of change in ns of a file; a list, as JSON gives it back
Part = dict[str, Any]
Entry = dict[str, Any]
Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)


class StaleCacheError(Exception):
    """A file of the cache was replaced since it was opened, or is damaged; load again."""


@dataclass(frozen=True)
class _File:
    """Columns in a file; it is not mapped, for a mapped file that is replaced on NFS would kill this process."""

    path: Path
    mark: Mark
    start: int  # of the messages
    offsets: list[int]  # of the message of each column
    checksums: list[int]

    def read(self, places: Sequence[int]) -> list[Floats]:
        """Some columns.

        Raises:
            StaleCacheError: if the file is no longer as it was.
        """
        whole = len(places) > len(self.offsets) / 2  # most of a file is read faster at once
        try:
            with _open(self.path) as opened, pa.BufferReader(opened.read()) if whole else opened as file:
                return [_read_column(file, self.start + self.offsets[n], self.checksums[n]) for n in places]
        except _UNREADABLE as error:
            if _mark(str(self.path)) == self.mark:
                with suppress(OSError):
                    self.path.unlink()  # or it would be opened again
            raise StaleCacheError(f"{self.path} was replaced or is damaged ({error})") from error


def _open(path: Path) -> pa.NativeFile:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:  # a pipe would block
        raise OSError(f"{path} is no file of ours")
    return pa.OSFile(str(path), memory_pool=pa.system_memory_pool())  # the default pool keeps what is freed


def _read_column(file: pa.NativeFile, start: int, checksum: int) -> Floats:
    file.seek(start)
    body = pa.ipc.read_message(file).body  # of a column without nulls, it is the values
    if zlib.crc32(body) != checksum:
        raise ValueError("a checksum is wrong")
    return np.frombuffer(body)


@dataclass(frozen=True)
class Block:
    """Experiments by columns; a column holds the rows of one experiment after the other.

    Attributes:
        entries: what is known of each of the E experiments besides the numbers; JSON can hold it.
        metrics: of each stage.
        columns: the summary, flat; then of each stage the numbers (from 1) of the epochs that measured anything, and
            the values of each metric, NaN where not measured.
        file: what holds the columns after the summary, if they are not in memory.
    """

    entries: list[Entry] = field(default_factory=list)
    metrics: Mapping[str, list[str]] = field(default_factory=dict)
    columns: Sequence[Floats] = (np.empty(0),)
    file: _File | None = None

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """Stage and metric of each of the M metrics of all stages."""
        return [(stage, name) for stage, names in self.metrics.items() for name in names]

    @property
    def summary(self) -> Floats:
        """See `StageTable.summary` [E, M, 3]; all NaN where an experiment has not measured a metric."""
        return self.columns[0].reshape(len(self.entries), len(self.names), 3)

    def lengths(self, stage: str) -> NDArray[np.int64]:
        """Rows of each experiment [E]."""
        return np.array([entry["history"]["rows"].get(stage, 0) for entry in self.entries], np.int64)

    def read(
        self, stages: Collection[str] | None = None, metrics: Collection[str] | None = None
    ) -> dict[tuple[str, str | None], Floats]:
        """Columns of some stages and some metrics, by default all: of each stage its epochs (None), then the metrics.

        Raises:
            StaleCacheError: if the file is no longer as it was.
        """
        keys = ((stage, name) for stage, names in self.metrics.items() for name in (None, *names))
        places = {
            (stage, name): place
            for place, (stage, name) in enumerate(keys, 1)
            if (stages is None or stage in stages) and (name is None or metrics is None or name in metrics)
        }
        if self.file is None:
            return {key: self.columns[place] for key, place in places.items()}
        return dict(zip(places, self.file.read(list(places.values())), strict=True))


def _make_block(experiments: Sequence[tuple[Entry, list[StageTable]]]) -> Block:
    """Block of experiments, in memory, from the entry and the tables of each."""
    names: dict[str, dict[str, None]] = {}
    for _, tables in experiments:
        for table in tables:
            names.setdefault(table.stage, {}).update(dict.fromkeys(table.names))
    metrics = {stage: list(own) for stage, own in names.items()}
    summary = np.full((len(experiments), sum(map(len, metrics.values())), 3), np.nan)
    columns, first = [summary.ravel()], 0
    for stage, own in metrics.items():
        parts, order = [], {name: index for index, name in enumerate(own)}
        for place, (_, tables) in enumerate(experiments):
            for table in tables:
                if table.stage == stage:
                    at = np.array([order[name] for name in table.names])
                    summary[place, first + at] = table.summary
                    part = np.full((1 + len(own), len(table.epochs)), np.nan)
                    part[0], part[1 + at] = table.epochs, table.values.T
                    parts.append(part)
        columns += list(np.concatenate(parts, axis=1))
        first += len(own)
    return Block([entry for entry, _ in experiments], metrics, columns)


def _tables(block: Block) -> list[list[StageTable]]:
    """Tables of each experiment of a block; `StaleCacheError` if its file is no longer as it was."""
    tables: list[list[StageTable]] = [[] for _ in block.entries]
    columns = block.read()
    first = 0
    for stage, names in block.metrics.items():
        summary = block.summary[:, first : first + len(names)]
        epochs = columns[stage, None].astype(np.int32)
        values = np.stack([columns[stage, name] for name in names], axis=1)
        stop = 0
        for own, each, length in zip(tables, summary, block.lengths(stage), strict=True):
            start, stop = stop, stop + length
            if length:
                there = ~np.isnan(each[:, 1])
                found = tuple(itertools.compress(names, there))
                own.append(StageTable(stage, found, epochs[start:stop], values[start:stop, there], each[there]))
        first += len(names)
    return tables


def _write_block(path: Path, block: Block) -> Block | None:
    """Write a block, which is in memory, except parts of its entries that may not be kept; None if it cannot be."""
    entries = [
        {name: part for name, part in entry.items() if name in ("key", "history") or _may_keep(part)}
        for entry in block.entries
    ]
    # Not by `pa.array`, which would import pandas.
    arrays = [pa.Array.from_buffers(pa.float64(), len(each), [None, pa.py_buffer(each)]) for each in block.columns]
    batches = [pa.record_batch([array], names=["values"]) for array in arrays]
    offsets = list(itertools.accumulate(map(pa.ipc.get_record_batch_size, batches), initial=0))
    checksums = [zlib.crc32(column.data) for column in block.columns]
    head = json.dumps([VERSION, block.metrics, offsets, checksums, entries]).encode()
    schema = batches[0].schema.with_metadata({"audiotok": head, "crc32": str(zlib.crc32(head))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
                start = file.tell() - offsets[-1]
            mark = _mark(str(draft))
        for abandoned in path.parent.glob(f".{path.name}.*.tmp"):  # by writers that were killed
            with suppress(OSError):
                if time.time() - abandoned.stat().st_mtime > _ABANDONED_S:
                    abandoned.unlink()
    except OSError as error:
        logger.debug("no cache: %s", error)
        return None
    return replace(block, columns=block.columns[:1], file=_File(path, mark, start, offsets, checksums))


def _read_block(path: Path) -> Block | None:
    """Read a file except its rows; None if there is none or it is not fit for use."""
    mark = _mark(str(path))
    try:
        with _open(path) as file:
            metadata = pa.ipc.open_stream(file).schema.metadata
            head, start = metadata[b"audiotok"], file.tell()
            version, metrics, offsets, checksums, entries = parse_json(head)
            if version != VERSION or int(metadata[b"crc32"]) != zlib.crc32(head):
                return None
            summary = _read_column(file, start, checksums[0])
        return Block(entries, metrics, [summary], _File(path, mark, start, offsets, checksums))
    except _UNREADABLE:
        return None


def _mark(path: str) -> Mark:
    try:
        found = os.stat(path)  # noqa: PTH116  a Path for each of fifty thousand files would double the time
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _marks(folder: str, name: str) -> list[Mark]:
    """Marks of the files of a part; taken before they are read: what changes meanwhile is read again the next time."""
    return [_mark(f"{folder}/{file}") for file in _FILES[name]]


def _may_keep(part: Part) -> bool:
    """Whether a part may go into the cache: none of its files is changing, and it does not depend on the clock."""
    latest = (time.time() - _REST_S) * 1e9
    return part.get("settled", True) and all(mark is None or mark[1] < latest for mark in part["marks"])


def _read_history(folder: str) -> tuple[Part, list[StageTable]]:
    part: Part = {"marks": _marks(folder, "history"), "problems": []}
    part["epochs"], tables = read_tables(Path(folder, *_FILES["history"]), part["problems"])
    part["last_epoch"] = max((int(table.epochs[-1]) for table in tables), default=0)
    part["rows"] = {table.stage: len(table.epochs) for table in tables}
    measured = [table.values[:, table.names.index("duration")] for table in tables if "duration" in table.names]
    seconds = [second for values in measured for second in values.tolist() if math.isfinite(second)]
    part["duration"] = math.fsum(seconds) if seconds else None
    return part, tables


def _read_argv(folder: str) -> Part:
    """The overrides as text; they are parsed each time, which is faster than to keep them parsed."""
    part: Part = {"marks": _marks(folder, "argv"), "problems": []}
    name, _ = _FILES["argv"]
    argv = read_json_file(Path(folder, name), list, part["problems"])[0]
    if argv is None and not part["problems"]:
        part["problems"].append(f"{name} is missing: parameters unknown")
    part["amendments"] = read_amendments(Path(folder))
    part["argv"] = [item for item in argv or [] if type(item) is str]
    if len(part["argv"]) < len(argv or ()):
        part["problems"].append(f"{name}: an override that is not text")
    if len(part["argv"]) > _MAX_OVERRIDES:
        part["problems"].append(f"{name} cannot be read: it has more than {_MAX_OVERRIDES} overrides")
        part["argv"] = []
    return part


def _overrides(part: Part) -> dict[str, Any]:
    """Overrides with the values since the last amendment: the length always, other keys where they are overridden."""
    values = parse_overrides(part["argv"])
    amended = {key: pair[1] for one in part["amendments"] for key, pair in one["keys"].items()}
    return values | {key: value for key, value in amended.items() if key in values or key == EPOCHS}


def _read_state(folder: str) -> Part:
    marks = _marks(folder, "state")
    problems: list[str] = []
    contents = {name: read_json_file(Path(folder, name), dict, problems)[0] for name in _FILES["state"]}
    part: Part = {"marks": marks, "problems": problems}
    verdict = experiment_state(Path(folder)) if any(marks) else None
    state, reason = verdict or ("NOT_STARTED", "")
    part |= {"state": encodable(state), "reason": encodable(reason[:_MAX_TEXT]), "status": contents[STATUS_FILE] or {}}
    profile = (contents[JOB_FILE] or {}).get("profile")
    part["profile_gpus"] = profile.get("gpus") if isinstance(profile, dict) else None
    part["settled"] = verdict is not None and verdict.state.settled
    return part


def _read_config(folder: str, keys: Iterable[str]) -> Part:
    """Some values of the configuration, each as JSON text, which keeps any number as it is."""
    part: Part = {"marks": _marks(folder, "config")}
    saved = SavedConfig(Path(folder))
    part["values"] = {key: json.dumps(hashable(saved.get(key))) for key in keys}
    return part | {"problems": saved.problems}


class Shard:
    """Experiments whose signatures begin alike, and what the cache knows of them.

    Args:
        root: results folder; an experiment in it is known by its path within it, so that a copy is known too.
        name: of the file of the cache.
        folders: absolute folders of the experiments to load.
        cached: False to read and write no cache.

    Attributes:
        overrides: parsed overrides of each experiment, by folder.
    """

    def __init__(self, root: str, name: str, folders: Sequence[str], *, cached: bool = True) -> None:
        self.root, self.name, self.folders = root, name, folders
        self._path = Path(root, CACHE_FOLDER, name) if cached else None
        self._block = (_read_block(self._path) if self._path is not None else None) or Block()
        self._known: dict[str, Entry] = {entry["key"]: entry for entry in self._block.entries}
        self._keys = {folder: folder.removeprefix(f"{root}{os.sep}") for folder in folders}
        self._argv = {folder: self._fresh(folder, "argv") or _read_argv(folder) for folder in folders}
        self.overrides = {folder: _overrides(part) for folder, part in self._argv.items()}

    def load(self, keys: Sequence[str]) -> dict[str, tuple[Block, int]]:
        """Bring the experiments up to date, and write to the cache what may be kept.

        Args:
            keys: parameters; where an experiment does not override one, it is taken from its configuration.

        Returns:
            Block and place of each experiment in it, by folder.

        Raises:
            StaleCacheError: if another process has rewritten the shard, or it is damaged.
        """
        entries = dict(self._known)
        kept: list[tuple[Entry, list[StageTable]]] = []
        passing: list[tuple[Entry, list[StageTable]]] = []  # whose history is not at rest
        gained = False
        for folder, key in self._keys.items():
            entry, tables = self._update(folder, keys)
            known = self._known.get(key, {})
            gained = gained or any(entry[name] is not known.get(name) and _may_keep(entry[name]) for name in _FILES)
            if tables is None:
                entries[key] = entry
            else:
                (kept if _may_keep(entry["history"]) else passing).append((entry, tables))
        old = replace(self._block, entries=list(entries.values()))
        block = self._write(self._path, old, kept) if gained and self._path is not None else None
        blocks = [old, _make_block(kept + passing)] if block is None else [block, _make_block(passing)]
        places = {entry["key"]: (each, place) for each in blocks for place, entry in enumerate(each.entries)}
        return {folder: places[key] for folder, key in self._keys.items()}

    def pending_bytes(self) -> int:
        """Bytes of the histories that have to be parsed, if the cache can then keep them."""
        if self._path is None or not os.access(next(filter(Path.is_dir, self._path.parents)), os.W_OK):
            return 0
        stale = [_marks(folder, "history") for folder in self.folders if not self._fresh(folder, "history")]
        return sum(mark[0] for marks in stale if _may_keep({"marks": marks}) for mark in marks if mark is not None)

    def _fresh(self, folder: str, name: str) -> Part | None:
        """Part of an entry, if its files are as they were when it was read."""
        part: Part | None = self._known.get(self._keys[folder], {}).get(name)
        return part if part is not None and part["marks"] == _marks(folder, name) else None

    def _update(self, folder: str, keys: Sequence[str]) -> tuple[Entry, list[StageTable] | None]:
        """Entry of an experiment, and its tables unless those in the cache hold."""
        config = self._fresh(folder, "config")
        kept = {} if config is None else config["values"]
        missing = [key for key in keys if key not in self.overrides[folder] and key not in kept]
        history, tables = self._fresh(folder, "history"), None
        if history is None:
            history, tables = _read_history(folder)
        entry = {
            "key": self._keys[folder],
            "argv": self._argv[folder],
            "state": self._fresh(folder, "state") or _read_state(folder),
            "config": _read_config(folder, [*kept, *missing]) if config is None or missing else config,
            "history": history,
        }
        return entry, tables

    def _write(self, path: Path, old: Block, new: list[tuple[Entry, list[StageTable]]]) -> Block | None:
        """Write what is new and what there was, experiments that are not being loaded included."""
        replaced = {entry["key"] for entry, _ in new}
        known = zip(old.entries, _tables(old), strict=True)
        kept = [each for each in known if each[0]["key"] not in replaced and Path(self.root, each[0]["key"]).exists()]
        return _write_block(path, _make_block([*kept, *new]))


def load_shards(shards: Sequence[Shard], keys: Sequence[str]) -> dict[str, tuple[Block, int]]:
    """Load experiments, see `Shard.load`; in several processes if there is much to parse.

    The processes only fill the cache, which is then read here: what one that dies leaves undone is done here.
    """
    pending = {shard: size for shard in shards if (size := shard.pending_bytes())}
    count = min(len(os.sched_getaffinity(0)), _MAX_PROCESSES, len(pending))
    if count > 1 and sum(pending.values()) >= MIN_BYTES_FOR_PROCESSES:
        _fill_cache([list(pending)[start::count] for start in range(count)], keys)
        shards = [Shard(shard.root, shard.name, shard.folders) if shard in pending else shard for shard in shards]
    return {folder: place for shard in shards for folder, place in shard.load(keys).items()}


def _fill_cache(shares: Sequence[Sequence[Shard]], keys: Sequence[str]) -> None:
    """Bring shards up to date in one process per share.

    Not by `multiprocessing`: to fork copies locks that threads of a notebook hold, to spawn runs the caller's script.
    """
    path = json.dumps([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _DRIVER, path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that Ctrl-C reaches this process only, which then kills it
        )
        for _ in shares
    ]  # fmt: skip
    try:
        for child, share in zip(children, shares, strict=True):  # all have started: a pipe holds less than a share
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin as stdin:
                json.dump([keys, [(shard.root, shard.name, shard.folders) for shard in share]], stdin)
        for child in children:
            if child.wait() != 0:
                logger.warning("a process that reads results ended with %d; going on without it", child.returncode)
    finally:
        for child in children:
            child.kill()
            child.wait()


def _serve() -> None:
    """Bring the shards up to date that stdin names: what a child process runs."""
    keys, shards = json.load(sys.stdin)
    for root, name, folders in shards:
        with suppress(StaleCacheError):
            Shard(root, name, folders).load(keys)

"""Cache of what the JSON files hold: one Arrow IPC file per shard of signatures, `ROOT/.cache/audiotok/results-2/0a`.

A row is an experiment: its entry (JSON: all that is known besides the numbers, with size and time of every file it came
from), a summary of its metrics, and for each stage and metric a list of values. Columns are read as needed. Every
column has a checksum: a file that is damaged, foreign or of another version counts as absent. Nothing is executed.
"""

import json
import logging
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from audiotok.files import read_json, write_bytes
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
from audiotok.status import JOB_FILE, STATUS_FILE, TASK_FILE, experiment_state

VERSION = 2
CACHE_FOLDER = Path(".cache", "audiotok", f"results-{VERSION}")
MIN_BYTES_FOR_PROCESSES = 2**26  # of JSON; with less, starting processes takes longer than parsing
MAX_PROCESSES = 4
REST_S = 30.0  # a file that changed less than that ago may be changing still, and is not worth keeping
_ABANDONED_S = 3600.0
_MANY_COLUMNS = 8  # with more, it is faster to read the whole file than each column
_FILES = {  # parts of an entry, and the files that each is read from
    "history": ("history.json",),
    "argv": (".argv.json",),
    "state": (STATUS_FILE, JOB_FILE, TASK_FILE),
    "config": (FROZEN_FILE,),
}
_DRIVER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from audiotok.results import cache; cache.serve()"

Mark = list[int] | None
"""Size in bytes and time of change in ns of a file, None where there is none; a list, as JSON gives it back."""
Part = dict[str, Any]
Entry = dict[str, Any]
Name = tuple[str, ...]
Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)


class StaleCacheError(Exception):
    """A file of the cache was replaced since it was opened, or is damaged; load again."""


class Lists(NamedTuple):
    """A column of lists: `lengths` of each experiment [E], and all values, one experiment after the other."""

    lengths: NDArray[np.int64]
    values: NDArray[Any]


@dataclass(frozen=True)
class Block:
    """Experiments by columns.

    Attributes:
        entries: what is known of each of the E experiments besides the numbers; JSON can hold it.
        summary: last value, epoch of the lowest and of the highest finite value (the first among equals; 0 without
            one) of each metric, all NaN where the experiment has not measured it [E, metrics, 3].
        names: of the columns of lists: `(stage,)` holds the epochs (from 1) in which the stage measured anything,
            `(stage, metric)` the values in these epochs, NaN where it was not measured; empty without any.
        lists: the columns; empty if they are in the file.
        path: file that holds them.
        head: its head, by which a file that was replaced is found out.
        checksums: of the columns of lists in the file.
    """

    entries: list[Entry] = field(default_factory=list)
    summary: Floats = field(default_factory=lambda: np.empty((0, 0, 3)))
    names: tuple[Name, ...] = ()
    lists: Mapping[Name, Lists] = field(default_factory=dict)
    path: Path | None = None
    head: bytes = b""
    checksums: Sequence[int] = ()

    @cached_property
    def metrics(self) -> list[Name]:
        """`(stage, metric)` of each column of the summary."""
        return [name for name in self.names if len(name) == 2]

    def read(self, names: Iterable[Name]) -> dict[Name, Lists]:
        """Those of the named columns that there are.

        Raises:
            StaleCacheError: if the file is no longer as it was.
        """
        wanted = set(names)
        if self.path is not None and not wanted.isdisjoint(self.names):
            return _read_lists(self, self.path, wanted)
        return {name: lists for name, lists in self.lists.items() if name in wanted}


def make_block(entries: list[Entry], tables: Sequence[Sequence[StageTable]]) -> Block:
    """Block of experiments from the tables of each."""
    parts: dict[Name, dict[int, NDArray[Any]]] = {}
    for row, stages in enumerate(tables):
        for table in stages:
            parts.setdefault((table.stage,), {})[row] = table.epochs
            for name, values in zip(table.names, table.values.T, strict=True):
                parts.setdefault((table.stage, name), {})[row] = values
    lists = {}
    for name, found in parts.items():
        lengths = np.zeros(len(entries), np.int64)
        lengths[list(found)] = [len(values) for values in found.values()]
        lists[name] = Lists(lengths, np.concatenate(list(found.values())))
    block = Block(entries, names=tuple(parts), lists=lists)
    columns = {name: column for column, name in enumerate(block.metrics)}
    summary = np.full((len(entries), len(columns), 3), np.nan)
    for row, stages in enumerate(tables):
        for table in stages:
            summary[row, [columns[table.stage, name] for name in table.names]] = _summary(table)
    return replace(block, summary=summary)


def select(block: Block, rows: Sequence[int]) -> Block:
    """Block of some of the experiments of another one, in memory.

    Raises:
        StaleCacheError: if the file is no longer as it was.
    """
    chosen = list(rows)
    lists = {}
    for name, (lengths, values) in block.read(block.names).items():
        starts = np.cumsum(lengths) - lengths
        lists[name] = Lists(lengths[chosen], values[ranges(starts[chosen], lengths[chosen])])
    entries = [block.entries[row] for row in chosen]
    return Block(entries, block.summary[chosen], block.names, lists)


def join(first: Block, second: Block) -> Block:
    """One block of two, both in memory."""
    names = tuple(dict.fromkeys(first.names + second.names))
    lists = {}
    for name in names:
        parts = [
            block.lists.get(name, Lists(np.zeros(len(block.entries), np.int64), np.empty(0, np.int32)))
            for block in (first, second)
        ]
        kind = _list_type(name).value_type.to_pandas_dtype()
        lists[name] = Lists(*(np.concatenate(items) for items in zip(*parts, strict=True)))
        lists[name] = lists[name]._replace(values=lists[name].values.astype(kind, copy=False))
    both = Block(first.entries + second.entries, names=names, lists=lists)
    columns = {name: column for column, name in enumerate(both.metrics)}
    summary = np.full((len(both.entries), len(columns), 3), np.nan)
    for block, rows in ((first, slice(len(first.entries))), (second, slice(len(first.entries), None))):
        summary[rows, [columns[name] for name in block.metrics]] = block.summary
    return replace(both, summary=summary)


def ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Integers start, start + 1, ..., start + length - 1 of each range, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def _summary(table: StageTable) -> Floats:
    """Last value, and epochs of the lowest and highest finite value, of each metric [metrics, 3]."""
    values, present = table.values, table.present
    final = len(values) - 1 - present[::-1].argmax(axis=0)
    finite = np.isfinite(values)
    lowest = table.epochs[np.where(finite, values, np.inf).argmin(axis=0)]
    highest = table.epochs[np.where(finite, values, -np.inf).argmax(axis=0)]
    some = finite.any(axis=0)
    return np.stack([values[final, np.arange(values.shape[1])], lowest * some, highest * some], axis=1)


@lru_cache(maxsize=2**10)
def _schema(names: tuple[Name, ...], places: tuple[int, ...] | None = None) -> pa.Schema:
    """Schema of a file, or of some of its columns."""
    fields = [pa.field("entry", pa.string()), pa.field("summary", pa.list_(pa.float64()))]
    fields += [pa.field(json.dumps(name), _list_type(name)) for name in names]
    return pa.schema(fields if places is None else [fields[place] for place in places])


def _list_type(name: Name) -> pa.ListType:
    return pa.list_(pa.int32() if len(name) == 1 else pa.float64())


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def write_block(path: Path, block: Block) -> Block | None:
    """Write a block, which is in memory, to the cache.

    Returns:
        The block with its lists in the file; None where it cannot be written, which is no error.
    """
    entries = [json.dumps(entry) for entry in block.entries]
    width = np.full(len(entries), len(block.metrics) * 3, np.int64)
    columns, checksums = [pa.array(entries, pa.string())], [zlib.crc32(",".join(entries).encode())]
    for lengths, values in [Lists(width, block.summary.ravel()), *(block.lists[name] for name in block.names)]:
        offsets = _offsets(lengths)
        columns.append(pa.ListArray.from_arrays(offsets, values))
        checksums.append(zlib.crc32(values, zlib.crc32(offsets)))
    head = json.dumps([VERSION, block.names, checksums]).encode()
    schema = _schema(block.names)
    sink = pa.BufferOutputStream()
    metadata = {b"audiotok": head, b"crc32": str(zlib.crc32(head)).encode()}
    with pa.ipc.new_file(sink, schema.with_metadata(metadata)) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, memoryview(sink.getvalue()))
        _remove_abandoned(path)
    except OSError as error:
        logger.debug("no cache: %s", error)
        return None
    return replace(block, lists={}, path=path, head=head, checksums=checksums[2:])


def read_block(path: Path) -> Block | None:
    """Read a file of the cache except its lists; None if there is none or it is not fit for use."""
    try:
        batch, head = _read_columns(path, [0, 1])
        version, names, checksums = json.loads(head)
        names = tuple(map(tuple, names))
        texts = ",".join(batch.column(0).to_pylist()).encode()
        if version != VERSION or batch.schema != _schema(names, (0, 1)) or zlib.crc32(texts) != checksums[0]:
            return None
        (summary,) = _to_lists(batch.columns[1:], checksums[1:2])
        entries = parse_json(b"[" + texts + b"]")
        values = summary.values.reshape(len(entries), -1, 3).copy()  # Arrow has allocated the other columns as well
        return Block(entries, values, names, path=path, head=head, checksums=checksums[2:])
    except (OSError, ValueError, LookupError, TypeError, MemoryError, pa.ArrowException):
        return None


def _read_lists(block: Block, path: Path, wanted: set[Name]) -> dict[Name, Lists]:
    found = [index for index, name in enumerate(block.names) if name in wanted]
    places = [index + 2 for index in found]
    try:
        batch, head = _read_columns(path, places)
        if head != block.head:
            raise StaleCacheError(f"{path} was replaced")
        if batch.schema != _schema(block.names, tuple(places)):
            raise ValueError("columns of other types")
        lists = _to_lists(batch.columns, [block.checksums[index] for index in found])
        return dict(zip([block.names[index] for index in found], lists, strict=True))
    except (OSError, ValueError, pa.ArrowException) as error:
        with suppress(OSError):
            path.unlink()  # or it would be opened again
        raise StaleCacheError(f"{path} is damaged ({error})") from error


def _read_columns(path: Path, places: list[int]) -> tuple[pa.RecordBatch, bytes]:
    """Some columns of a file, and its head: JSON of [version, names of the lists, checksums of all columns].

    They are read and not mapped: on a network file system, a mapped file that another machine replaces would kill this
    process.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not one of ours, or damaged (`pa.ArrowInvalid`).
    """
    options = pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)
    many = len(places) > _MANY_COLUMNS
    with pa.BufferReader(path.read_bytes()) if many else pa.OSFile(str(path)) as file:
        batch = pa.ipc.open_file(file, options=options, memory_pool=pa.system_memory_pool()).get_batch(0)
    metadata = batch.schema.metadata or {}
    head = metadata.get(b"audiotok", b"")
    if metadata.get(b"crc32") != str(zlib.crc32(head)).encode():
        raise ValueError("its head is not ours")
    batch.validate()  # that no offset leads out of a buffer; what is in them, the checksums tell
    return batch, head


def _to_lists(columns: Sequence[pa.ListArray], checksums: Sequence[int]) -> list[Lists]:
    """Columns as NumPy arrays; those of a stage mostly share one array of lengths.

    Raises:
        ValueError: if a checksum is another.
    """
    known: dict[bytes, NDArray[np.int64]] = {}
    lists = []
    for column, checksum in zip(columns, checksums, strict=True):
        _, offsets, _, values = column.buffers()
        if zlib.crc32(values or b"", zlib.crc32(offsets)) != checksum:
            raise ValueError("a checksum is wrong")
        key = offsets.to_pybytes()
        if key not in known:
            known[key] = np.diff(np.frombuffer(key, np.int32)).astype(np.int64)
        lists.append(Lists(known[key], np.frombuffer(values or b"", column.type.value_type.to_pandas_dtype())))
    return lists


def _remove_abandoned(path: Path) -> None:
    """Remove what writers that were killed left behind."""
    for draft in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_S:
                draft.unlink()


def _mark(path: str) -> Mark:
    try:
        found = os.stat(path)  # noqa: PTH116  a Path for each of fifty thousand files would double the time
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _marks(folder: str) -> dict[str, list[Mark]]:
    return {name: [_mark(f"{folder}/{file}") for file in files] for name, files in _FILES.items()}


def _keeps(entry: Entry, name: str) -> bool:
    """True if a part may go into the cache: none of its files is changing, and it does not depend on the clock."""
    part = entry.get(name)
    if part is None or not part.get("settled", True):
        return False
    limit = (time.time() - REST_S) * 1e9
    return all(mark is None or mark[1] < limit for mark in part["marks"])


def _read_history(folder: str, marks: list[Mark]) -> tuple[Part, list[StageTable]]:
    part: Part = {"marks": marks, "problems": []}
    part["epochs"], tables = read_tables(Path(folder, *_FILES["history"]), part["problems"])
    part["last_epoch"] = max((int(table.epochs[-1]) for table in tables), default=0)
    part["rows"] = {table.stage: len(table.epochs) for table in tables}
    found = [table.values[:, table.names.index("duration")] for table in tables if "duration" in table.names]
    seconds = np.concatenate(found) if found else np.empty(0)
    seconds = seconds[np.isfinite(seconds)]
    part["duration"] = math.fsum(seconds) if len(seconds) else None
    return part, tables


def _read_argv(folder: str, marks: list[Mark]) -> Part:
    """The overrides as text; they are parsed each time, which is faster than to keep them parsed."""
    part: Part = {"marks": marks, "problems": []}
    (name,) = _FILES["argv"]
    argv = read_json_file(Path(folder, name), list, part["problems"])
    if argv is None and not part["problems"]:
        part["problems"].append(f"{name} is missing: parameters unknown")
    part["argv"] = [item for item in argv or [] if isinstance(item, str)]
    return part


def _read_state(folder: str, marks: list[Mark]) -> Part:
    part: Part = {"marks": marks, "problems": []}
    contents = {}
    for name, mark in zip(_FILES["state"], marks, strict=True):
        contents[name] = None if mark is None else read_json(Path(folder, name))
        if mark is not None and contents[name] is None:
            part["problems"].append(f"{name} cannot be read")
    verdict = experiment_state(Path(folder)) if any(marks) else None
    state, reason = verdict or ("NOT_STARTED", "")
    part |= {"state": encodable(state), "reason": encodable(reason), "status": contents[STATUS_FILE] or {}}
    profile = (contents[JOB_FILE] or {}).get("profile")
    part["profile_gpus"] = profile.get("gpus") if isinstance(profile, dict) else None
    part["settled"] = verdict is not None and verdict.state.settled
    return part


def _read_config(folder: str, marks: list[Mark], keys: Iterable[str], known: Part | None) -> Part:
    """Some values of the configuration, each as JSON text, which keeps any number as it is."""
    values = known["values"] if known is not None and known["marks"] == marks else {}
    missing = [key for key in keys if key not in values]
    if known is not None and values and not missing:
        return known
    saved = SavedConfig(Path(folder))
    values = {key: json.dumps(hashable(saved.get(key))) for key in [*values, *missing]}
    return {"marks": marks, "values": values, "problems": saved.problems}


class Shard:
    """Experiments whose signatures begin alike, and what the cache knows of them.

    Args:
        root: results folder; an experiment in it is known by its path within it, so that a copy is known too.
        name: of the file of the cache.
        folders: absolute folders of the experiments to load.
        cached: False to read and write no cache.

    Attributes:
        overrides: parameters given to each experiment, by folder.
        stale_bytes: of the histories that have to be parsed, and may then be kept.
    """

    def __init__(self, root: str, name: str, folders: Sequence[str], *, cached: bool = True) -> None:
        self.root, self.name, self.folders = root, name, folders
        self._path = Path(root, CACHE_FOLDER, name) if cached else None
        self._block = (read_block(self._path) if self._path is not None else None) or Block()
        self._rows = {entry["key"]: row for row, entry in enumerate(self._block.entries)}
        self._marks = {folder: _marks(folder) for folder in folders}
        self._argv = {folder: self._fresh(folder, "argv") or self._read_argv(folder) for folder in folders}
        self.overrides = {folder: parse_overrides(part["argv"]) for folder, part in self._argv.items()}
        self.stale_bytes = sum(self._stale_bytes(folder) for folder in folders)

    def load(self, keys: Sequence[str]) -> dict[str, tuple[Block, int]]:
        """Bring the experiments up to date, and write to the cache what is worth it.

        Args:
            keys: parameters; where an experiment does not override one, it is taken from its configuration.

        Returns:
            Block and row of each experiment, by folder.

        Raises:
            StaleCacheError: if another process has rewritten the shard, or it is damaged.
        """
        old = list(self._block.entries)
        kept: list[tuple[Entry, list[StageTable]]] = []
        passing: list[tuple[Entry, list[StageTable]]] = []
        gained = False
        for folder in self.folders:
            known = self._known(folder)
            entry, tables = self._update(folder, keys)
            gained = gained or any(entry.get(name) is not known.get(name) and _keeps(entry, name) for name in _FILES)
            if tables is None:
                old[self._rows[entry["key"]]] = entry
            else:
                (kept if _keeps(entry, "history") else passing).append((entry, tables))
        if gained and self._path is not None:
            block = self._write(self._path, old, kept)
            if block is not None:
                return self._places([block, _block_of(passing)])
        return self._places([replace(self._block, entries=old), _block_of(kept + passing)])

    def is_writable(self) -> bool:
        """True if the cache can be written."""
        if self._path is None:
            return False
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.access(self._path.parent, os.W_OK)

    def _key(self, folder: str) -> str:
        return folder.removeprefix(f"{self.root}{os.sep}")

    def _known(self, folder: str) -> Entry:
        row = self._rows.get(self._key(folder))
        return {} if row is None else self._block.entries[row]

    def _fresh(self, folder: str, name: str) -> Part | None:
        """Part of an entry, if its files are as they were when it was read."""
        part: Part | None = self._known(folder).get(name)
        return part if part is not None and part["marks"] == self._marks[folder][name] else None

    def _read_argv(self, folder: str) -> Part:
        return _read_argv(folder, self._marks[folder]["argv"])

    def _stale_bytes(self, folder: str) -> int:
        (mark,) = self._marks[folder]["history"]
        if mark is None or mark[1] > (time.time() - REST_S) * 1e9 or self._fresh(folder, "history") is not None:
            return 0
        return mark[0]

    def _update(self, folder: str, keys: Sequence[str]) -> tuple[Entry, list[StageTable] | None]:
        """Entry of an experiment, and its tables unless those in the cache hold."""
        marks, known = self._marks[folder], self._known(folder)
        entry: Entry = {"key": self._key(folder), "argv": self._argv[folder]}
        entry["state"] = self._fresh(folder, "state") or _read_state(folder, marks["state"])
        wanted = [key for key in keys if key not in self.overrides[folder]]
        if wanted:
            entry["config"] = _read_config(folder, marks["config"], wanted, known.get("config"))
        elif "config" in known:
            entry["config"] = known["config"]
        history = self._fresh(folder, "history")
        if history is not None:
            return {**entry, "history": history}, None
        entry["history"], tables = _read_history(folder, marks["history"])
        return entry, tables

    def _write(self, path: Path, old: list[Entry], new: list[tuple[Entry, list[StageTable]]]) -> Block | None:
        """Write what there was, experiments that are not being loaded included, and what is new.

        Returns:
            The block, with entries as they are and not as they are kept; None where it cannot be written.
        """
        replaced = {entry["key"] for entry, _ in new}
        rows = [row for row, entry in enumerate(old) if entry["key"] not in replaced and self._exists(entry["key"])]
        block = join(select(replace(self._block, entries=old), rows), _block_of(new))
        stored = [
            {"key": entry["key"], **{name: entry[name] for name in _FILES if _keeps(entry, name)}}
            for entry in block.entries
        ]
        written = write_block(path, replace(block, entries=stored))
        return None if written is None else replace(written, entries=block.entries)

    def _exists(self, key: str) -> bool:
        return _mark(os.path.join(self.root, key)) is not None  # noqa: PTH118  an absolute key stays as it is

    def _places(self, blocks: Iterable[Block]) -> dict[str, tuple[Block, int]]:
        places = {entry["key"]: (block, row) for block in blocks for row, entry in enumerate(block.entries)}
        return {folder: places[self._key(folder)] for folder in self.folders}


def _block_of(items: Sequence[tuple[Entry, list[StageTable]]]) -> Block:
    return make_block([entry for entry, _ in items], [tables for _, tables in items])


def load_shards(shards: Sequence[Shard], keys: Sequence[str]) -> dict[str, tuple[Block, int]]:
    """Load experiments, see `Shard.load`; in several processes if there is much to parse.

    The processes only fill the cache, which is then read here: what one that dies leaves undone is done here.
    """
    stale = [shard for shard in shards if shard.stale_bytes and shard.is_writable()]
    count = min(len(os.sched_getaffinity(0)), MAX_PROCESSES, len(stale))
    if count > 1 and sum(shard.stale_bytes for shard in stale) >= MIN_BYTES_FOR_PROCESSES:
        _fill_cache([stale[start::count] for start in range(count)], keys)
        shards = [Shard(shard.root, shard.name, shard.folders) if shard in stale else shard for shard in shards]
    return {folder: place for shard in shards for folder, place in shard.load(keys).items()}


def _fill_cache(shares: Sequence[Sequence[Shard]], keys: Sequence[str]) -> None:
    """Bring shards up to date in one process per share.

    These are plain child processes and not those of `multiprocessing`: forking would copy locks that threads of a
    notebook hold, and spawning would run the caller's script again.
    """
    path = json.dumps([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109
    children: list[subprocess.Popen[str]] = []
    try:
        for share in shares:
            # In a session of its own, so that Ctrl-C reaches this process only, which then kills it.
            child = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, path], stdin=subprocess.PIPE, text=True, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin as stdin:
                json.dump({"keys": keys, "shards": [(s.root, s.name, s.folders) for s in share]}, stdin)
        for child in children:
            if child.wait() != 0:
                logger.warning("a process that reads results ended with %d; going on without it", child.returncode)
    finally:
        for child in children:
            child.kill()
            child.wait()


def serve() -> None:
    """Bring the shards up to date that stdin names; what a child process runs."""
    task = json.load(sys.stdin)
    for root, name, folders in task["shards"]:
        with suppress(StaleCacheError):
            Shard(root, name, folders).load(task["keys"])

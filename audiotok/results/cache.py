"""Cache of what the JSON files hold: one Arrow IPC file per shard of signatures, `ROOT/.cache/audiotok/results-2/0a`.

A row is an experiment: its entry (JSON of parts, each with size and time of the files that it was read from), a summary
of its metrics, and a list of rows per stage. Columns are read as needed and have checksums: a file that is damaged,
foreign or of another version counts as absent. Nothing in it is executed.
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
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from audiotok.files import read_json, replacing
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
_MAX_PROCESSES = 4
_REST_S = 30.0  # a file that changed less than that ago may be changing still, and is not worth keeping
_ABANDONED_S = 3600.0
_SMALL_BYTES = 2**18
_NO_EPOCHS = np.empty(0, np.int32)
_FILES = {  # parts of an entry, and the files that each is read from
    "history": ("history.json",),
    "argv": (".argv.json",),
    "state": (STATUS_FILE, JOB_FILE, TASK_FILE),
    "config": (FROZEN_FILE,),
}
_DRIVER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from audiotok.results import cache; cache._serve()"

Mark = list[int] | None
"""Size in bytes and time of change in ns of a file, None where there is none; a list, as JSON gives it back."""
Part = dict[str, Any]
Entry = dict[str, Any]
Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)


class StaleCacheError(Exception):
    """A file of the cache was replaced since it was opened, or is damaged; load again."""


class Rows(NamedTuple):
    """What one stage measured, a row per epoch, one experiment after the other."""

    lengths: NDArray[np.int64]  # rows of each experiment [E]
    epochs: NDArray[np.int32]  # numbers (from 1) of the epochs that measured anything [R]
    values: Mapping[str, Floats]  # of each metric [R]; NaN where not measured


@dataclass(frozen=True)
class Block:
    """Experiments by columns.

    Attributes:
        entries: what is known of each of the E experiments besides the numbers; JSON can hold it.
        metrics: of each stage.
        summary: last value, epoch of the lowest and of the highest finite value (the first among equals; 0 without
            one) of each stage's metrics, all NaN where the experiment has not measured it [E, M, 3].
        rows: by stage; empty if they are in the file.
        path: file that holds the rows.
        head: its head, by which a file that was replaced is found out.
    """

    entries: list[Entry] = field(default_factory=list)
    metrics: Mapping[str, list[str]] = field(default_factory=dict)
    summary: Floats = field(default_factory=lambda: np.empty((0, 0, 3)))
    rows: Mapping[str, Rows] = field(default_factory=dict)
    path: Path | None = None
    head: bytes = b""

    @cached_property
    def columns(self) -> list[tuple[str, str]]:
        """Stage and metric of each of the M columns of the summary."""
        return [(stage, name) for stage, names in self.metrics.items() for name in names]

    def read(self, stages: Iterable[str] | None = None, metrics: Iterable[str] | None = None) -> Mapping[str, Rows]:
        """Rows of some stages with some metrics, by default all; more than that may be given.

        Raises:
            StaleCacheError: if the file is no longer as it was.
        """
        if self.path is None:
            return self.rows
        found = [stage for stage in self.metrics if stages is None or stage in stages]
        return _read_rows(self.path, self, found, metrics) if found else {}


def _make_block(experiments: Sequence[tuple[Entry, list[StageTable]]]) -> Block:
    """Block of experiments, in memory, from the entry and the tables of each."""
    tables: dict[str, dict[int, StageTable]] = {}
    for place, (_, own) in enumerate(experiments):
        for table in own:
            tables.setdefault(table.stage, {})[place] = table
    metrics, rows, summaries = {}, {}, [np.empty((len(experiments), 0, 3))]
    for stage, found in tables.items():
        metrics[stage] = list(dict.fromkeys(name for table in found.values() for name in table.names))
        lengths = np.zeros(len(experiments), np.int64)
        lengths[list(found)] = [len(table.epochs) for table in found.values()]
        stops = np.cumsum(lengths)
        values = np.full((len(metrics[stage]), stops[-1]), np.nan)
        summary = np.full((len(experiments), len(metrics[stage]), 3), np.nan)
        for place, table in found.items():
            columns = [metrics[stage].index(name) for name in table.names]
            values[columns, stops[place] - lengths[place] : stops[place]] = table.values.T
            summary[place, columns] = _summary(table)
        epochs = np.concatenate([table.epochs for table in found.values()])
        rows[stage] = Rows(lengths, epochs, dict(zip(metrics[stage], values, strict=True)))
        summaries.append(summary)
    return Block([entry for entry, _ in experiments], metrics, np.concatenate(summaries, axis=1), rows)


def _summary(table: StageTable) -> Floats:
    """Last value, and epochs of the lowest and highest finite value, of each metric [metrics, 3]."""
    values, present = table.values, table.present
    final = len(values) - 1 - present[::-1].argmax(axis=0)
    finite = np.isfinite(values)
    lowest = table.epochs[np.where(finite, values, np.inf).argmin(axis=0)]
    highest = table.epochs[np.where(finite, values, -np.inf).argmax(axis=0)]
    some = finite.any(axis=0)
    return np.stack([values[final, np.arange(values.shape[1])], lowest * some, highest * some], axis=1)


def _select(block: Block, places: Sequence[int] | NDArray[np.int64]) -> Block:
    """Block of some of the experiments of another one, in memory.

    Raises:
        StaleCacheError: if the file is no longer as it was.
    """
    rows = {}
    for stage, (lengths, epochs, values) in block.read().items():
        index = ranges((np.cumsum(lengths) - lengths)[places], lengths[places])
        rows[stage] = Rows(lengths[places], epochs[index], {name: column[index] for name, column in values.items()})
    return Block([block.entries[place] for place in places], block.metrics, block.summary[places], rows)


def _join(first: Block, second: Block) -> Block:
    """One block of two, both in memory."""
    blocks = (first, second)
    metrics, rows = {}, {}
    for stage in dict.fromkeys([*first.metrics, *second.metrics]):
        metrics[stage] = list(dict.fromkeys(name for block in blocks for name in block.metrics.get(stage, ())))
        parts = [block.rows.get(stage) or Rows(np.zeros(len(block.entries), int), _NO_EPOCHS, {}) for block in blocks]
        columns = [[part.values.get(n, np.full(len(part.epochs), np.nan)) for part in parts] for n in metrics[stage]]
        lengths, epochs = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
        rows[stage] = Rows(lengths, epochs, dict(zip(metrics[stage], map(np.concatenate, columns), strict=True)))
    both = Block(first.entries + second.entries, metrics, rows=rows)
    summary = np.full((len(both.entries), len(both.columns), 3), np.nan)
    for block, part in zip(blocks, np.split(summary, [len(first.entries)]), strict=True):
        part[:, [both.columns.index(column) for column in block.columns]] = block.summary
    return replace(both, summary=summary)


def ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Integers start, start + 1, ..., start + length - 1 of each range, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def _crc(array: NDArray[Any]) -> int:
    return zlib.crc32(array.data)


@lru_cache(maxsize=2**8)
def _layout(text: bytes) -> tuple[dict[str, list[str]], list[pa.Field]]:
    """Metrics of each stage, and fields of a file: entries, summary, and a list of rows per stage; from its head."""
    version, metrics = orjson.loads(text)
    if version != VERSION:
        raise ValueError("it is of another version")
    fields = [pa.field("entry", pa.string()), pa.field("summary", pa.list_(pa.float64()))]
    for stage, names in metrics.items():
        values = [pa.field(name, pa.float64()) for name in names]
        fields.append(pa.field(stage, pa.list_(pa.struct([pa.field("epoch", pa.int32()), *values]))))
    return metrics, fields


def _write_block(path: Path, block: Block) -> Block | None:
    """Write a block, which is in memory, to the cache.

    Returns:
        The block with its rows in the file; None where it cannot be written, which is no error.
    """
    layout = json.dumps([VERSION, block.metrics]).encode()
    fields = _layout(layout)[1]
    entries = [json.dumps(entry) for entry in block.entries]
    width = len(block.columns) * 3
    offsets = np.arange(len(entries) + 1, dtype=np.int32) * np.int32(width)
    columns = [pa.array(entries, pa.string()), pa.ListArray.from_arrays(offsets, block.summary.ravel())]
    checksums = [[zlib.crc32(",".join(entries).encode())], [_crc(offsets), _crc(block.summary)]]
    for kind, (stage, names) in zip(fields[2:], block.metrics.items(), strict=True):
        lengths, epochs, values = block.rows[stage]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        arrays: list[NDArray[Any]] = [epochs, *(values[name] for name in names)]
        rows = pa.StructArray.from_arrays(list(map(pa.array, arrays)), fields=list(kind.type.value_type))
        columns.append(pa.ListArray.from_arrays(offsets, rows))
        checksums.append([_crc(array) for array in [offsets, *arrays]])
    head = layout + b"\n" + json.dumps(checksums).encode()
    schema = pa.schema(fields, {b"audiotok": head, b"crc32": str(zlib.crc32(head)).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_bytes(memoryview(sink.getvalue()))
        _remove_abandoned(path)
    except OSError as error:
        logger.debug("no cache: %s", error)
        return None
    return replace(block, rows={}, path=path, head=head)


def _read_block(path: Path) -> Block | None:
    """Read a file of the cache except its rows; None if there is none or it is not fit for use."""
    try:
        batch, head, metrics, checksums = _read_columns(path, [0, 1])
        texts = ",".join(batch.column(0).to_pylist()).encode()
        _, offsets, _, values = batch.column(1).buffers()
        if [zlib.crc32(texts)] != checksums[0] or [zlib.crc32(offsets), zlib.crc32(values or b"")] != checksums[1]:
            return None
        # Copied, because the buffer is of the size of the whole file.
        columns = sum(map(len, metrics.values()))
        summary = np.frombuffer(values or b"").reshape(batch.num_rows, columns, 3).copy()
        return Block(parse_json(b"[" + texts + b"]"), metrics, summary, path=path, head=head)
    except (OSError, ValueError, LookupError, TypeError, MemoryError, pa.ArrowException):
        return None


def _read_rows(path: Path, block: Block, stages: list[str], metrics: Iterable[str] | None) -> dict[str, Rows]:
    places = [place for place, stage in enumerate(block.metrics, 2) if stage in stages]
    try:
        names = {stage: [n for n in block.metrics[stage] if metrics is None or n in metrics] for stage in stages}
        whole = sum(map(len, names.values())) > len(block.columns) / 2
        batch, head, _, checksums = _read_columns(path, places, whole=whole)
        if head != block.head:
            raise StaleCacheError(f"{path} was replaced")
        rows = {}
        for stage, place, column in zip(stages, places, batch.columns, strict=True):
            # Of the list: validity and offsets; of the struct: validity; then validity and values of each column.
            _, offsets, _, *buffers = column.buffers()
            columns = [0, *(block.metrics[stage].index(name) + 1 for name in names[stage])]
            contents = [buffers[2 * column + 1] or b"" for column in columns]
            expected = [checksums[place][0], *(checksums[place][column + 1] for column in columns)]
            if list(map(zlib.crc32, [offsets, *contents])) != expected:
                raise ValueError("a checksum is wrong")
            lengths = np.diff(np.frombuffer(offsets, np.int32)).astype(np.int64)
            values = dict(zip(names[stage], map(np.frombuffer, contents[1:]), strict=True))
            rows[stage] = Rows(lengths, np.frombuffer(contents[0], np.int32), values)
        return rows
    except (OSError, ValueError, pa.ArrowException) as error:
        with suppress(OSError):
            path.unlink()  # or it would be opened again
        raise StaleCacheError(f"{path} is damaged ({error})") from error


def _read_columns(
    path: Path, places: list[int], *, whole: bool = False
) -> tuple[pa.RecordBatch, bytes, dict[str, list[str]], Any]:
    """Some columns of a file; its head, and what that holds: metrics of each stage, and checksums by column.

    The file is read and not mapped: on a network file system, a mapped file that another machine replaces would kill
    this process.

    Args:
        path: the file.
        places: of the columns.
        whole: read the file at once, which is faster for most of it, and for a small file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not one of ours, of this version, or damaged (`pa.ArrowInvalid`).
    """
    options = pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)
    whole = whole or path.stat().st_size < _SMALL_BYTES
    with pa.BufferReader(path.read_bytes()) if whole else pa.OSFile(str(path)) as file:
        batch = pa.ipc.open_file(file, options=options).get_batch(0)
    metadata = batch.schema.metadata or {}
    head = metadata.get(b"audiotok", b"")
    if metadata.get(b"crc32") != str(zlib.crc32(head)).encode():
        raise ValueError("its head is not ours")
    layout, _, checksums = head.partition(b"\n")
    metrics, fields = _layout(layout)
    if batch.schema != pa.schema([fields[place] for place in places]):
        raise ValueError("its columns are not those of its head")
    batch.validate()  # that no offset leads out of a buffer; the checksums are for what is in them
    return batch, head, metrics, orjson.loads(checksums)


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


def _marks(folder: str, name: str) -> list[Mark]:
    """Marks of the files of a part; taken before they are read: what changes meanwhile is read again the next time."""
    return [_mark(f"{folder}/{file}") for file in _FILES[name]]


def _is_at_rest(mark: Mark) -> bool:
    return mark is None or mark[1] < (time.time() - _REST_S) * 1e9


def _may_keep(part: Part) -> bool:
    """True if a part may go into the cache: none of its files is changing, and it does not depend on the clock."""
    return bool(part.get("settled", True)) and all(map(_is_at_rest, part["marks"]))


def _read_history(folder: str) -> tuple[Part, list[StageTable]]:
    part: Part = {"marks": _marks(folder, "history"), "problems": []}
    part["epochs"], tables = read_tables(Path(folder, *_FILES["history"]), part["problems"])
    part["last_epoch"] = max((int(table.epochs[-1]) for table in tables), default=0)
    part["rows"] = {table.stage: len(table.epochs) for table in tables}
    found = [table.values[:, table.names.index("duration")] for table in tables if "duration" in table.names]
    seconds = np.concatenate(found) if found else np.empty(0)
    seconds = seconds[np.isfinite(seconds)]
    part["duration"] = math.fsum(seconds) if len(seconds) else None
    return part, tables


def _read_argv(folder: str) -> Part:
    """The overrides as text; they are parsed each time, which is faster than to keep them parsed."""
    part: Part = {"marks": _marks(folder, "argv"), "problems": []}
    (name,) = _FILES["argv"]
    argv = read_json_file(Path(folder, name), list, part["problems"])
    if argv is None and not part["problems"]:
        part["problems"].append(f"{name} is missing: parameters unknown")
    part["argv"] = [item for item in argv or [] if isinstance(item, str)]
    return part


def _read_state(folder: str) -> Part:
    marks = _marks(folder, "state")
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
        self._places = {entry["key"]: place for place, entry in enumerate(self._block.entries)}
        self._argv = {folder: self._fresh(folder, "argv") or _read_argv(folder) for folder in folders}
        self.overrides = {folder: parse_overrides(part["argv"]) for folder, part in self._argv.items()}

    def load(self, keys: Sequence[str]) -> dict[str, tuple[Block, int]]:
        """Bring the experiments up to date, and write to the cache what may be kept.

        Args:
            keys: parameters; where an experiment does not override one, it is taken from its configuration.

        Returns:
            Block and place of each experiment in it, by folder.

        Raises:
            StaleCacheError: if another process has rewritten the shard, or it is damaged.
        """
        entries = list(self._block.entries)
        kept: list[tuple[Entry, list[StageTable]]] = []
        passing: list[tuple[Entry, list[StageTable]]] = []  # whose history is not at rest
        gained = False
        for folder in self.folders:
            known = self._known(folder)
            entry, tables = self._update(folder, keys)
            gained = gained or any(entry[name] is not known.get(name) and _may_keep(entry[name]) for name in _FILES)
            if tables is None:
                entries[self._places[entry["key"]]] = entry
            else:
                (kept if _may_keep(entry["history"]) else passing).append((entry, tables))
        old = replace(self._block, entries=entries)
        block = self._write(self._path, old, kept) if gained and self._path is not None else None
        blocks = [old, _make_block(kept + passing)] if block is None else [block, _make_block(passing)]
        places = {entry["key"]: (each, place) for each in blocks for place, entry in enumerate(each.entries)}
        return {folder: places[self._key(folder)] for folder in self.folders}

    def pending_bytes(self) -> int:
        """Bytes of the histories that have to be parsed, if the cache can then keep them."""
        if self._path is None or not os.access(next(filter(Path.is_dir, self._path.parents)), os.W_OK):
            return 0
        stale = [folder for folder in self.folders if not self._fresh(folder, "history")]
        marks = [_marks(folder, "history")[0] for folder in stale]
        return sum(mark[0] for mark in marks if mark is not None and _is_at_rest(mark))

    def _key(self, folder: str) -> str:
        return folder.removeprefix(f"{self.root}{os.sep}")

    def _known(self, folder: str) -> Entry:
        place = self._places.get(self._key(folder))
        return {} if place is None else self._block.entries[place]

    def _fresh(self, folder: str, name: str) -> Part | None:
        """Part of an entry, if its files are as they were when it was read."""
        part: Part | None = self._known(folder).get(name)
        return part if part is not None and part["marks"] == _marks(folder, name) else None

    def _update(self, folder: str, keys: Sequence[str]) -> tuple[Entry, list[StageTable] | None]:
        """Entry of an experiment, and its tables unless those in the cache hold."""
        config = self._fresh(folder, "config")
        kept = {} if config is None else config["values"]
        missing = [key for key in keys if key not in self.overrides[folder] and key not in kept]
        entry = {
            "key": self._key(folder),
            "argv": self._argv[folder],
            "state": self._fresh(folder, "state") or _read_state(folder),
            "config": _read_config(folder, [*kept, *missing]) if config is None or missing else config,
            "history": self._fresh(folder, "history"),
        }
        if entry["history"] is not None:
            return entry, None
        entry["history"], tables = _read_history(folder)
        return entry, tables

    def _write(self, path: Path, old: Block, new: list[tuple[Entry, list[StageTable]]]) -> Block | None:
        """Write what is new and what there was, experiments that are not being loaded included.

        Returns:
            The block, with all parts of the entries; None where it cannot be written.
        """
        replaced = {entry["key"] for entry, _ in new}
        exists = [entry["key"] not in replaced and Path(self.root, entry["key"]).exists() for entry in old.entries]
        block = _join(_select(old, np.flatnonzero(exists)), _make_block(new))
        stored = [
            {name: part for name, part in entry.items() if name == "key" or _may_keep(part)} for entry in block.entries
        ]
        written = _write_block(path, replace(block, entries=stored))
        return None if written is None else replace(written, entries=block.entries)


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

    These are plain child processes and not those of `multiprocessing`: forking would copy locks that threads of a
    notebook hold, and spawning would run the caller's script again.
    """
    path = json.dumps([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109
    children: list[subprocess.Popen[str]] = []
    try:
        for _ in shares:
            # In a session of its own, so that Ctrl-C reaches this process only, which then kills it.
            child = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip
            children.append(child)
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

"""The cache never changes what is read: whatever becomes of it, the tables are those of the JSON files."""

import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiotok.results import Experiments, cache, load_all, load_grid, load_sigs, read_experiment
from audiotok.results.cache import CACHE_FOLDER, _make_block, _read_block, _tables, _write_block
from audiotok.results.read import History, read_tables

GRID = "compression.encodec_mmd_demo"
Make = Callable[..., Path]
Rest = Callable[[], None]


def _history(seed: int, epochs: int = 5) -> History:
    rng = np.random.default_rng(seed)
    names = {"train": ["l1", "mmd"], "valid": ["msspec", f"odd{seed % 2}", "l1"], "evaluate": ["mel"]}
    return [
        {stage: {name: rng.random() for name in names[stage]} for stage in names if stage != "evaluate" or epoch == 2}
        for epoch in range(epochs)
    ]


@pytest.fixture
def grid(root: Path, make_experiment: Make, done: dict[str, Any], rest: Rest) -> Path:
    """Six experiments at rest, two of them in the same shard, half of them without a seed of their own."""
    for index in range(6):
        argv = [f"losses.mmd={index}"] + ([f"seed={index}"] if index % 2 else [])
        folder = make_experiment(f"{index // 2:02x}{index:06x}", argv, _history(index, 3 + index), status=done)
        (folder / "frozen.json").write_text(json.dumps({"cfg": {"seed": 2036, "big": 2**70}}))
    rest()
    return root


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Folders whose histories are parsed in this process."""
    parsed: list[str] = []

    def reading(path: Path, problems: list[str]) -> Any:
        parsed.append(path.parent.name)
        return read_tables(path, problems)

    monkeypatch.setattr("audiotok.results.cache.read_tables", reading)
    yield parsed


def _same(first: Experiments, second: Experiments) -> None:
    pd.testing.assert_frame_equal(first.runs, second.runs)
    pd.testing.assert_frame_equal(first.history, second.history)


def _files(root: Path) -> list[Path]:
    return sorted((root / CACHE_FOLDER).iterdir())


def _plain(root: Path) -> dict[tuple[str, int, str, str], float]:
    """All numbers, read plainly."""
    return {
        (folder.name, epoch, stage, name): value
        for folder in (root / "xps").iterdir()
        for epoch, stages in enumerate(json.loads((folder / "history.json").read_text()), 1)
        for stage, metrics in stages.items()
        for name, value in metrics.items()
    }


def _numbers(history: pd.DataFrame) -> dict[tuple[str, int, str, str], float]:
    return {
        (row["sig"], row["epoch"], row["stage"], name): row[name]
        for row in history.to_dict("records")
        for name in history.columns[3:]
        if not math.isnan(row[name])
    }


def test_a_warm_load_parses_nothing_and_gives_the_same(grid: Path, unread: list[str]) -> None:
    cold = load_all(grid)
    assert len(unread) == 6 and len(_files(grid)) == 3
    assert _numbers(cold.history) == _plain(grid)
    unread.clear()
    warm = load_all(grid)
    _same(cold, warm)
    assert unread == []
    assert warm.runs["seed"].tolist() == [2036, 1, 2036, 3, 2036, 5]


def test_parts_of_the_history(grid: Path) -> None:
    for _ in range(2):
        experiments = load_all(grid)
        whole = experiments.history
        some = experiments.read_history(["valid"], ["l1", "msspec"])
        expected = whole[whole["stage"] == "valid"][["sig", "stage", "epoch", "msspec", "l1"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(some.astype({"stage": str}), expected.astype({"stage": str}))  # fewer categories
        assert experiments.read_history(["none"]).empty


def test_a_file_that_has_changed_is_read_again(grid: Path, unread: list[str]) -> None:
    load_all(grid)
    path = grid / "xps" / "00000001" / "history.json"
    found = path.stat()
    text = path.read_text()
    path.write_text(text.replace("3", "4"))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))  # same size, one nanosecond later
    unread.clear()
    assert _numbers(load_all(grid).history) == _plain(grid)
    assert unread == ["00000001"]
    unread.clear()
    assert _numbers(load_all(grid).history) == _plain(grid)
    assert unread == []


def test_what_is_being_written_is_not_cached(grid: Path, unread: list[str]) -> None:
    (grid / "xps" / "00000001" / "history.json").write_text(json.dumps(_history(77)))
    for _ in range(2):
        unread.clear()
        assert _numbers(load_all(grid).history) == _plain(grid)
        assert unread.count("00000001") == 1


def test_states_are_judged_anew_until_they_are_settled(
    grid: Path, done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grid / "xps" / "00000000" / "status.json"
    old = time.time() - 3600

    def say(**fields: Any) -> None:
        path.write_text(json.dumps(done | fields))
        os.utime(path, (old, old))

    say(state="RUNNING", ended=None, updated=time.time())
    assert load_all(grid).runs["state"].tolist()[0] == "RUNNING"
    much_later = time.time() + 30 * 86400
    with monkeypatch.context() as patched:
        patched.setattr("audiotok.status.judge.time.time", lambda: much_later)  # the file stays as it is
        assert load_all(grid).runs["state"].tolist()[0] == "STALE"
    say(state="FAILED", reason="no memory")
    for _ in range(2):
        assert load_all(grid).runs[["state", "reason"]].values.tolist()[0] == ["FAILED", "no memory"]


def _flip(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 0x11]) + raw[place + 1 :]


def _some_values(raw: bytes) -> bytes:
    """Bytes of a metric's values."""
    values: bytes = list(pa.ipc.open_stream(raw))[2].column(0).to_numpy().tobytes()
    return values


def _another_version(raw: bytes) -> bytes:
    """The same table, whole and with right checksums, under another version."""
    table = pa.ipc.open_stream(raw).read_all()
    head = table.schema.metadata[b"audiotok"]
    assert head.startswith(b"[%d," % cache.VERSION)
    head = head.replace(b"[%d," % cache.VERSION, b"[99,", 1)
    return _arrow_stream(table.replace_schema_metadata({b"audiotok": head, b"crc32": str(zlib.crc32(head)).encode()}))


def _arrow_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "foreign": lambda raw: b"PAR1" + bytes(len(raw)),
    "foreign Arrow": lambda raw: _arrow_stream(pa.table({"entry": ["{}"], "summary": [[1.0]]})),
    "no rows": lambda raw: _arrow_stream(pa.table({"entry": pa.array([], pa.string())})),
    "cut": lambda raw: raw[:-1],
    "cut early": lambda raw: raw[:50],
    "longer": lambda raw: raw + b"x",
    "another version": _another_version,
    "entries": lambda raw: _flip(raw, raw.rindex(b'{"key": ') + 20),
    "values": lambda raw: _flip(raw, raw.rindex(_some_values(raw))),
    "zeros at the end": lambda raw: raw[:-64] + bytes(64),
    "zeros in the middle": lambda raw: raw[: len(raw) // 2] + bytes(256) + raw[len(raw) // 2 + 256 :],
    "huge sizes": lambda raw: raw[:4] + struct.pack("<i", 2**31 - 1) + raw[8:],  # of the metadata
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_ignored_and_written_anew(grid: Path, damage: str, unread: list[str]) -> None:
    load_all(grid)
    for path in _files(grid):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert _numbers(load_all(grid).history) == _plain(grid)
    unread.clear()
    assert _numbers(load_all(grid).history) == _plain(grid)
    assert unread == []


def test_a_pipe_in_place_of_the_cache_is_ignored(grid: Path) -> None:
    expected = load_all(grid)
    for path in _files(grid):
        path.unlink()
        os.mkfifo(path)
    _same(load_all(grid), expected)


def test_no_changed_byte_changes_a_number(grid: Path) -> None:
    expected = load_all(grid)
    expected.history.count()
    path = _files(grid)[0]
    raw = path.read_bytes()
    for place in random.Random(0).sample(range(len(raw)), 40):
        path.write_bytes(_flip(raw, place))
        _same(load_all(grid), expected)


def test_without_a_place_for_the_cache(grid: Path) -> None:
    expected = load_all(grid)
    shutil.rmtree(grid / ".cache")
    (grid / ".cache").write_text("not a folder")
    for _ in range(2):
        _same(load_all(grid), expected)
    assert (grid / ".cache").read_text() == "not a folder"


def test_a_full_disk_is_no_error(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert _numbers(load_all(grid).history) == _plain(grid)
    assert _files(grid) == []


def test_a_copy_takes_its_cache_along(grid: Path, tmp_path: Path, unread: list[str]) -> None:
    before = load_grid(GRID, grid)
    before.history.count()
    shutil.copytree(grid, tmp_path / "copy", symlinks=True)
    shutil.rmtree(grid)
    unread.clear()
    _same(load_grid(GRID, tmp_path / "copy"), before)
    assert unread == []


def test_some_of_a_shard_after_the_other(grid: Path) -> None:
    assert len(load_sigs(["00000000"], grid).history) == len(load_sigs(["00000000"], grid).history) == 7
    assert load_sigs(["00000001"], grid).history["sig"].unique().tolist() == ["00000001"]
    assert set(read_keys(grid)) == {"xps/00000000", "xps/00000001"}
    assert "odd1" not in load_sigs(["00000000"], grid).history  # nobody asked for the run that has it
    assert _numbers(load_all(grid).history) == _plain(grid)


def read_keys(root: Path) -> list[str]:
    blocks = [_read_block(path) for path in _files(root)]
    return [entry["key"] for block in blocks if block is not None for entry in block.entries]


def test_experiments_that_are_gone_leave_the_cache(grid: Path, make_experiment: Make, rest: Rest) -> None:
    load_all(grid)
    shutil.rmtree(grid / "xps" / "00000000")
    make_experiment("00ffffff", [], _history(9))
    rest()
    assert set(load_all(grid).runs["sig"]) == {path.name for path in (grid / "xps").iterdir()}
    assert "xps/00000000" not in read_keys(grid) and "xps/00ffffff" in read_keys(grid)


def test_numbers_are_found_though_the_cache_was_rewritten_meanwhile(grid: Path) -> None:
    load_all(grid)
    experiments = load_all(grid)
    for path in _files(grid):
        block = _read_block(path)
        assert block is not None
        assert _write_block(path, _make_block([(block.entries[0], _tables(block)[0])])) is not None
    assert _numbers(experiments.history) == _plain(grid)
    again = load_all(grid)
    shutil.rmtree(grid / ".cache")
    assert _numbers(again.history) == _plain(grid)


def test_processes_give_the_same(grid: Path, monkeypatch: pytest.MonkeyPatch, unread: list[str]) -> None:
    expected = load_all(grid)
    expected.history.count()
    shutil.rmtree(grid / ".cache")
    monkeypatch.setattr(cache, "MIN_BYTES_FOR_PROCESSES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    unread.clear()
    _same(load_all(grid), expected)
    assert len(_files(grid)) == 3 and unread == []  # the processes have parsed all
    shutil.rmtree(grid / ".cache")
    monkeypatch.setattr(cache, "_DRIVER", "raise SystemExit(1)")  # both die at once
    _same(load_all(grid), expected)
    assert len(unread) == 6


WRITER = """
import json, os, sys, pathlib
for n in range(1, 200):
    for folder in pathlib.Path(sys.argv[1], "xps").iterdir():
        draft = folder / "draft"
        draft.write_text(json.dumps([{"train": {"l1": float(e), "l2": e / 3}} for e in range(n)]))
        os.utime(draft, (1e9 + n, 1e9 + n))
        draft.replace(folder / "history.json")
"""
READER = """
import sys
from audiotok.results import load_all
for _ in range(25):
    experiments = load_all(sys.argv[1])
    for sig, rows in experiments.history.groupby("sig"):
        assert rows["epoch"].tolist() == list(range(1, len(rows) + 1)), rows
        assert rows["l1"].tolist() == [float(e) for e in range(len(rows))], rows
        assert rows["l2"].tolist() == [e / 3 for e in range(len(rows))], rows
"""


def test_readers_beside_a_writer_see_whole_histories(root: Path, make_experiment: Make) -> None:
    for index in range(4):
        make_experiment(f"0000000{index}", [], [{"train": {"l1": 0.0, "l2": 0.0}}])
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(root)], env=environ, stderr=subprocess.PIPE, text=True)
        for code in (WRITER, READER, READER)
    ]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], errors
    assert not list((root / CACHE_FOLDER).glob("*.tmp"))


FLOATS = st.floats() | st.integers(-(2**70), 2**70) | st.none() | st.booleans()
NAMES = st.sampled_from(["l1", "mmd", "duration", "epoch", "sig", "metric.epoch", "a.b", "é", "x:y"])
HISTORIES = st.lists(
    st.dictionaries(st.sampled_from(["train", "valid", "odd"]), st.dictionaries(NAMES, FLOATS, max_size=4), max_size=3),
    max_size=5,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(HISTORIES, min_size=1, max_size=4))
def test_any_histories_come_back_from_the_cache_as_they_were(tmp_path: Path, histories: list[Any]) -> None:
    root = tmp_path / f"{time.monotonic_ns()}"
    for index, history in enumerate(histories):
        folder = root / "xps" / f"{index:08x}"
        folder.mkdir(parents=True)
        (folder / "history.json").write_text(json.dumps(history))
        os.utime(folder / "history.json", (1e9, 1e9))
    cold, warm = load_all(root), load_all(root)
    _same(cold, warm)
    assert cold.history.columns.is_unique
    for record, history in zip(cold.records, histories, strict=True):
        assert record.epochs == len(history)
        for stage in ("train", "valid", "odd"):
            rows = cold.history[(cold.history["sig"] == record.sig) & (cold.history["stage"] == stage)]
            assert rows["epoch"].tolist() == [n for n, stages in enumerate(history, 1) if stages.get(stage)]
        name = "train.l1"
        values = [stages["train"]["l1"] for stages in history if "l1" in stages.get("train", {})]
        expected = float("nan") if not values or values[-1] is None else float(values[-1])
        found = cold.runs.set_index("sig")[name][record.sig] if name in cold.runs else math.nan
        assert found == expected or (math.isnan(found) and math.isnan(expected))
        assert read_experiment(record.folder).last_epoch == record.last_epoch

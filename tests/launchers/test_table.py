"""The table of `dora grid`: what it shows for any explorer, what it reads again, and when it ends."""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import treetable as tt
from dora.explore import Explorer
from dora.main import DecoratedMain

from audiotok import train
from audiotok.explorers import CompressionExplorer
from audiotok.launchers import table as module
from audiotok.launchers.table import (
    PRESET,
    _FileCache,
    _grid_left_s,
    _read_history,
    _totals_line,
    monitor,
    names_of,
)
from audiotok.status import State, Verdict
from audiotok.status.progress import Progress
from audiotok.text import duration_text

ESCAPE = re.compile(r"\033\[[\d;]*m")
NO_ARGS = SimpleNamespace(trim=None, trim_last=False, silent=False)


class _Main(DecoratedMain):
    """Only what the monitor asks of an entry point: names out of deltas."""

    def __init__(self) -> None:
        pass

    def get_name_parts(self, xp: Any) -> Any:
        return dict(xp.delta)


class _Sheep:
    """An experiment with a verdict."""

    def __init__(self, folder: Path, verdict: Verdict | None, **delta: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        xp = {"folder": folder, "history": folder / "history.json", "sig": folder.name, "delta": list(delta.items())}
        self.xp = SimpleNamespace(**xp)
        self.verdict = verdict
        self.log: Path | None = None
        self.current_job_id = None if verdict is None else f"41_{int(folder.name, 16)}"

    def state(self) -> str | None:
        return None if self.verdict is None else self.verdict.state

    def is_done(self) -> bool:
        return self.verdict is None or self.verdict.state not in ("PENDING", "RUNNING")

    def write(self, history: Any = None, **status: Any) -> "_Sheep":
        if history is not None:
            self.xp.history.write_text(history if isinstance(history, str) else json.dumps(history))
        if status:
            (self.xp.folder / "status.json").write_text(json.dumps(status))
        return self


class _History(Explorer):
    """An explorer as in Dora's own examples: last values by stage."""

    def get_grid_metrics(self) -> list[Any]:
        return [tt.leaf("epoch"), tt.group("valid", [tt.leaf("loss", ".2f")], align=">")]


class _SheepExplorer(_History):
    """One that looks at the experiment, too."""

    def process_sheep(self, sheep: Any, history: list[dict[str, Any]]) -> dict[str, Any]:
        return {"epoch": len(history), "valid": {"loss": float(int(sheep.xp.sig, 16))}}


def _show(
    herd: Sequence[_Sheep], explorer: Explorer | None = None, args: Any = NO_ARGS, main: Any = None
) -> tuple[bool, str]:
    said: list[str] = []
    explorer = explorer or _History(lambda launcher: None)
    print_: Callable[..., Any] = lambda *words: said.append(" ".join(map(str, words)))  # noqa: E731
    finished = monitor(args, main or _Main(), explorer, herd, print_)
    return finished, "\n".join(said)


@pytest.fixture
def herd(tmp_path: Path) -> list[_Sheep]:
    """One of each kind: done, half-way, failed, waiting, never submitted."""
    epochs = [{"valid": {"loss": 1.0}}, {"valid": {"loss": 0.25}}]
    verdicts = [
        Verdict(State.COMPLETED, ""),
        Verdict(State.RUNNING, ""),
        Verdict(State.FAILED, "DataError: no audio in /data/music; " + "run audiotok data first, " * 9),
        Verdict(State.PENDING, ""),
        None,
    ]
    sheep = [_Sheep(tmp_path / f"{n:08x}", v, lr=0.1, seed=n) for n, v in enumerate(verdicts)]
    sheep[0].write(epochs, epoch=10, epochs=10, epoch_s=60.0)
    sheep[1].write(epochs, epoch=2, epochs=10, update=20, updates_per_epoch=40, epoch_s=600.0)
    sheep[2].write([], epoch=1, epochs=10)
    return sheep


def test_a_row_for_each_and_a_line_of_totals(herd: list[_Sheep]) -> None:
    finished, said = _show(herd)
    base, _, header, *rows, totals = said.splitlines()
    assert not finished
    assert base.split() == ["Base", "name:", "lr=0.1"]
    for word in ("state", "epochs", "eta", "why", "sig", "epoch", "loss"):
        assert word in header
    states = ["COMPLETED", "RUNNING", "FAILED", "PENDING", "N/A"]
    assert [row.split()[:3] for row in rows] == [[str(n), f"seed={n}", state] for n, state in enumerate(states)]
    assert "10/10" in rows[0] and "0.25" in rows[0]
    assert "2/10" in rows[1] and "75m" in rows[1]  # 7.5 epochs of 10 minutes
    assert "DataError: no audio in /data/music;" in rows[2] and "…" in rows[2] and max(map(len, rows)) < 180
    assert totals.startswith("5 experiments: ") and "1 not submitted" in totals
    assert f"{(1 + 0.25 + 0.1) / 5:.0%}".replace("%", " %") in totals
    assert totals.endswith("job 41")


@pytest.mark.parametrize(
    ("states", "finished"),
    [
        (["COMPLETED", "FAILED", "CANCELLED", None], True),
        (["COMPLETED", "RUNNING"], False),
        (["COMPLETED", "PENDING"], False),
        (["COMPLETED", "UNKNOWN"], False),  # nobody answers, so nobody knows that it has ended
        (["COMPLETED", "WAITING"], False),  # also without a job
        (["COMPLETED", "BLOCKED"], True),
    ],
)
def test_it_ends_when_all_has_ended(tmp_path: Path, states: list[str | None], finished: bool) -> None:
    herd = [
        _Sheep(tmp_path / f"{n:08x}", None if state is None else Verdict(State.of(state), ""), n=n)
        for n, state in enumerate(states)
    ]
    assert _show(herd)[0] is finished
    silent = SimpleNamespace(silent=True)
    assert _show(herd, args=silent) == (finished, "")


def test_other_dora_sheep_have_states_too(tmp_path: Path) -> None:
    sheep: Any = _Sheep(tmp_path / "0000000a", None, n=1)
    sheep.state = lambda: "COMPLETING"
    assert "COMPLETING" in _show([sheep])[1]


def test_a_preset_by_itself_has_a_name(tmp_path: Path) -> None:
    plain, other = _Sheep(tmp_path / "0a", None), _Sheep(tmp_path / "0b", None, n=1)
    assert names_of(_Main(), [plain.xp]) == ([PRESET], "")
    assert names_of(_Main(), [plain.xp, other.xp]) == ([PRESET, "n=1"], "")
    assert names_of(_Main(), [other.xp]) == (["n=1"], "")
    more = _Sheep(tmp_path / "0c", None, n=1, m=2)
    assert names_of(_Main(), [other.xp, more.xp]) == ([PRESET, "m=2"], "n=1")
    other.xp.cfg = SimpleNamespace(m=5)
    assert names_of(_Main(), [other.xp, more.xp]) == (["m=5", "m=2"], "n=1")


def test_the_base_shows_the_values_of_its_preset() -> None:
    preset = ["solver=compression/debug", "device=cpu"]
    changes = [[], ["losses.mmd=3.5"], ["rvq.n_q=4"], ["solver=compression/demo"], ["+mel.log=false"]]
    xps = [train.main.get_xp([*preset, *change]) for change in changes]
    names, base = names_of(train.main, xps[:3])
    cfg = xps[0].cfg
    mmd, n_q = f"los.mmd={cfg.losses.mmd}", f"rvq.n_q={cfg.rvq.n_q}"
    assert base == "solver=compression/debug"
    assert names == [f"{mmd} {n_q}", f"los.mmd=3.5 {n_q}", f"{mmd} rvq.n_q=4"]
    whole, _ = names_of(train.main, xps[:2], whole=True)
    assert whole == [f"losses.mmd={cfg.losses.mmd}".removesuffix(".0"), "losses.mmd=3.5"]
    assert names_of(train.main, [xps[0], xps[3]]) == (["solver=compression/debug", "solver=compression/demo"], "")
    assert names_of(train.main, [xps[0], xps[4]]) == ([PRESET, "mel.log=False"], "solver=compression/debug")


def test_colours_in_a_terminal_only(herd: list[_Sheep], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _show(herd)[1]
    assert "\033" not in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    coloured = _show(herd)[1]
    for state, colour in (("COMPLETED", "32"), ("RUNNING", "34"), ("FAILED", "31"), ("PENDING", "90")):
        assert f"\033[{colour}m{state}\033[0m" in coloured
    assert [line.rstrip() for line in ESCAPE.sub("", coloured).splitlines()] == plain.splitlines()
    monkeypatch.setenv("NO_COLOR", "1")
    assert _show(herd)[1] == plain


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_terminal_gets_as_many_columns_as_it_has(
    herd: list[_Sheep], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sheep in herd:
        sheep.xp.delta = [("losses.mmd", 10.0), ("mmd.sigmas", [0.1, 1.0, 5.0, 10.0, 20.0, 50.0]), *sheep.xp.delta]
    herd[0].xp.delta[0] = ("losses.mmd", 0.0)
    herd[1].xp.delta[1] = ("mmd.sigmas", "median")
    stages = {stage: {"sisnr": 1.25, "msspec": 2.5, "mmd": 3.0, "adv": 0.5} for stage in ("train", "valid", "evaluate")}
    herd[0].write([stages])
    whole = _show(herd, CompressionExplorer(lambda launcher: None))[1].splitlines()
    assert max(map(len, whole)) > 200
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = _show(herd, CompressionExplorer(lambda launcher: None))[1].splitlines()
    assert max(map(len, narrow)) <= width
    assert sum(bool(re.match(r"[0-4]  ", line)) for line in narrow) == len(herd)  # one line each
    for sheep in herd:
        (row,) = [line for line in narrow if sheep.xp.sig in line]
        assert re.search(r"COMPLETED|RUNNING|FAILED|PENDING|N/A", row)
        assert width == 60 or f"seed={int(sheep.xp.sig, 16)}" in row
    assert any(line.startswith("#2: DataError: no audio in /data/music") for line in narrow)
    assert width < 100 or any("COMPLETED" in line and " 1 " in line for line in narrow)  # the first metric: epoch


def test_explorers_of_all_three_kinds(herd: list[_Sheep]) -> None:
    assert "0.25" in _show(herd, _History(lambda launcher: None))[1]
    assert "3.00" in _show(herd, _SheepExplorer(lambda launcher: None))[1]
    ours = CompressionExplorer(lambda launcher: None)
    herd[0].log = herd[0].xp.history
    assert re.search(r"COMPLETED.* \ds ", _show(herd, ours)[1])  # the ping, which no history tells


@pytest.mark.parametrize("explorer", [_History, CompressionExplorer])
def test_only_what_changed_is_read_again(
    herd: list[_Sheep], explorer: type[Explorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counting(path: Path) -> Any:
        read.append(path)
        return _read_history(path)

    monkeypatch.setattr(module, "_read_history", counting)
    monkeypatch.setattr(module, "_histories", _FileCache(counting))
    explore = explorer(lambda launcher: None)
    epochs = [{"train": {"adv": 0.5}, "valid": {"loss": 0.25, "sisnr": 7.77}}]
    herd[1].write(epochs)
    first = _show(herd, explore)[1]
    there = [sheep.xp.history for sheep in herd if sheep.xp.history.exists()]
    assert sorted(path for path in read if path in there) == there
    read.clear()
    assert _show(herd, explore)[1] == first
    assert not [path for path in read if path in there]
    herd[1].write([*epochs, {"valid": {"loss": 0.125, "sisnr": 8.88}}])
    said = _show(herd, explore)[1]
    assert [path for path in read if path in there] == [herd[1].xp.history]
    assert ("8.88" if explorer is CompressionExplorer else "0.12") in said


def test_histories_are_trimmed_as_in_dora(herd: list[_Sheep]) -> None:
    herd = herd[:2]
    herd[1].write([{"valid": {"loss": 9.0}}])
    for args in (SimpleNamespace(trim=1, trim_last=False), SimpleNamespace(trim=None, trim_last=True)):
        for explorer in (_History, _SheepExplorer):
            rows = _show(herd, explorer(lambda launcher: None), args)[1].splitlines()[-3:-1]
            assert all(re.search(r"\b1 +\|", row) for row in rows)
    assert "1.00" in _show(herd, args=SimpleNamespace(trim=1, trim_last=False))[1]


def test_a_project_may_find_its_histories_itself(herd: list[_Sheep]) -> None:
    class Own(_Main):
        def get_xp_history(self, xp: Any) -> list[dict[str, Any]]:
            return [{"valid": {"loss": 5.55}}]

    assert _show(herd, main=Own())[1].count("5.55") == len(herd)


@pytest.mark.parametrize("text", ["", "[{", "3", '{"valid": 1}', "[1, null]", "\0"])
def test_damaged_files_are_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    assert _read_history(path) == []
    assert _read_history(tmp_path / "none.json") == []
    sheep = _Sheep(tmp_path / "0a", Verdict(State.RUNNING, ""), n=1).write(text)
    (sheep.xp.folder / "status.json").write_text(text)
    assert "RUNNING" in _show([sheep])[1]


def test_a_history_may_hold_what_json_does_not_allow(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text('[{"valid": {"loss": NaN, "mmd": Infinity}}]')
    (epoch,) = _read_history(path)
    assert epoch["valid"]["loss"] != epoch["valid"]["loss"] and epoch["valid"]["mmd"] == float("inf")


def test_the_end_of_a_grid_is_the_work_left_over_what_runs() -> None:
    half, fresh = Progress(5.0, 10, 60.0), Progress()
    assert _grid_left_s([State.RUNNING], [half]) == pytest.approx(300.0)
    # two run with 300 s left each, two wait for 600 s each: 1800 s of work for two
    assert _grid_left_s([State.RUNNING] * 2 + [State.PENDING] * 2, [half, half, fresh, fresh]) == pytest.approx(900.0)
    slow = Progress(0.0, 10, 600.0)  # the slowest one is not divided among others
    assert _grid_left_s([State.RUNNING, State.RUNNING], [half, slow]) == pytest.approx(6000.0)
    assert _grid_left_s([State.PENDING, State.COMPLETED], [fresh, half]) is None
    assert _grid_left_s([State.RUNNING], [fresh]) is None
    assert _grid_left_s([], []) is None


def test_durations_and_totals_in_words() -> None:
    told = [(0.4, "0s"), (59, "59s"), (91, "2m"), (5399, "90m"), (5400, "1.5h"), (169200, "47.0h"), (216000, "2.5d")]
    assert [duration_text(seconds) for seconds, _ in told] == [text for _, text in told]
    line = _totals_line([State.PENDING] * 6, [Progress()] * 6, [f"{n}_{n}" for n in (1, 1, 2, 3, 4, 5)])
    assert line == "6 experiments: 6 PENDING · 0 % done · jobs 1 2 3 4 and 1 more"


def test_a_file_that_is_replaced_with_one_of_the_same_size_is_read_again(tmp_path: Path) -> None:
    path, cache = tmp_path / "one.json", _FileCache(lambda path: path.read_text() if path.exists() else "none")
    assert cache.read(path) == "none"
    path.write_text("1")
    moment = path.stat().st_mtime_ns
    assert cache.read(path) == "1"
    draft = tmp_path / "draft"
    draft.write_text("2")
    os.utime(draft, ns=(moment, moment))
    draft.replace(path)
    assert cache.read(path) == "2"
    path.unlink()
    assert cache.read(path) == "none"

"""Curves, samples and spectrograms, as TensorBoard's own reader and the records of Weights & Biases have them."""

import json
import logging
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from audiotok.solvers import CompressionSolver
from audiotok.solvers.interruption import Interrupted, StopSignals
from audiotok.solvers.loggers import LOGGED_FILE, RunLog, _About, _WandB

Enter = Callable[..., AbstractContextManager[CompressionSolver]]
ROOT = Path(__file__).parents[2]
UPDATES, EPOCHS = 4, 2
BOTH = ["logging.log_tensorboard=true", "logging.log_wandb=true", "logging.every=2", "logging.samples=1"]
SMALL = [
    f"optim.epochs={EPOCHS}", f"optim.updates_per_epoch={UPDATES}", "evaluate.every=null", "generate.every=1",
    "dataset.generate.num_samples=2", "evaluate.metrics={dependence:false,mmd:false}",
]  # fmt: skip


def events(folder: Path) -> EventAccumulator:
    """All that TensorBoard shows of an experiment."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"audio": 0, "images": 0, "scalars": 0})
    found.Reload()
    return found


def records(path: Path) -> Iterator[Any]:
    """Records of a `.wandb` file: a header of 7 bytes, then a log in blocks of 32 KiB, in the format of LevelDB."""
    data, place, pending = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        pending += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made when it is imported
            record.ParseFromString(pending)
            yield record
            pending = b""


def points(folder: Path) -> list[dict[str, Any]]:
    """Rows of the history in all offline runs of an experiment, in the order of their making."""
    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda one: one.stat().st_mtime_ns):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                row: dict[str, Any] = {}
                for item in record.history.item:
                    *outer, name = item.nested_key or [item.key]
                    section = row.setdefault(outer[0], {}) if outer else row
                    section[name] = json.loads(item.value_json)
                rows.append(row)
    return rows


def stop_at(solver: CompressionSolver, epoch: int, update: int) -> None:
    """Train until a signal arrives there, and go back to the checkpoint before, as if the process had been killed."""
    with StopSignals() as stop:
        stop.patient = True
        before = solver.checkpoint_path.with_name("before.th")

        def progress() -> None:
            if solver.checkpoint_path.exists() and not before.exists():
                shutil.copyfile(solver.checkpoint_path, before)
            if (solver.epoch, solver.progress.updates) == (epoch, update):
                os.kill(os.getpid(), signal.SIGTERM)

        solver.stop_signal, solver.on_progress = (lambda: stop.signum), progress
        with pytest.raises(Interrupted):
            solver.run()
        solver.checkpoint_path.unlink()
        if before.exists():
            before.rename(solver.checkpoint_path)


def test_a_resumed_training_goes_on_with_the_same_curves(
    tmp_path: Path, solver_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    overrides = [*SMALL, *BOTH, "slurm.setup=['export TOKEN=of-the-cluster']"]
    with solver_in(tmp_path, *overrides) as solver:
        folder, sig = Path(solver.folder), solver.xp.sig
        (tmp_path / "grids" / "my_grid").mkdir(parents=True)
        (tmp_path / "grids" / "my_grid" / sig).symlink_to(folder)
        stop_at(solver, 2, 3)
    with solver_in(tmp_path, *overrides) as solver:
        solver.run()
        history = solver.history

    shown = events(folder)
    tags = shown.Tags()
    steps = [point.step for point in shown.Scalars("step/g_loss")]
    assert steps == [2, 4, 6, 8]
    for stage, metrics in history[0].items():
        for name in metrics:
            curve = shown.Scalars(f"{stage}/{name}")
            assert [point.step for point in curve] == [1, 2]
            assert [point.value for point in curve] == pytest.approx([epoch[stage][name] for epoch in history])
    (clip,) = {tag.removesuffix("/estimate") for tag in tags["audio"] if tag.endswith("/estimate")}
    assert {*tags["audio"]} == {f"{clip}/estimate", f"{clip}/reference"} and tags["images"] == [f"{clip}/spectrogram"]
    assert [one.step for one in shown.Audio(f"{clip}/estimate")] == [1, 2]
    reference = folder / "samples" / "reference" / f"{clip.removeprefix('samples/')}.wav"
    assert shown.Audio(f"{clip}/reference")[0].sample_rate == soundfile.info(reference).samplerate
    (image, _) = shown.Images(f"{clip}/spectrogram")
    assert (image.height, image.width) == (2 * 112, 480)

    rows = points(folder)
    assert [row["update"] for row in rows if "step/g_loss" in row] == steps
    places = [row["_step"] for row in rows]
    assert places == sorted({*places})  # across both sessions
    assert [row["epoch"] for row in rows if "valid/l1" in row] == [1, 2]
    assert [row["valid/l1"] for row in rows if "valid/l1" in row] == [epoch["valid"]["l1"] for epoch in history]
    kinds = [{name: value["_type"] for name, value in row.items() if isinstance(value, dict)} for row in rows]
    assert [kind for kind in kinds if kind] == [
        {f"{clip}/estimate": "audio-file", f"{clip}/reference": "audio-file", f"{clip}/spectrogram": "image-file"}
    ] * 2
    runs = [
        record.run
        for path in folder.glob("wandb/offline-run-*/run-*.wandb")
        for record in records(path)
        if record.WhichOneof("record_type") == "run"
    ]
    assert len(runs) == 2
    assert {(run.run_id, run.display_name, run.run_group, run.project) for run in runs} == {
        (sig, sig, "my_grid", "audiotok")
    }
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["experiment"]["signature"] == sig and "optim.epochs=2" in config["experiment"]["overrides"]
    assert config["optim"]["epochs"] == EPOCHS and not {"slurm", "dora"} & {*config}

    written = [path for name in ("wandb", "tensorboard") for path in (folder / name).rglob("*") if path.is_file()]
    assert len(written) > 6
    for path in written:
        data = path.read_bytes()
        assert b"0123456789abcdef01" not in data and b"of-the-cluster" not in data, path


def test_a_new_start_hides_the_points_of_the_last(tmp_path: Path, solver_in: Enter) -> None:
    overrides = [*SMALL, *BOTH[:1], "logging.every=1", "logging.samples=0", "generate.every=null"]
    with solver_in(tmp_path, *overrides) as solver:
        stop_at(solver, 1, 3)
    with solver_in(tmp_path, *overrides) as solver:
        solver.run()
        shown = events(Path(solver.folder))
    assert [point.step for point in shown.Scalars("step/g_loss")] == [*range(1, UPDATES * EPOCHS + 1)]


class _Kept:
    """A backend that keeps what is written; it fails from the point after so many on."""

    def __init__(self, anew: bool, points: int = 10**6) -> None:
        self.anew, self.left, self.points = anew, points, Counter[tuple[str, int, str]]()
        self.ended: list[bool] = []

    def write(self, axis: str, position: int, values: Mapping[str, float], clips: Sequence[object]) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the server is gone\nfor good")
        self.points.update((axis, position, name) for name in values)

    def close(self, failed: bool) -> None:
        self.ended.append(failed)

    def leave(self) -> str:
        return "the rest is kept"


HISTORY = [{"train": {"l1": 0.5}, "valid": {"l1": 0.6}}, {"train": {"l1": 0.4}}]


def test_one_that_is_switched_on_later_has_the_epochs_before(tmp_path: Path) -> None:
    first, second = _Kept(True), _Kept(True)
    log = RunLog(tmp_path, {"one": lambda anew: first}, every=2)
    with log.opened(HISTORY[:1], 4):
        for update in (5, 6):
            log.step({"l1": 0.1}, update)
        log.epoch(2, HISTORY[1])
    with RunLog(tmp_path, {"one": lambda anew: first, "two": lambda anew: second}, every=2).opened(HISTORY, 8):
        pass
    epochs = {("epoch", 1, "train/l1"): 1, ("epoch", 1, "valid/l1"): 1, ("epoch", 2, "train/l1"): 1}
    assert second.points == epochs and first.points == {**epochs, ("update", 6, "step/l1"): 1}
    assert first.ended == [False, False]


def test_a_logger_that_fails_warns_once_and_goes_on_when_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing, sound = _Kept(True, points=1), _Kept(True)
    log = RunLog(tmp_path, {"failing": lambda anew: failing, "sound": lambda anew: sound}, every=1)
    with log.opened([], 0):
        for update in range(1, 5):
            log.step({"l1": 0.1}, update)
        log.epoch(1, HISTORY[0])
    assert caplog.messages == ["failing is off until this run is resumed: the server is gone"]
    assert [*failing.points] == [("update", 1, "step/l1")] and len(sound.points) == 6
    made: list[_Kept] = []
    again = RunLog(tmp_path, {"failing": lambda anew: made.append(_Kept(anew)) or made[-1]})  # type: ignore[func-returns-value]
    with pytest.raises(KeyboardInterrupt), again.opened(HISTORY[:1], 4):
        raise KeyboardInterrupt
    assert [*made[0].points] == [("epoch", 1, "train/l1"), ("epoch", 1, "valid/l1")]
    assert (made[0].anew, made[0].ended) == (False, [True])


class _Hanging(_Kept):
    """A backend that waits for a server for ever when it ends."""

    def close(self, failed: bool) -> None:
        threading.Event().wait()


@pytest.mark.parametrize("when", ["stopped", "stopped at the end", "done"])
def test_a_logger_that_never_ends_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    long = 600.0
    monkeypatch.setattr("audiotok.solvers.loggers._STOP_S", long if when == "done" else 0.2)
    monkeypatch.setattr("audiotok.solvers.loggers._END_S", 0.2 if when == "done" else long)
    sound = _Kept(True)
    log = RunLog(tmp_path, {"hanging": lambda anew: _Hanging(True), "sound": lambda anew: sound}, every=1)
    stops = when == "stopped"
    with pytest.raises(Interrupted) if stops else nullcontext(), log.opened([], 0, lambda: when != "done"):
        log.step({"l1": 0.1}, 1)
        if stops:
            raise Interrupted(signal.SIGTERM, "epoch 1")
    assert sound.ended == [stops]
    (message,) = caplog.messages
    assert re.fullmatch(r"hanging has not ended within \d+ s and is left; the rest is kept", message)


def test_a_logger_that_never_begins_does_not_keep_a_stopped_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiotok.solvers.loggers._STOP_S", 0.2)
    monkeypatch.setattr("audiotok.solvers.loggers._leave_wandb", lambda: None)

    def hanging(anew: bool) -> _Kept:
        threading.Event().wait()
        raise AssertionError

    sound = _Kept(True)
    log = RunLog(tmp_path, {"hanging": hanging, "sound": lambda anew: sound}, every=1)
    with log.opened([], 0, lambda: True):
        log.step({"l1": 0.1}, 1)
    assert len(sound.points) == 1 and sound.ended == [False]
    assert caplog.messages == ["hanging is off until this run is resumed: it has not begun within 0 s"]


HANGING_PROCESS = """
import contextlib, os, signal, sys
from pathlib import Path
from audiotok.solvers import loggers
from audiotok.solvers.interruption import Interrupted

loggers._STOP_S = 1.0
about = loggers._About("12345678", [], "", [], 4, {})
log = loggers.RunLog(Path(sys.argv[1]), {"W&B": lambda anew: loggers._WandB(Path(sys.argv[1]), about, anew)}, every=1)
with log.opened([], 0):
    log.step({"l1": 0.5}, 1)
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                children.append(int(path.parent.name))
    for pid in children:  # its own process, which writes and uploads, answers no more
        os.kill(pid, signal.SIGSTOP)
    Path(sys.argv[1], "stopped").write_text(" ".join(map(str, children)))
    raise Interrupted(signal.SIGTERM, "epoch 1")
"""


def test_a_stopped_process_ends_though_weights_and_biases_does_not_answer(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", HANGING_PROCESS, str(tmp_path)]
        own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # of this process
        process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
            children = (tmp_path / "stopped").read_text().split()
            for pid in children:
                os.kill(int(pid), signal.SIGKILL)
    text = (tmp_path / "log").read_text()
    assert (code, len(children)) == (143, 1), text
    assert "W&B has not ended within 1 s and is left; `wandb sync " in text and "offline-run-" in text


def test_a_package_that_is_missing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def missing(anew: bool) -> _Kept:
        raise ModuleNotFoundError("No module named 'wandb'")

    log = RunLog(tmp_path, {"Weights & Biases": missing}, every=1)
    with log.opened([], 0):
        log.step({"l1": 0.1}, 1)
    expected = "Weights & Biases is off: No module named 'wandb'; pip install 'audiotok[loggers]'"
    assert caplog.messages == [expected]


@pytest.mark.parametrize("text", ["", "[1]", '{"one": 3}', '{"one": {"update": "x"}}', '{"one": {"epoch": -1e999}}'])
def test_a_damaged_record_of_what_is_written_stops_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / LOGGED_FILE).write_text(text)
    kept = _Kept(True)
    with RunLog(tmp_path, {"one": lambda anew: kept}).opened(HISTORY, 8):
        pass
    assert ("epoch", 2, "train/l1") in kept.points


def test_a_full_disk_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("audiotok.solvers.loggers.write_json", full)
    kept = _Kept(True)
    with RunLog(tmp_path, {"one": lambda anew: kept}).opened(HISTORY, 8), caplog.at_level(logging.WARNING):
        pass
    assert len(kept.points) == 3 and "No space left on device" in caplog.text


def test_points_stay_in_memory_for_a_tenth_of_a_second_at_most(tmp_path: Path) -> None:
    """The package writes its file by itself: after 32 KiB, or after so many seconds, for which a kill loses points."""
    about = _About("12345678", [], "", [], 4, {})
    backend = _WandB(tmp_path, about, True)
    try:
        assert 0 < backend._run.settings.x_transaction_log_flush_interval <= 0.1
    finally:
        backend.close(False)

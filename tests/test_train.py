"""The entry point: exit codes, what it says in `status.json`, signals, a full disk."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiotok import train, training
from audiotok.checkpoint import LAST, NotSavedError, load_checkpoint
from audiotok.errors import CheckpointError, ConfigError, DataError, DivergedError
from audiotok.solvers import StandardSolver
from audiotok.status import StatusWriter, read_status

ROOT = Path(__file__).parent.parent
Run = Callable[..., tuple[int, Path]]
QUICK = ["optim.epochs=1", "optim.updates_per_epoch=4", "dataset.batch_size=2", "dataset.segment_duration=0.4"]


@pytest.fixture
def run(tmp_path: Path, debug_overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Function of overrides that trains as `dora run` does; returns exit code and experiment folder."""
    monkeypatch.setattr(train.main.dora, "dir", tmp_path / "out")
    monkeypatch.setattr(training, "_setup", lambda cfg: None)  # it takes logging from pytest

    def enter(*overrides: str) -> tuple[int, Path]:
        xp = train.main.init_xp(train.main.get_xp([*debug_overrides, *QUICK, *overrides]))
        with xp.enter():
            try:
                train.main.main(xp.cfg)
            except SystemExit as end:
                return int(end.code or 0), xp.folder
        return 0, xp.folder

    return enter


def told(folder: Path) -> tuple[str, str, str]:
    """State, kind and reason of a folder's `status.json`."""
    status = read_status(folder)
    assert status is not None and status["ended"] >= status["started"]
    return status["state"], status["kind"], status["reason"]


def stop_at(update: int, monkeypatch: pytest.MonkeyPatch, signum: int = signal.SIGTERM) -> None:
    """Let this process send itself a signal in the middle of an update."""
    original = StandardSolver.after_step

    def after_step(self: StandardSolver) -> None:
        if self.progress.updates == update and self.is_training:
            os.kill(os.getpid(), signum)
        original(self)

    monkeypatch.setattr(StandardSolver, "after_step", after_step)


@pytest.mark.parametrize(
    ("error", "code", "state", "kind"),
    [
        (ConfigError("rvq.n_q=0"), 2, "FAILED", "config"),
        (DataError("no audio"), 2, "FAILED", "data"),
        (CheckpointError("damaged"), 2, "FAILED", "error"),
        (NotSavedError("No space left on device: cannot save"), 1, "FAILED", "error"),
        (DivergedError("l1=nan"), 3, "DIVERGED", "diverged"),
    ],
)
def test_an_error_has_a_code_and_a_kind(
    error: Exception, code: int, state: str, kind: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: Any) -> None:
        raise error

    monkeypatch.setattr(training, "get_solver", fail)
    found, folder = run()
    assert found == code and told(folder) == (state, kind, str(error))


def test_a_defect_keeps_its_traceback_and_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cfg: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(training, "get_solver", fail)
    with pytest.raises(RuntimeError, match="two"):
        run()
    (folder,) = (train.main.dora.dir / "xps").iterdir()
    assert told(folder) == ("FAILED", "error", "RuntimeError: two")


@pytest.mark.parametrize(("signum", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")])
def test_a_signal_before_training_ends_at_once(
    signum: int, code: int, name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "get_solver", lambda cfg: signal.raise_signal(signum))
    found, folder = run()
    state, kind, reason = told(folder)
    assert (found, state, kind) == (code, "INTERRUPTED", "interrupted") and name in reason


def test_other_ranks_and_a_look_write_no_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run("show=true")[1]
    assert read_status(folder) is None
    assert run("execute_only=valid")[0] == 2  # nothing trained
    assert read_status(folder) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run("datasource.train=/nowhere/train.jsonl.gz")[0] == 2
    assert not list(train.main.dora.dir.glob("xps/*/status.json"))
    monkeypatch.setenv("RANK", "0")
    code, folder = run("datasource.train=/nowhere/train.jsonl.gz")
    assert code == 2 and told(folder)[:2] == ("FAILED", "data") and "/nowhere/train.jsonl.gz" in told(folder)[2]


@pytest.mark.slow
def test_a_full_disk_costs_nothing_but_the_time_since_the_last_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(1, patch)
        code, folder = run()
    assert code == 143 and told(folder)[0] == "INTERRUPTED"
    kept = (folder / LAST).read_bytes()
    full = (
        folder / f".{LAST}.{socket.gethostname()}.{os.getpid()}.tmp"
    )  # where the checkpoint is written before it gets its name
    for update in (3, 0):  # at a signal, and at the end of the epoch
        full.symlink_to("/dev/full")
        with pytest.MonkeyPatch.context() as patch:
            stop_at(update, patch)
            assert run() == (1, folder)
        state, kind, reason = told(folder)
        assert (state, kind) == ("FAILED", "error") and reason.startswith("No space left on device")
        assert (folder / LAST).read_bytes() == kept and not full.is_symlink()
    assert run() == (0, folder)
    status = read_status(folder)
    assert status is not None and (status["state"], status["reason"], status["kind"]) == ("COMPLETED", "", "")
    assert (status["epoch"], status["update"], status["updates_per_epoch"]) == (1, 0, 4) and status["epoch_s"] > 0
    assert len(load_checkpoint(folder / LAST)["history"]) == 1


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_spares_the_data_workers(
    tmp_path: Path, debug_overrides: list[str]
) -> None:
    updates = 400
    overrides = [*debug_overrides, *QUICK, f"optim.updates_per_epoch={updates}", "dataset.num_workers=2"]
    command = [sys.executable, "-m", "dora", "run", *overrides, f"logging.log_updates={updates}"]
    environment = {**os.environ, "AUDIOTOK_OUTPUT_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while f"| 3/{updates}" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 143, log.read_text()
    finally:
        process.kill()
    (folder,) = (tmp_path / "xps").iterdir()
    assert 0 < load_checkpoint(folder / LAST)["progress"]["updates"] < updates
    assert told(folder)[0] == "INTERRUPTED" and "Traceback" not in log.read_text()
    with pytest.raises(ProcessLookupError):  # the workers are gone, too
        os.killpg(process.pid, 0)


def test_progress_is_told_from_the_history(tmp_path: Path) -> None:
    class Solver:
        history = ({"train": {"duration": 3.0}, "valid": {"duration": 1.0}}, {"train": {"duration": 6.0}})
        updates_per_epoch = 7

        class progress:
            updates = 5

        class watch:
            text = "codebook 2 collapsed"

    training._report_progress(Solver, StatusWriter(tmp_path, epochs=9))  # type: ignore[arg-type]
    status = read_status(tmp_path)
    assert status is not None
    found = [status[name] for name in ("epoch", "epochs", "update", "updates_per_epoch", "epoch_s", "warning")]
    assert found == [2, 9, 5, 7, 5.0, "codebook 2 collapsed"]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_log_has_advice_for_a_cpu_and_no_escape_codes(
    tmp_path: Path, debug_overrides: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.main.dora, "dir", tmp_path)
    monkeypatch.setattr(training, "spinning", lambda *_: "the cores are in use")
    xp = train.main.init_xp(train.main.get_xp([*debug_overrides, f"device={device}"]))
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        with xp.enter():
            training._setup(xp.cfg)
            logging.getLogger("audiotok").warning("\033[1mTrain | Epoch 1\033[0m")
        text = (xp.folder / "solver.log.0").read_text()
    finally:
        root.handlers, root.level = before
    assert text.endswith("][audiotok][WARNING] - Train | Epoch 1\n") and "\033" not in text
    assert ("the cores are in use" in text) == (device == "cpu" or not torch.cuda.is_available())

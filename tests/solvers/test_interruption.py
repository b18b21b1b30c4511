"""Stopping anywhere, by real signals, and going on: nothing differs from an uninterrupted run, to the last bit."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from audiotok import train
from audiotok.checkpoint import LAST, load_checkpoint
from audiotok.errors import CheckpointError, ConfigError
from audiotok.solvers import CompressionSolver, StandardSolver
from audiotok.solvers.averages import MetricAverages
from audiotok.solvers.interruption import PROGRESS, Interrupted, Progress, SaveClock, StopSignals
from audiotok.solvers.randomness import rng_state, set_deterministic, set_rng_state
from audiotok.status import read_status
from tests.conftest import data_overrides

Enter = Callable[..., AbstractContextManager[CompressionSolver]]
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("stopped_rank.py")
UPDATES, EPOCHS = 4, 2
# Per epoch 4 updates, 2 steps of valid, 2 of evaluate (a batch, its metrics), 1 of generate; macro-batches of 3, by
# share, are pending at most stops.
SMALL = [
    "solver=compression/debug",
    "device=cpu",
    f"optim.epochs={EPOCHS}",
    f"optim.updates_per_epoch={UPDATES}",
    "dataset.batch_size=4",
    "dataset.segment_duration=0.4",
    "dataset.evaluate.num_samples=4",
    "evaluate.every=1",
    "generate.every=1",
    "mmd.num_batches_mmd=3",
    "mmd.weighting=share",
    "mmd.estimator=closed",
    "rvq.q_dropout=true",
    "rvq.n_q=3",
    "rvq.kmeans_iters=3",
    "adversarial.adversaries=[msstftd]",
    "adversarial.every=2",
    "msstftd.filters=2",
    "msstftd.n_ffts=[256]",
    "msstftd.hop_lengths=[128]",
    "msstftd.win_lengths=[256]",
    "losses.adv=1",
    "losses.feat=1",
    "balancer.balance_grads=true",
    "balancer.ema_decay=0.9",
    "schedule.lr_scheduler=cosine",
]


def without_time(content: Any) -> Any:
    """Nested content without what depends on the clock, and tensors as lists, to be compared."""
    if isinstance(content, dict):
        names = ("duration", "elapsed_s", "xp.cfg")
        return {name: without_time(value) for name, value in content.items() if name not in names}
    if isinstance(content, list | tuple):
        return [without_time(value) for value in content]
    return content.tolist() if isinstance(content, torch.Tensor) else content


def stop_at(solver: StandardSolver, stop: StopSignals, step: int, signum: int = signal.SIGTERM) -> None:
    """Let this process send itself a signal during its n-th step."""
    steps = iter(range(1_000_000))

    def progress() -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signum)

    solver.stop_signal = lambda: stop.signum
    solver.on_progress = progress
    stop.patient = True


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, music: Path) -> dict[str, Any]:
    """Final checkpoint of the run that nothing interrupts."""
    old, train.main.dora.dir = train.main.dora.dir, tmp_path_factory.mktemp("whole")
    xp = train.main.init_xp(train.main.get_xp([*SMALL, *data_overrides(music)]))
    with xp.enter():
        train.get_solver(xp.cfg).run()
        checkpoint = load_checkpoint(xp.folder / LAST)
    train.main.dora.dir = old
    return checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        # Steps of each life after which the signal comes, and (updates done, stages done) then.
        ([1], [(1, [])]),
        ([2, 1, 1], [(2, []), (3, []), (4, [])]),
        ([3, 1, 5], [(3, []), (4, []), (4, ["train", "valid", "evaluate"])]),
        ([5, 2], [(4, ["train"]), (4, ["train"])]),
        ([7], [(4, ["train", "valid"])]),
        ([8], [(4, ["train", "valid"])]),  # after the clips of evaluate, before its metrics are kept
        ([9], [(4, ["train", "valid", "evaluate"])]),
        ([11, 5], [(1, []), (4, ["train"])]),  # in the second epoch, which the callback hears begin as a step
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    whole: dict[str, Any], tmp_path: Path, solver_in: Enter, stops: list[int], expected: list[tuple[int, list[str]]]
) -> None:
    found = []
    for step in stops:
        with solver_in(tmp_path, *SMALL) as solver, StopSignals() as stop:
            stop_at(solver, stop, step)
            with pytest.raises(Interrupted) as caught:
                solver.run()
            assert caught.value.code == 143 and "SIGTERM" in caught.value.reason
            progress = load_checkpoint(solver.checkpoint_path)[PROGRESS]
            found.append((progress["updates"], list(progress["stages"])))
    assert found == expected
    with solver_in(tmp_path, *SMALL) as solver:
        solver.run()
        assert without_time(load_checkpoint(solver.checkpoint_path)) == without_time(whole)
        history = json.loads((Path(solver.folder) / "history.json").read_text())
    assert without_time(history) == without_time(whole["history"])


@pytest.mark.slow
def test_a_checkpoint_of_time_is_one_to_go_on_from(whole: dict[str, Any], tmp_path: Path, solver_in: Enter) -> None:
    class Killed(Exception):
        pass

    def die() -> None:
        if solver.progress.updates == 3:
            raise Killed

    with solver_in(tmp_path, *SMALL, "checkpoint.every_minutes=1e-9") as solver:
        solver.on_progress = die
        with pytest.raises(Killed):
            solver.run()
        assert load_checkpoint(solver.checkpoint_path)[PROGRESS]["updates"] == 2
    with solver_in(tmp_path, *SMALL, "checkpoint.every_minutes=1e-9") as solver:
        solver.run()
        assert without_time(load_checkpoint(solver.checkpoint_path)) == without_time(whole) | {"xp.sig": solver.xp.sig}


@pytest.mark.slow
def test_what_is_not_there_yet_is_refused_before_the_first_epoch_ends(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, *SMALL) as solver, StopSignals() as stop:
        stop_at(solver, stop, 2)
        with pytest.raises(Interrupted):
            solver.run()
    with solver_in(tmp_path, *SMALL) as solver:
        with pytest.raises(CheckpointError, match="first epoch is not finished"):
            solver.restore(load_best=True)
        assert solver.restore() and solver.epoch == 1
        with pytest.raises(CheckpointError, match="first epoch is not finished"):
            solver.run_one_stage("valid")
    with pytest.raises(ConfigError, match=r"every_minutes=-1"), solver_in(tmp_path, "checkpoint.every_minutes=-1"):
        pass


def test_signals_are_kept_in_mind_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        with pytest.raises(Interrupted, match="143"):
            signal.raise_signal(signal.SIGTERM)
        stop.patient = True
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        signal.raise_signal(signal.SIGUSR1)
        assert stop.signum == signal.SIGUSR1
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    codes = [Interrupted(signum, "").code for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    assert codes == [143, 143, 130]


def test_a_checkpoint_is_asked_for_once_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 0.0, 60.0, 119.0, 121.0, 300.0, 419.0, 421.0, 500.0))
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    clock, never = SaveClock(2.0), SaveClock(0.0)
    asked = [clock.due() for _ in range(4)]  # at 60, 119 and 121 s; then it does not look any more
    clock.restart()
    asked += [clock.due() for _ in range(2)]
    assert asked == [False, False, True, False, False, True] and not never.due()


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), float(torch.randn(1))]

    draw()  # leaves the second number of a pair of normal numbers behind, in Python and in NumPy
    torch.save(rng_state(), tmp_path / "rng.th")
    expected = [draw(), draw()]
    set_rng_state(torch.load(tmp_path / "rng.th", weights_only=True))
    assert [draw(), draw()] == expected


def test_deterministic_algorithms_are_chosen_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_another_number_of_ranks_takes_over_the_averages() -> None:
    ranks = []
    for values in ([1.0, 2.0], [5.0, 8.0]):
        average = MetricAverages()
        for value in values:
            average.add({"l1": value})
        average.add({"mmd": values[0]})
        ranks.append({"averages": average.state_dict(), "rng": {}})
    progress = Progress.from_state({"updates": 3, "stages": {}, "elapsed_s": 1.0, "ranks": ranks}, 0, 1)
    assert progress.own is not None and "rng" not in progress.own
    average = MetricAverages()
    average.load_state_dict(progress.own["averages"])
    assert average.means() == {"l1": 4.0, "mmd": 3.0}
    same = Progress.from_state({"updates": 3, "stages": {}, "elapsed_s": 1.0, "ranks": ranks}, 1, 2)
    assert same.own == ranks[1]


def launch(root: Path, music: Path, world_size: int, *arguments: str, given: Sequence[str] = (*SMALL,)) -> list[int]:
    """Train with that many ranks; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "AUDIOTOK_OUTPUT_DIR": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, str(WORKER), *arguments, *given, *data_overrides(music)]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(root / f"{rank}.log").open("a"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]
    try:
        return [rank.wait(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_to_the_last_bit(tmp_path: Path, music: Path) -> None:
    roots = [tmp_path / "whole", tmp_path / "parts"]
    for root in roots:
        root.mkdir()
    assert launch(roots[0], music, 2, "0", "0") == [0, 0]
    # Rank 1 alone hears of it, at update 1; both stop after update 2, with two of three batches gathered.
    assert launch(roots[1], music, 2, "1", "1") == [143, 143], (roots[1] / "0.log").read_text()
    (folder,) = (roots[1] / "xps").iterdir()
    status, state = read_status(folder), load_checkpoint(folder / LAST)
    assert status is not None and (status["state"], status["kind"]) == ("INTERRUPTED", "interrupted")
    assert "SIGTERM" in status["reason"] and (status["update"], status["updates_per_epoch"]) == (2, UPDATES)
    assert state[PROGRESS]["updates"] == 2 and len(state["macro_batch"]["pending"]) == 2
    ranks = state[PROGRESS]["ranks"]
    assert ranks[0]["balancer"] != ranks[1]["balancer"] and ranks[0]["averages"] != ranks[1]["averages"]
    assert not torch.equal(ranks[0]["rng"]["torch"], ranks[1]["rng"]["torch"])
    assert launch(roots[1], music, 2, "0", "0") == [0, 0], (roots[1] / "0.log").read_text()
    whole, parts = (load_checkpoint(root / "xps" / folder.name / LAST) for root in roots)
    assert without_time(parts) == without_time(whole)
    status = read_status(folder)
    assert status is not None and status["state"] == "COMPLETED" and status["epoch_s"] > 0

"""Two real processes (gloo) train in lower precision and with several batches an update, as one process does."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from audiotok import train
from audiotok.checkpoint import load_checkpoint
from audiotok.solvers import CompressionSolver
from audiotok.solvers.interruption import PROGRESS, Interrupted, StopSignals
from audiotok.solvers.precision import LossScale
from tests.conftest import data_overrides
from tests.solvers.test_interruption import SMALL, stop_at, without_time

# Nothing that draws by process, and no norm over the clips of a process: then two processes are one.
PLAIN = [*SMALL, "optim.epochs=1", "optim.updates_per_epoch=3", "rvq.n_q=2", "rvq.q_dropout=false"]
PLAIN += ["rvq.kmeans_init=false", "rvq.threshold_ema_dead_code=0", "balancer.balance_grads=false"]
PLAIN += ["adversarial.every=1", "mmd.num_batches_mmd=2", "losses.mmd=0.1"]
CASES = {
    "accumulate": ["optim.accumulate=2"],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
}
# Gradients of the first update: those of parameters are rounded to 8 or 11 bits in each process, before their mean.
TOLERANCES = {"accumulate": 1e-4, "bf16": 0.04, "fp16": 0.005}
State = dict[str, Any]


def experiment(root: Path, music: Path, overrides: list[str], stops: list[int | None]) -> State:
    """Train in lives that end at these steps (None: not on this process); weights, first gradient, metrics."""
    train.main.dora.dir = root
    xp = train.main.init_xp(train.main.get_xp([*PLAIN, *overrides, *data_overrides(music)]))
    gradient: list[State] = []
    with xp.enter():
        for step in stops:
            with StopSignals() as stop:
                solver = train.get_solver(xp.cfg)
                assert isinstance(solver, CompressionSolver)
                spoil_the_first_update(solver)
                stop.patient = True
                solver.stop_signal = lambda stop=stop: stop.signum  # type: ignore[misc]
                if step is not None:
                    stop_at(solver, stop, step)
                with pytest.raises(Interrupted):
                    solver.run()
                assert load_checkpoint(solver.checkpoint_path)[PROGRESS]["updates"] == 2
        solver = train.get_solver(xp.cfg)
        assert isinstance(solver, CompressionSolver)
        solver.optimizer.register_step_pre_hook(lambda *_: gradient.append(gradients(solver)))
        spoil_the_first_update(solver)
        solver.run()
        scales = {name: scale.value for name, scale in solver.precision.scales.items()}
        states = without_time([solver.model.state_dict(), solver.adv_losses.state_dict(), scales])
        return {
            "states": states,
            "gradient": gradient[0],
            "metrics": without_time(solver.history[0]["train"]),
            "checkpoint": without_time(load_checkpoint(solver.checkpoint_path)),
        }


def gradients(solver: CompressionSolver) -> State:
    """Of the codec's parameters, as the optimiser gets them."""
    return {name: p.grad.clone() for name, p in solver.model.named_parameters() if p.grad is not None}


def spoil_the_first_update(solver: CompressionSolver) -> None:
    """In fp16, have its gradient overflow on the last process."""
    is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        first = solver.is_training and solver.progress.updates == 0
        return gradient * float("inf") if is_last and first and solver.precision.name == "fp16" else gradient

    next(solver.model.parameters()).register_hook(overflow)


def prepare() -> None:
    """Only train and valid; three updates are too few for the scale to come down from 2^16."""
    LossScale.start = 2.0**6
    for stage in ("evaluate", "generate"):
        setattr(CompressionSolver, stage, lambda self: {})


def work(rank: int, folder: Path, music: Path) -> None:
    torch.set_num_threads(1)
    prepare()
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=180))
    found = {name: experiment(folder / name, music, overrides, []) for name, overrides in CASES.items()}
    step = 0 if rank == 1 else None  # the other process learns of it an update later
    for name, overrides in CASES.items():
        found[f"{name}, stopped"] = experiment(folder / "stopped" / name, music, overrides, [step])
    torch.save(found, folder / f"{rank}.th")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, music: Path) -> list[State]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))
    command, arguments = [sys.executable, __file__], [str(folder), str(music)]
    workers = [
        subprocess.Popen([*command, rank, *arguments], env={**environment, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(folder / f"{rank}.th", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(
    ranks: list[State], tmp_path: Path, music: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (found[name] for found in ranks)
    assert first["states"] == second["states"]
    monkeypatch.setattr(train.main.dora, "dir", tmp_path)
    monkeypatch.setattr(LossScale, "start", LossScale.start)
    for stage in ("evaluate", "generate"):
        monkeypatch.setattr(CompressionSolver, stage, getattr(CompressionSolver, stage))
    prepare()
    one, tolerance = experiment(tmp_path, music, CASES[name], []), TOLERANCES[name]
    scales = one["states"][2]
    assert scales == first["states"][2]
    assert set(scales.values()) == ({32.0} if name == "fp16" else set()), "one update was skipped"
    assert one["gradient"].keys() == first["gradient"].keys()
    largest = max(float(wanted.abs().max()) for wanted in one["gradient"].values())
    for parameter, wanted in one["gradient"].items():
        assert float((first["gradient"][parameter] - wanted).abs().max()) <= tolerance * largest, parameter
    assert first["metrics"] == pytest.approx(one["metrics"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_stop_together_and_go_on_to_the_last_bit(ranks: list[State], name: str) -> None:
    for found in ranks:
        assert found[f"{name}, stopped"]["states"] == found[name]["states"]
    assert ranks[0][f"{name}, stopped"]["checkpoint"] == ranks[0][name]["checkpoint"]


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

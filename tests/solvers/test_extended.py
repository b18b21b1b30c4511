"""An extended run is the longer run from the start; a schedule with a horizon goes on along its new curve."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from audiotok import train, training
from audiotok.checkpoint import LAST, load_checkpoint
from audiotok.experiments.extend import plan_extension
from audiotok.solvers.precision import LossScale
from audiotok.solvers.schedules import get_lr_scheduler, rate_factor, set_rates
from tests.conftest import data_overrides
from tests.solvers.test_interruption import SMALL, without_time

# Without a horizon; evaluate and generate at each end only, which a longer run has not at the joint.
OVERRIDES = [one for one in SMALL if not one.startswith(("optim.epochs", "schedule", "evaluate.", "generate."))]
OVERRIDES += ["optim.updates_per_epoch=2", "schedule.lr_scheduler=exponential", "schedule.exponential.gamma=0.9"]
OVERRIDES += ["evaluate.every=null", "generate.every=null", "dataset.generate.num_samples=1"]


def run(argv: list[str], sig: str = "") -> Any:
    """Run an experiment to its end, of overrides or of a signature; returns it."""
    xp = train.main.get_xp_from_sig(sig) if sig else train.main.init_xp(train.main.get_xp(argv))
    with xp.enter():
        train.get_solver(xp.cfg).run()
    return xp


@pytest.mark.parametrize(
    "given", [[], ["precision=bf16"], ["precision=fp16", "losses.mmd=0"]], ids=["fp32", "bf16", "fp16"]
)
def test_an_extended_run_is_the_longer_run_to_the_last_bit(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    """In every precision: its second part has the frozen configuration."""
    monkeypatch.setattr(train.main.dora, "dir", tmp_path / "whole")
    monkeypatch.setattr(LossScale, "start", 2.0**6)  # four updates are too few to come down from 2^16
    data = [*data_overrides(music), *given]
    whole = load_checkpoint(run([*OVERRIDES, *data, "optim.epochs=2"]).folder / LAST)
    train.main.dora.dir = tmp_path / "first"
    xp = run([*OVERRIDES, *data, "optim.epochs=1"])
    shutil.move(tmp_path / "first", tmp_path / "moved")  # to another cluster
    train.main.dora.dir = tmp_path / "moved"
    extension = plan_extension(train.main, xp.sig, ["optim.epochs=2"])
    assert extension is not None and extension.done == 1
    extension.write("ada@here")
    longer = load_checkpoint(run([], xp.sig).folder / LAST)
    ended = {"evaluate", "generate"}
    assert ended <= longer["history"][0].keys() and not ended & whole["history"][0].keys()
    for name in ended:  # of the first end; all that is trained, counted and drawn is alike
        del longer["history"][0][name]
    assert without_time(longer) == without_time(whole) | {"xp.sig": xp.sig}
    assert whole["scheduler"]["last_epoch"] == 4 and longer["history"][1]["train"].get("skipped", 0) == 0


def test_what_may_be_amended_stays_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the environment, above all; of another process it is taken as a value."""
    monkeypatch.setattr(train.main.dora, "dir", tmp_path)
    monkeypatch.setenv("TEAM", "hunter2")
    cfg = train.main.get_xp(OVERRIDES).cfg
    OmegaConf.update(cfg, "logging.wandb.entity", "${oc.env:TEAM}")
    before = OmegaConf.to_yaml(cfg)
    training._amend_as_source(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    monkeypatch.setattr("audiotok.distributed.object_of_source", lambda own: {**own, "optim.epochs": 7})
    training._amend_as_source(cfg)
    assert cfg.optim.epochs == 7 and "hunter2" not in OmegaConf.to_yaml(cfg)


@pytest.mark.parametrize("name", ["cosine", "polynomial_decay"])
def test_a_schedule_with_a_horizon_goes_on_along_the_curve_of_the_new_one(name: str) -> None:
    cfg = {"lr_scheduler": name, "cosine": {"warmup": 2, "lr_min_ratio": 0.1}}
    cfg["polynomial_decay"] = {"warmup": 2, "end_lr_ratio": 0.0, "power": 2.0}

    def make(total: int) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return optimizer, get_lr_scheduler(optimizer, cfg, total)

    def rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    whole = rates(*make(16), 16)
    optimizer, scheduler = make(8)
    assert rates(optimizer, scheduler, 8)[:2] == whole[:2]  # the warm-up
    saved = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = make(16)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * rate_factor(cfg, 8, 8))
    set_rates(scheduler)
    assert scheduler.get_last_lr() == [whole[8]]
    assert rates(optimizer, scheduler, 8) == whole[8:]

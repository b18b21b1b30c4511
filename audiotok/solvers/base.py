"""The training loop shared by all solvers: stages, averaged weights, schedules.

Built on flashy (registry of states, stages, logging). What it adds: an epoch whose randomness depends on (seed, epoch,
rank) alone, so that a resumed run repeats the uninterrupted one, and a stop at the first value that is not finite.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import flashy
import numpy as np
import torch
from flashy.formatter import Formatter
from omegaconf import DictConfig

from audiotok.errors import ConfigError, DivergedError
from audiotok.solvers.averages import WeightEMA
from audiotok.solvers.checkpointed import CheckpointedSolver
from audiotok.solvers.schedules import get_lr_scheduler

STAGES = ("valid", "evaluate", "generate")  # those that can run alone
Metrics = dict[str, Any]


class StandardSolver(CheckpointedSolver, ABC):
    """Train, valid, evaluate and generate a model, epoch after epoch, from the last checkpoint on.

    A solver builds its model, optimiser and loaders, and says what one step does.

    Args:
        cfg: the resolved configuration of the experiment; read, never changed.
    """

    optimizer: torch.optim.Optimizer
    dataloaders: dict[str, Any]

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.device = resolve_device(cfg.device)
        self.on_progress: Callable[[int], None] = lambda epoch: None
        if cfg.logging.log_tensorboard:
            self.init_tensorboard()
        seed_everything(cfg.seed)  # every rank starts from the same weights
        self.build_dataloaders()
        self.updates_per_epoch = len(self.dataloaders["train"])
        self.build_model()
        flashy.distrib.broadcast_model(self.model)
        if cfg.optim.ema.use:
            self.ema = WeightEMA(self.model, cfg.optim.ema.decay)
        self.scheduler = get_lr_scheduler(self.optimizer, cfg.schedule, self.updates_per_epoch * cfg.optim.epochs)
        self.register_stateful("model", "optimizer", "best_state")
        if self.ema is not None:
            self.register_stateful("ema")
        if self.scheduler is not None:
            self.register_stateful("scheduler")

    @abstractmethod
    def build_model(self) -> None:
        """Set `self.model` and `self.optimizer`."""

    @abstractmethod
    def build_dataloaders(self) -> None:
        """Set `self.dataloaders`, one for each split."""

    @abstractmethod
    def run_step(self, batch: torch.Tensor) -> Metrics:
        """One training or validation step on a batch [B, C, T]; returns its metrics, floats or 0-d tensors."""

    @abstractmethod
    def evaluate(self) -> Metrics:
        """Measure the best state on the evaluate split."""

    @abstractmethod
    def generate(self) -> Metrics:
        """Write samples of the best state."""

    @property
    def is_training(self) -> bool:
        """Whether the current stage is train."""
        return bool(self.current_stage == "train")

    def get_formatter(self, stage_name: str) -> Formatter:
        """Number formats of the log."""
        return Formatter({"mmd": ".3e", "duration": ".1f"}, default_format=".4f")

    def show(self) -> None:
        """Log the model and its size."""
        count = sum(p.numel() for p in self.model.parameters())
        self.logger.info("%s\n%.2f M parameters", self.model, count / 1e6)

    def run(self) -> None:
        """Train from the last checkpoint, if there is one, to the last epoch."""
        self.restore()
        if flashy.distrib.is_rank_zero():
            # A crash between checkpoint and history leaves the history one epoch short: the checkpoint is right.
            self.xp.link.update_history(self.history)
        for epoch in range(self.epoch, self.cfg.optim.epochs + 1):
            self.on_progress(epoch)
            self.run_epoch()
            self.commit()

    def run_epoch(self) -> None:
        """Train and validate; evaluate and generate when their turn has come."""
        seed_everything(self.cfg.seed, self.epoch, flashy.distrib.rank())
        self.run_stage("train", self.train)
        with torch.no_grad():
            with self.swapped_state(self.ema.full_state() if self.ema else None):
                self.run_stage("valid", self.valid)
                self.update_best_state()
            with self.swapped_state(self.best_state.states["model"]):
                for name in ("evaluate", "generate"):
                    if self.should_run_stage(name):
                        self.run_stage(name, getattr(self, name))

    def run_one_stage(self, name: str) -> Metrics:
        """Run valid, evaluate or generate alone, with the best state; nothing is committed.

        Raises:
            ConfigError: if there is no such stage.
        """
        if name not in STAGES:
            raise ConfigError(f"execute_only={name!r}; choose one of: {', '.join(STAGES)}")
        with torch.no_grad(), self.swapped_state(self.best_state.states["model"]):
            metrics: Metrics = self.run_stage(name, getattr(self, name))
        return metrics

    def should_run_stage(self, name: str) -> bool:
        """Whether evaluate or generate runs at this epoch; at the last one always."""
        every = self.cfg[name].every
        return bool(self.epoch == self.cfg.optim.epochs or (every and self.epoch % every == 0))

    def train(self) -> Metrics:
        """Train stage."""
        return self.run_split("train")

    def valid(self) -> Metrics:
        """Valid stage."""
        return self.run_split("valid")

    def run_split(self, split: str) -> Metrics:
        """Go once through a split; returns the averages of its metrics over steps and ranks.

        Raises:
            DivergedError: at the first metric that is not finite.
        """
        self.model.train(self.is_training)
        loader = self.dataloaders[split]
        loader.set_epoch(self.epoch)
        progress = self.log_progress(split, loader, total=len(loader), updates=self.cfg.logging.log_updates)
        average = flashy.averager()
        averages: Metrics = {}
        for index, batch in enumerate(progress):
            metrics = to_floats(self.run_step(batch.to(self.device)))
            self._check_finite(metrics, split, index)
            if self.is_training:
                self._after_update(index)
            averages = average(metrics)
            progress.update(**averages)
            self.on_progress(self.epoch)
        return dict(flashy.distrib.average_metrics(averages, len(loader)))

    def _after_update(self, index: int) -> None:
        if self.scheduler is not None:
            self.scheduler.step()
        if self.ema is not None and (index + 1) % self.cfg.optim.ema.updates == 0:
            self.ema.step()

    def _check_finite(self, metrics: Metrics, split: str, index: int) -> None:
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if bad:
            values = ", ".join(f"{name}={value}" for name, value in bad.items())
            raise DivergedError(
                f"{values} at step {index + 1} of {split}, epoch {self.epoch}; lower optim.lr or the weight of "
                f"that loss, or set optim.max_norm; the checkpoint of epoch {self.epoch - 1} is kept"
            )

    @property
    def best_metric(self) -> str | None:
        """Metric of the valid stage whose lowest value marks the best state; None: the last state is the best."""
        return None

    def update_best_state(self) -> None:
        """Keep the current state if it is the best so far."""
        if self.best_metric is not None:
            now = self._pending_metrics["valid"][self.best_metric]
            past = [epoch["valid"][self.best_metric] for epoch in self.history]
            if now > min(past, default=math.inf):
                return
        self.best_state.update("model", self.model.state_dict())


def resolve_device(name: str) -> torch.device:
    """Device named in the configuration; `auto` is cuda where there is one.

    Raises:
        ConfigError: if the device is not there.
    """
    available = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r}; choose one of: auto, cpu, cuda")
    if name == "cuda" and not available:
        raise ConfigError("device=cuda, but torch sees no GPU here; use device=auto or device=cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def seed_everything(seed: int, *parts: int) -> None:
    """Seed Python, NumPy and torch with a mix of the experiment's seed and what it is for."""
    words = np.random.SeedSequence([seed, *parts]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Metrics as Python floats, with one transfer from the device for all tensors."""
    floats = {name: float(value) for name, value in metrics.items() if not isinstance(value, torch.Tensor)}
    tensors = {name: value for name, value in metrics.items() if isinstance(value, torch.Tensor)}
    if tensors:
        stacked = torch.stack([value.detach().float().reshape(()) for value in tensors.values()])
        floats.update(zip(tensors, stacked.tolist(), strict=True))
    return {name: floats[name] for name in metrics}

"""A stage of an epoch: one pass through a split, which may be stopped after any step and begun again."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import flashy
import torch
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR

from audiotok.distributed import Agreement
from audiotok.errors import DivergedError
from audiotok.solvers.averages import MetricAverages, to_floats
from audiotok.solvers.checkpointed import CheckpointedSolver
from audiotok.solvers.interruption import SAVE, Interrupted
from audiotok.solvers.randomness import keeping_rng, rng_state
from audiotok.solvers.settings import resolve_device

Metrics = dict[str, Any]


class StagedSolver(CheckpointedSolver, ABC):
    """Runs single stages; what they belong to is built by `StandardSolver`.

    Args:
        cfg: the resolved configuration of the experiment; read, never changed.
    """

    dataloaders: dict[str, Any]
    updates_per_epoch: int
    scheduler: LambdaLR | None

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.device = resolve_device(cfg.device)
        self.on_progress: Callable[[], None] = lambda: None  # called after every step
        self.stop_signal: Callable[[], int] = lambda: 0  # number of the signal that asked this process to stop
        self.agreement = Agreement(self.device)

    @abstractmethod
    def run_step(self, batch: torch.Tensor) -> Metrics:
        """One training or validation step on a batch [B, C, T]; returns its metrics, floats or 0-d tensors."""

    @property
    def is_training(self) -> bool:
        """Whether the current stage is train."""
        return bool(self.current_stage == "train")

    def run_stage(self, stage_name: str, method: Callable[..., Metrics], *args: Any, **kwargs: Any) -> Metrics:
        """Run one stage; see flashy. What is needed to start it again is kept until it ends."""
        self.stage_rng = None if stage_name == "train" else rng_state()
        self.stage_began = time.monotonic()
        metrics: Metrics = super().run_stage(stage_name, method, *args, **kwargs)
        self.stage_rng = None
        return metrics

    def after_step(self) -> None:
        """To be called after every step of every stage, equally often on all ranks.

        Raises:
            Interrupted: if a signal asked any rank to stop.
        """
        self.on_progress()
        heard = self.agreement(self.stop_signal() or (SAVE if flashy.distrib.is_rank_zero() and self._is_due() else 0))
        if heard > SAVE:
            total = self.updates_per_epoch
            where = f"epoch {self.epoch}, {self.current_stage}, update {self.progress.updates} of {total}"
            raise Interrupted(heard, where)
        if heard == SAVE and self.is_training:
            self.save_progress()

    def _is_due(self) -> bool:
        return self.is_training and self.save_clock.due()

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
        start = self.progress.updates if self.is_training else 0
        average = self.averages if self.is_training else MetricAverages()
        loader.set_epoch(self.epoch, start)
        batches = keeping_rng(loader) if start else loader
        progress = self.log_progress(split, batches, total=len(loader) - start, updates=self.cfg.logging.log_updates)
        for index, batch in enumerate(progress, start):
            metrics = to_floats(self.run_step(batch.to(self.device)))
            self._check_finite(metrics, split, index)
            if self.is_training:
                self._after_update(index)
            progress.update(**average.add(metrics))
            self.after_step()
        return dict(flashy.distrib.average_metrics(average.means(), len(loader)))

    def _after_update(self, index: int) -> None:
        self.progress.updates = index + 1
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

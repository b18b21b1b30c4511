"""The training loop shared by all solvers: stages, averaged weights, schedules.

Built on flashy (registry of states, stages, logging). What it adds: an epoch whose randomness depends on (seed, epoch,
rank) alone, so that a resumed run repeats the uninterrupted one, a stop after any step when a signal asks for it, and
one at the first value that is not finite.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import flashy
import torch
from flashy.formatter import Formatter
from omegaconf import DictConfig

from audiotok.distributed import Agreement
from audiotok.errors import ConfigError, DivergedError
from audiotok.solvers.averages import MetricAverages, State, WeightEMA, to_floats
from audiotok.solvers.checkpointed import CheckpointedSolver
from audiotok.solvers.interruption import SAVE, Interrupted
from audiotok.solvers.randomness import keeping_rng, rng_state, seed_everything, set_rng_state
from audiotok.solvers.schedules import get_lr_scheduler
from audiotok.solvers.settings import resolve_device

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
        self.on_progress: Callable[[], None] = lambda: None  # called after every step
        self.stop_signal: Callable[[], int] = lambda: 0  # number of the signal that asked this process to stop
        self.agreement = Agreement(self.device)
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
        self.save_clock.restart()
        while self.epoch <= self.cfg.optim.epochs:
            self.on_progress()
            self.run_epoch()
            self.commit()
        self.agreement.finish()

    def run_epoch(self) -> None:
        """Train and validate; evaluate and generate when their turn has come. Goes on where the last stop was.

        Raises:
            Interrupted: if a signal asked for a stop; the checkpoint to go on from is then written.
        """
        own, self.progress.own = self.progress.own, None
        self._pending_metrics = dict(self.progress.stages)
        self.averages = MetricAverages()
        if own is not None:
            self.load_rank_state(own)
        if not self.progress.begun:
            self.averages = MetricAverages()
            seed_everything(self.cfg.seed, self.epoch, flashy.distrib.rank())
        try:
            self._run_stages()
        except Interrupted:
            self.save_progress()
            raise

    def load_rank_state(self, state: State) -> None:
        """Take up what `rank_state` gave; after a change in the number of ranks it has averages only."""
        self.averages.load_state_dict(state["averages"])
        if "rng" in state:
            set_rng_state(state["rng"])
        elif self.progress.begun:
            self.logger.warning("Going on with another number of processes: random numbers are drawn anew.")
            seed_everything(self.cfg.seed, self.epoch, flashy.distrib.rank(), self.progress.updates)

    def _run_stages(self) -> None:
        if "train" not in self._pending_metrics:
            metrics = self.run_stage("train", self.train)
            metrics["duration"] += self.progress.elapsed_s
        with torch.no_grad():
            if "valid" not in self._pending_metrics:
                with self.swapped_state(self.ema.full_state() if self.ema else None):
                    self.run_stage("valid", self.valid)
                    self.update_best_state()
            with self.swapped_state(self.best_weights()):
                for name in ("evaluate", "generate"):
                    if self.should_run_stage(name) and name not in self._pending_metrics:
                        self.run_stage(name, getattr(self, name))

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

    def run_one_stage(self, name: str) -> Metrics:
        """Run valid, evaluate or generate alone, with the best state; nothing is committed.

        Raises:
            ConfigError: if there is no such stage.
        """
        if name not in STAGES:
            raise ConfigError(f"execute_only={name!r}; choose one of: {', '.join(STAGES)}")
        with torch.no_grad(), self.swapped_state(self.best_weights()):
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

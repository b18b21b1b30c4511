"""The training loop shared by all solvers: epochs of stages, averaged weights, schedules.

Built on flashy (registry of states, stages, logging). What it adds: an epoch whose randomness depends on (seed, epoch,
rank) alone, so that a resumed run repeats the uninterrupted one, a stop after any step when a signal asks for it, and
one at the first value that is not finite.
"""

import math
from abc import abstractmethod

import flashy
import torch
from flashy.formatter import Formatter
from omegaconf import DictConfig

from audiotok.errors import ConfigError
from audiotok.solvers.averages import MetricAverages, State, WeightEMA
from audiotok.solvers.interruption import Interrupted
from audiotok.solvers.randomness import seed_everything, set_rng_state
from audiotok.solvers.schedules import get_lr_scheduler
from audiotok.solvers.stages import Metrics, StagedSolver

STAGES = ("valid", "evaluate", "generate")  # those that can run alone


class StandardSolver(StagedSolver):
    """Train, valid, evaluate and generate a model, epoch after epoch, from the last checkpoint on.

    A solver builds its model, optimiser and loaders, and says what one step does.

    Args:
        cfg: the resolved configuration of the experiment; read, never changed.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
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
    def evaluate(self) -> Metrics:
        """Measure the best state on the evaluate split."""

    @abstractmethod
    def generate(self) -> Metrics:
        """Write samples of the best state."""

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

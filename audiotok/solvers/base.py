"""The training loop shared by all solvers: stages, averaged weights, schedules, checkpoints, resuming.

Built on flashy (registry of states, stages, logging). What it adds: checkpoints that are plain data and atomic, a
history that is never out of step with them, an epoch whose randomness depends on (seed, epoch, rank) alone so that a
resumed run repeats the uninterrupted one, and a stop at the first value that is not finite.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flashy
import numpy as np
import torch
from flashy.formatter import Formatter
from omegaconf import DictConfig, OmegaConf
from torch import nn

from audiotok import checkpoint
from audiotok.errors import CheckpointError, ConfigError, DivergedError
from audiotok.solvers.averages import BestState, State, WeightEMA
from audiotok.solvers.schedules import get_lr_scheduler

STAGES = ("valid", "evaluate", "generate")  # those that can run alone
Metrics = dict[str, Any]


class StandardSolver(ABC, flashy.BaseSolver):
    """Train, valid, evaluate and generate a model, epoch after epoch, from the last checkpoint on.

    A solver builds its model, optimiser and loaders, and says what one step does.

    Args:
        cfg: the resolved configuration of the experiment; read, never changed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dataloaders: dict[str, Any]

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.device = resolve_device(cfg.device)
        self.on_progress: Callable[[int], None] = lambda epoch: None
        if cfg.logging.log_tensorboard:
            self.init_tensorboard()
        seed_everything(cfg.seed)  # every rank starts from the same weights
        self.build_dataloaders()
        self.updates_per_epoch = len(self.dataloaders["train"])
        self.build_model()
        flashy.distrib.broadcast_model(self.model)
        self.best_state = BestState()
        self.ema = WeightEMA(self.model, cfg.optim.ema.decay) if cfg.optim.ema.use else None
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

    @property
    def checkpoint_path(self) -> Path:
        """The last checkpoint of this experiment."""
        return Path(self.folder) / checkpoint.LAST

    def get_formatter(self, stage_name: str) -> Formatter:
        """Number formats of the log."""
        return Formatter({"mmd": ".3e", "duration": ".1f"}, default_format=".4f")

    def show(self) -> None:
        """Log the model and its size."""
        count = sum(p.numel() for p in self.model.parameters())
        self.logger.info("%s\n%.2f M parameters", self.model, count / 1e6)

    # Running

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

    # States

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

    @contextmanager
    def swapped_state(self, state: State | None) -> Iterator[None]:
        """Run a block with another state in the model; None changes nothing."""
        if state is None:
            yield
            return
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(state)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> State:
        """All registered states, as tensors, numbers and text."""
        state: State = super().state_dict()
        state["xp.cfg"] = OmegaConf.to_yaml(self.cfg, resolve=True)
        return state

    def commit(self, save_checkpoint: bool = True) -> None:
        """Close the epoch: checkpoint first, then the history, so that a crash between them can be mended."""
        self.history.append(self._pending_metrics)
        self._start_epoch()
        if not flashy.distrib.is_rank_zero():
            return
        if save_checkpoint:
            state = self.state_dict()
            epoch, keep = len(self.history), self.cfg.checkpoint
            if keep.save_every and epoch % keep.save_every == 0:
                names = keep.keep_every_states
                kept = {k: v for k, v in state.items() if not names or k in names or k.startswith("xp.")}
                checkpoint.save_checkpoint(kept, Path(self.folder) / checkpoint.epoch_name(epoch))
                checkpoint.flush_old_epochs(Path(self.folder), keep.keep_last)
            checkpoint.save_checkpoint(state, self.checkpoint_path)
        self.xp.link.update_history(self.history)

    def restore(self, load_best: bool = False) -> bool:
        """Load the last checkpoint of this experiment, else the weights that `continue_from` names.

        Args:
            load_best: put the best state into the model, to use it rather than to train on.

        Returns:
            Whether anything was loaded.

        Raises:
            CheckpointError: if the file is damaged, unsafe or does not fit.
        """
        if self.checkpoint_path.exists():
            self._load(checkpoint.load_checkpoint(self.checkpoint_path))
            self.logger.info("Restored %s: %d epochs done", self.checkpoint_path, len(self.history))
        elif self.cfg.continue_from:
            self._load_weights(self.load_pretrained_state(self.cfg.continue_from))
            self.logger.info("Continuing from %s", self.cfg.continue_from)
        else:
            return False
        if load_best:
            self._load_weights(self.best_state.states["model"])
        return True

    def load_pretrained_state(self, source: str) -> State:
        """State dict of the model that `source` names; see `checkpoint.resolve_checkpoint`."""
        path = checkpoint.resolve_checkpoint(source.removeprefix(checkpoint.PRETRAINED_PREFIX), self.xp.dora.dir)
        state = checkpoint.load_checkpoint(path)
        best: State = state.get("best_state") or {}
        if not state.get("exported"):
            best = best.get("model") or {}
        if not best:
            raise CheckpointError(f"{path} holds no best state to continue from; was it written by a solver?")
        return best

    def _load(self, state: State) -> None:
        missing = [name for name in self.stateful.sources if name not in state]
        if missing:
            raise CheckpointError(
                f"{self.checkpoint_path} lacks {', '.join(missing)}: it was written under another configuration; "
                "continue from it in a new experiment with continue_from=PATH"
            )
        try:
            self.load_state_dict({name: state[name] for name in self.stateful.sources})
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoint_path} does not fit this experiment: {error}") from error

    def _load_weights(self, weights: State) -> None:
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights to continue from do not fit the model: {error}") from error
        self.best_state.update("model", self.model.state_dict())
        if self.ema is not None:
            self.ema = WeightEMA(self.model, self.cfg.optim.ema.decay)


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

"""The training loop shared by all solvers, from top to bottom: build, run, stage, step, checkpoint, restore.

Built on flashy (registry of states, stages, logging). An epoch's randomness depends on (seed, epoch, rank) alone, so
that a resumed run repeats the uninterrupted one, from wherever a signal stopped it, to the last bit (on a GPU with
deterministic=true).
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import flashy
import torch
from flashy.formatter import Formatter
from flashy.logging import LogProgressBar
from omegaconf import DictConfig
from torch import nn

from audiotok import checkpoint
from audiotok.config_text import saved_text
from audiotok.distributed import Agreement, gather_objects, is_distributed, is_source, object_of_source, world_size
from audiotok.errors import CheckpointError, ConfigError, DivergedError
from audiotok.models.pretrained import Pretrained, read_pretrained
from audiotok.solvers.averages import BestState, MetricAverages, State, WeightEMA, to_floats
from audiotok.solvers.continuing import CONTINUED, count_codebooks, differences, fitted, load_states
from audiotok.solvers.interruption import PROGRESS, SAVE, Interrupted, Progress, SaveClock
from audiotok.solvers.loggers import RunLog, get_run_log
from audiotok.solvers.precision import Precision
from audiotok.solvers.randomness import keeping_rng, rng_state, seed_everything, set_rng_state
from audiotok.solvers.restoring import check_moments, check_state, explained
from audiotok.solvers.schedules import get_lr_scheduler, set_rates
from audiotok.solvers.updates import Skips, accumulated, groups
from audiotok.solvers.watching import Watch, get_watch
from audiotok.utils.device import resolve_device

Metrics = dict[str, Any]
_SINGLE_STAGES = ("valid", "evaluate", "generate")  # those that can run alone


class StandardSolver(flashy.BaseSolver, ABC):
    """Train, valid, evaluate and generate a model, epoch after epoch, from the last checkpoint on.

    A subclass builds its model, optimiser and loaders, and defines the step.

    Args:
        cfg: the resolved configuration of the experiment; read, never changed. Stored with each checkpoint as text.

    Attributes:
        on_progress: called after every step, such as to write a heartbeat.
        stop_signal: returns the signal that requests a stop of this process, 0 for none.
        progress: position within the current epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dataloaders: dict[str, Any]

    # --- Build ---

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.save_clock = SaveClock(cfg.checkpoint.every_minutes)
        self.device = resolve_device(cfg.device)
        self.agreement = Agreement(self.device)
        self.on_progress: Callable[[], None] = lambda: None
        self.stop_signal: Callable[[], int] = lambda: 0
        self.progress = Progress()
        self.averages = MetricAverages()  # of the train stage
        compiled = bool(cfg.get("compile"))  # a run that was frozen before lacks these keys
        self.precision = Precision(cfg.get("precision", "fp32"), self.device, compiled, lambda: self.is_training)
        self.skips = Skips(cfg.optim.get("max_skipped", 0))
        self.accumulate = accumulated(cfg)
        self.stage_rng: State | None = None  # at the start of the current stage, unless it is train
        self.stage_began = 0.0  # by the monotonic clock
        self.run_log = RunLog(Path(self.folder))  # writes nothing outside `run`
        seed_everything(cfg.seed)  # every rank starts from the same weights
        self.build_dataloaders()
        self.updates_per_epoch = len(self.dataloaders["train"]) // self.accumulate
        if self.updates_per_epoch == 0:
            raise ConfigError(
                f"optim.accumulate={self.accumulate}, but an epoch has {len(self.dataloaders['train'])} batches"
            )
        self.build_model()
        flashy.distrib.broadcast_model(self.model)
        self.watch = self.build_watch()
        self.best_state = BestState()
        self.ema = WeightEMA(self.model, cfg.optim.ema.decay) if cfg.optim.ema.use else None
        self.scheduler = get_lr_scheduler(self.optimizer, cfg.schedule, self.updates_per_epoch * cfg.optim.epochs)
        # The names of these attributes are the keys of checkpoints.
        self.register_stateful("model", "optimizer", "best_state", "watch")
        if self.ema is not None:
            self.register_stateful("ema")
        if self.scheduler is not None:
            self.register_stateful("scheduler")
        if self.skips.most:
            self.register_stateful("skips")
        if self.precision.scales:
            self.register_stateful("precision")

    @abstractmethod
    def build_model(self) -> None:
        """Set `self.model` and `self.optimizer`."""

    @abstractmethod
    def build_dataloaders(self) -> None:
        """Set `self.dataloaders`, one for each split."""

    def build_watch(self) -> Watch:
        """What is watched in training: by default the loss and the norm of the gradient, by their usual names."""
        return get_watch(self.cfg, metrics=("loss", "grad_norm"))

    @abstractmethod
    def run_step(self, batch: Any) -> Metrics:
        """One training or validation step on a batch on the device; returns its metrics, floats or 0-d tensors."""

    @abstractmethod
    def evaluate(self) -> Metrics:
        """Measure the best state on the evaluate split."""

    @abstractmethod
    def generate(self) -> Metrics:
        """Write samples of the best state."""

    @property
    def best_metric(self) -> str | None:
        """Metric of the valid stage whose lowest value marks the best state; None: the last state is the best."""
        return None

    def get_formatter(self, stage_name: str) -> Formatter:
        """Number formats of the log."""
        return Formatter({"mmd": ".3e", "duration": ".1f", "protocol": ".0f"}, default_format=".4f")

    def show(self) -> None:
        """Log the model and its size."""
        self.logger.info("%s\n%.2f M parameters", self.model, sum(p.numel() for p in self.model.parameters()) / 1e6)

    # --- Run ---

    def run(self) -> None:
        """Train from the last checkpoint, if there is one, to the last epoch."""
        self.restore()
        if flashy.distrib.is_rank_zero():
            # A crash between checkpoint and history leaves the history one epoch short: the checkpoint is right.
            self.xp.link.update_history(self.history)
        self.save_clock.restart()
        self.run_log = get_run_log(self.cfg, self.cfg_text, self.xp, self.updates_per_epoch)
        done = self._update_of(self.progress.updates)
        with self.run_log.opened(self.history, done, lambda: self.stop_signal()):
            while self.epoch <= self.cfg.optim.epochs:
                self.on_progress()
                self.run_epoch()
                self.commit()
        self.agreement.finish()  # the exchange that the last step started

    def _update_of(self, updates: int) -> int:
        """Number of an update of the current epoch, counted from the start of training."""
        return len(self.history) * self.updates_per_epoch + updates

    def run_epoch(self) -> None:
        """Train and validate; evaluate and generate when they are due. Continues where the last stop was.

        Interrupted if a signal requested a stop; the checkpoint to resume from is then written.
        """
        own, self.progress.own = self.progress.own, None  # to be restored once, not in the next epoch again
        self._pending_metrics = dict(self.progress.stages)
        self.averages = MetricAverages()
        if not self.progress.begun:  # else `own` holds the random states to go on from
            seed_everything(self.cfg.seed, self.epoch, flashy.distrib.rank())
        if own is not None:
            with explained(self.checkpoint_path):
                self.load_rank_state(own)
        try:
            self._run_stages()
        except Interrupted:
            self.save_progress()
            raise

    def _run_stages(self) -> None:
        if "train" not in self._pending_metrics:
            metrics = self.run_stage("train", self.train)
            metrics["duration"] += self.progress.elapsed_s
        with torch.no_grad():
            if "valid" not in self._pending_metrics:
                with self.swapped_state(self.ema.full_state() if self.ema else None):
                    self.run_stage("valid", self.valid)
                    self._update_best_state()
            with self.swapped_state(self.best_weights()):
                for name in ("evaluate", "generate"):
                    every = self.cfg[name].every
                    due = self.epoch == self.cfg.optim.epochs or (every and self.epoch % every == 0)
                    if due and name not in self._pending_metrics:
                        self.run_stage(name, getattr(self, name))

    def _update_best_state(self) -> None:
        if self.best_metric is not None:
            now = self._pending_metrics["valid"][self.best_metric]
            past = [epoch["valid"][self.best_metric] for epoch in self.history]
            if now > min(past, default=math.inf):
                return
        self.best_state.update("model", self.model.state_dict())

    def run_one_stage(self, name: str) -> Metrics:
        """Run valid, evaluate or generate (else ConfigError) alone, with the best state; nothing is committed."""
        if name not in _SINGLE_STAGES:
            raise ConfigError(f"execute_only={name!r}; choose one of: {', '.join(_SINGLE_STAGES)}")
        with torch.no_grad(), self.swapped_state(self.best_weights()):
            return self.run_stage(name, getattr(self, name))

    @contextmanager
    def swapped_state(self, state: State | None) -> Iterator[None]:
        """Run a block with another state in the model; None changes nothing."""
        if state is None:
            yield
            return
        # Copied in and out rather than replaced: the optimiser and the EMA hold on to the parameters themselves.
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(state)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    # --- Stage ---

    def run_stage(self, stage_name: str, method: Callable[..., Metrics], *args: Any, **kwargs: Any) -> Metrics:
        """Run one stage; see flashy."""
        # A stop within train resumes at its next update, one within another stage at the start of that stage.
        self.stage_rng = None if stage_name == "train" else rng_state()
        self.stage_began = time.monotonic()
        metrics: Metrics = super().run_stage(stage_name, method, *args, **kwargs)
        self.stage_rng = None
        return metrics

    @property
    def is_training(self) -> bool:
        """Whether the current stage is train."""
        return bool(self.current_stage == "train")

    def train(self) -> Metrics:
        """Train stage."""
        metrics = self._run_split("train")
        self.watch.end_epoch(metrics, self.epoch)
        return metrics

    def valid(self) -> Metrics:
        """Valid stage."""
        return self._run_split("valid")

    def _run_split(self, split: str) -> Metrics:
        """Averages over steps and ranks of the metrics of a split; DivergedError at the first that is not finite."""
        self.model.train(self.is_training)
        loader = self.dataloaders[split]
        start = self.progress.updates if self.is_training else 0
        size = self.accumulate if self.is_training else 1
        average = self.averages if self.is_training else MetricAverages()
        loader.set_epoch(self.epoch, start * size)
        progress = self.progress_of(split, start * size)
        for index, batches in enumerate(groups(progress, size), start):
            metrics = self._run_batches(batches, split, index)
            if self.is_training:
                self.progress.updates = index + 1
                self.watch.add_step(metrics, f"epoch {self.epoch}, update {index + 1}", self.skips.counted)
                self.run_log.step(metrics, self._update_of(index + 1))
                if not metrics.get("skipped"):
                    if self.scheduler is not None:
                        self.scheduler.step()
                    if self.ema is not None and (index + 1) % self.cfg.optim.ema.updates == 0:
                        self.ema.step()
            progress.update(**average.add(metrics))
            self.after_step()
        return dict(flashy.distrib.average_metrics(average.means(), len(loader)))

    def _run_batches(self, batches: Sequence[Any], split: str, index: int) -> dict[str, float]:
        """Means of the metrics of the batches of one update, or of the one of another split; checked."""
        means = MetricAverages()
        self.skips.next_update(f"epoch {self.epoch}, update {index + 1}")
        for number, batch in enumerate(batches):
            if number:
                self.on_progress()
            metrics = to_floats(self.run_step(batch.to(self.device)))
            if metrics.get("skipped"):
                return {"skipped": 1.0}
            means.add(metrics)
        found = means.means()
        self._check_finite(found, split, index)  # here, where all ranks have made the update
        return found

    def progress_of(self, split: str, start: int = 0) -> LogProgressBar:
        """The batches of a split from `start` on, with lines of progress in the log."""
        loader = self.dataloaders[split]
        batches = keeping_rng(loader) if start else loader
        return self.log_progress(split, batches, total=len(loader) - start, updates=self.cfg.logging.log_updates)

    # --- Step ---

    def _check_finite(self, metrics: Metrics, split: str, index: int) -> None:
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if bad:
            values = ", ".join(f"{name}={value}" for name, value in bad.items())
            raise DivergedError(
                f"{values} at step {index + 1} of {split}, epoch {self.epoch}; lower optim.lr or the weight of "
                "that loss, or set optim.max_norm; the last checkpoint is kept"
            )

    def after_step(self) -> None:
        """To be called after every step of every stage, equally often on all ranks.

        Interrupted if a signal requested a stop of any rank.
        """
        self.on_progress()
        request = self.stop_signal()
        # Rank 0 alone looks at the clock: another rank's would be due at another step.
        if not request and self.is_training and flashy.distrib.is_rank_zero() and self.save_clock.due():
            request = SAVE
        agreed = self.agreement(request)
        if agreed > SAVE:
            update = f"update {self.progress.updates} of {self.updates_per_epoch}"
            raise Interrupted(agreed, f"epoch {self.epoch}, {self.current_stage}, {update}")
        if agreed == SAVE and self.is_training:  # with several ranks it arrives a step later, maybe in valid
            self.save_progress()

    # --- Checkpoint ---

    @property
    def checkpoint_path(self) -> Path:
        """The last checkpoint of this experiment."""
        return Path(self.folder) / checkpoint.LAST

    def state_dict(self) -> State:
        """All registered states, as tensors, numbers and text."""
        state: State = super().state_dict()
        state["xp.cfg"] = self.cfg_text
        return state

    @cached_property
    def cfg_text(self) -> str:
        """The configuration as checkpoints hold it."""
        return saved_text(self.cfg, self.xp.cfg)

    def rank_state(self) -> State:
        """What differs between ranks; plain data. `load_rank_state` is the way back."""
        return {"rng": self.stage_rng or rng_state(), "averages": self.averages.state_dict()}

    def save_progress(self) -> None:
        """Write a checkpoint within an epoch, else NotSavedError; every rank must call this.

        A resumed run continues at this very step of train, and at the start of any other stage.
        """
        now = Progress(self.progress.updates, dict(self._pending_metrics), self.progress.elapsed_s)
        if "train" not in now.stages:
            now.elapsed_s += time.monotonic() - self.stage_began
        ranks = gather_objects(self.rank_state())

        def save() -> None:
            checkpoint.save_checkpoint({**self.state_dict(), PROGRESS: now.state_dict(ranks)}, self.checkpoint_path)

        self._on_source(save)
        self.save_clock.restart()

    def commit(self, save_checkpoint: bool = True) -> None:
        """Close the epoch: checkpoint, else NotSavedError, then the history: `run` mends a crash between them."""
        self.history.append(self._pending_metrics)
        self._start_epoch()
        self.progress = Progress()
        # A single process needs none between epochs: the next begins with a seed and with empty averages.
        ranks = gather_objects(self.rank_state()) if is_distributed() else None

        def save() -> None:
            if save_checkpoint:
                self._save_epoch({PROGRESS: self.progress.state_dict(ranks)} if ranks else {})
            self.xp.link.update_history(self.history)

        self._on_source(save)
        self.run_log.epoch(len(self.history), self.history[-1])
        self.save_clock.restart()

    def _save_epoch(self, progress: State) -> None:
        state = {**self.state_dict(), **progress}
        epoch, keep = len(self.history), self.cfg.checkpoint
        if keep.save_every and epoch % keep.save_every == 0:
            names = keep.keep_every_states
            kept = {k: v for k, v in state.items() if not names or k in names or k.startswith("xp.")}
            checkpoint.save_checkpoint(kept, Path(self.folder) / checkpoint.epoch_name(epoch))
            checkpoint.flush_old_epochs(Path(self.folder), keep.keep_last)
        checkpoint.save_checkpoint(state, self.checkpoint_path)

    def _on_source(self, save: Callable[[], None]) -> None:
        """Let rank 0 write; the others wait, and fail with it rather than wait for it for ever."""
        failure: str | None = None
        if is_source():
            try:
                save()
            except checkpoint.NotSavedError as error:
                failure = str(error)
            except OSError as error:
                failure = f"{error.strerror or error}: cannot write to {self.folder}; the last checkpoint is untouched"
        failure = object_of_source(failure)
        if failure is not None:
            raise checkpoint.NotSavedError(failure)

    # --- Restore ---

    def restore(self, load_best: bool = False) -> bool:
        """Load the last checkpoint of this experiment, else the weights that `continue_from` names.

        Args:
            load_best: put the best state into the model, to use it rather than to train on.

        Returns whether anything was loaded; CheckpointError if the file is damaged, unsafe or does not fit.
        """
        if self.checkpoint_path.exists():
            self._load(checkpoint.load_checkpoint(self.checkpoint_path))
            within = f" and {self.progress.updates} updates" if self.progress.begun else ""
            self.logger.info("Restored %s: %d epochs%s done", self.checkpoint_path, len(self.history), within)
        elif self.cfg.continue_from:
            self._continue(read_pretrained(self.cfg.continue_from, self.xp.dora.dir))
            self.logger.info("Continuing from %s", self.cfg.continue_from)
        else:
            return False
        if load_best:
            self._load_weights(self.best_weights())
        return True

    def load_rank_state(self, state: State) -> None:
        """Restore `rank_state`, of which only the averages are left after a change in the number of ranks."""
        if not self.progress.begun:
            return  # a new epoch: its seed decides, and its averages are empty
        self.averages.load_state_dict(state["averages"])
        if "rng" in state:
            set_rng_state(state["rng"])
        else:
            self.logger.warning("Going on with another number of processes: random numbers are drawn anew.")
            seed_everything(self.cfg.seed, self.epoch, flashy.distrib.rank(), self.progress.updates)

    def best_weights(self) -> State:
        """State dict of the best model so far; CheckpointError before the end of the first epoch."""
        if "model" not in self.best_state.states:
            raise CheckpointError(
                f"{self.checkpoint_path} holds no best state: its first epoch is not finished; train on, or load the "
                "weights in training (load_best=False)"
            )
        return self.best_state.states["model"]

    def _continue(self, found: Pretrained) -> None:
        """Take the weights of a source, and with continue_with=all the rest; see `audiotok.solvers.continuing`."""
        self.check_source(found.cfg, found.path)
        own = self.model.state_dict()
        weights = fitted(found.weights, own, found, self.cfg)
        count, most = count_codebooks(found.weights), count_codebooks(own)
        if count < most:
            self.logger.info("%s has %d codebooks; started anew: the other %d", found.path, count, most - count)
        elif count > most:
            self.logger.info("%s has %d codebooks; used: the first %d", found.path, count, most)
        elif keys := differences(found.cfg, self.cfg):
            self.logger.warning("%s fits, but was trained with another %s", found.path, ", ".join(keys))
        self._load_weights(weights)
        if self.cfg.get("continue_with", "weights") != "all":
            return
        if isinstance(found.state.get("model"), dict):  # of the last step, whose moments the optimiser has
            self.model.load_state_dict(fitted(found.state["model"], own, found, self.cfg))
        names = [name for name in CONTINUED if name in self.stateful.sources and (name != "ema" or count == most)]
        taken, missing = load_states(found, {name: self.stateful.sources[name] for name in names})
        check_moments(self.optimizer, found.path)
        if missing:
            self.logger.warning("Not in %s, so started anew: %s", found.path, ", ".join(missing))
        self.logger.info("Taken beside the weights: %s", ", ".join(taken) or "nothing")

    def check_source(self, cfg: DictConfig, path: Path) -> None:
        """CheckpointError if the configuration of a checkpoint to continue from is of other data than this one."""
        if "lm" in cfg:
            raise CheckpointError(f"{path} is of a language model, not of a codec; continue from a codec's")
        for key in ("sample_rate", "channels"):
            given, here = (one.get(key, (one.get("encodec") or {}).get(key)) for one in (cfg, self.cfg))
            if given is not None and here is not None and given != here:
                raise CheckpointError(
                    f"{path} was trained with {key}={given}, this experiment has {key}={here}; set {key}={given}, or "
                    "continue from a checkpoint of the same audio"
                )

    def _load(self, state: State) -> None:
        check_state(state, self.state_dict(), self.checkpoint_path, self.updates_per_epoch)
        with explained(self.checkpoint_path):
            self.load_state_dict({name: state[name] for name in self.stateful.sources if name in state})
            if self.scheduler is not None:
                set_rates(self.scheduler)  # optim.epochs, which a schedule may count on, may have been raised since
            if PROGRESS in state:
                self.progress = Progress.from_state(state[PROGRESS], flashy.distrib.rank(), world_size())
        check_moments(self.optimizer, self.checkpoint_path)

    def _load_weights(self, weights: State) -> None:
        self.model.load_state_dict(weights)
        self.best_state.update("model", self.model.state_dict())
        if self.ema is not None:  # begins anew: it holds the weights that were just replaced
            self.ema = WeightEMA(self.model, self.cfg.optim.ema.decay)

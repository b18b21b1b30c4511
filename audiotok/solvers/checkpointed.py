"""What a solver keeps on disk: checkpoints that are plain data and atomic, a history in step with them, resuming."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import flashy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from audiotok import checkpoint
from audiotok.distributed import gather_objects, is_distributed, is_source, object_of_source, world_size
from audiotok.errors import CheckpointError, ConfigError
from audiotok.solvers.averages import BestState, MetricAverages, State, WeightEMA
from audiotok.solvers.interruption import PROGRESS, Progress, SaveClock
from audiotok.solvers.randomness import rng_state


class CheckpointedSolver(flashy.BaseSolver):
    """States of a solver: the model, its average and best weights, and all that is registered with flashy.

    Args:
        cfg: the resolved configuration of the experiment; stored with each checkpoint as text.
    """

    model: nn.Module

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.best_state = BestState()
        self.ema: WeightEMA | None = None
        self.progress = Progress()
        self.averages = MetricAverages()  # of the train stage
        self.stage_rng: State | None = None  # at the start of the current stage, unless it is train
        self.stage_began = 0.0  # by the monotonic clock
        minutes = cfg.checkpoint.every_minutes
        if not isinstance(minutes, int | float) or minutes < 0:
            raise ConfigError(f"checkpoint.every_minutes={minutes!r}; give a number of minutes, 0 for never")
        self.save_clock = SaveClock(minutes)

    @property
    def checkpoint_path(self) -> Path:
        """The last checkpoint of this experiment."""
        return Path(self.folder) / checkpoint.LAST

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

    def rank_state(self) -> State:
        """What each rank has of its own; plain data."""
        return {"rng": self.stage_rng or rng_state(), "averages": self.averages.state_dict()}

    def save_progress(self) -> None:
        """Write a checkpoint within an epoch, to go on from this very step; every rank must call this.

        In the other stages than train, it is the start of the stage that a resumed run goes on from.

        Raises:
            NotSavedError: if it cannot be written.
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
        """Close the epoch: checkpoint first, then the history, so that a crash between them can be mended.

        Raises:
            NotSavedError: if the checkpoint cannot be written.
        """
        self.history.append(self._pending_metrics)
        self._start_epoch()
        self.progress = Progress()
        ranks = gather_objects(self.rank_state()) if is_distributed() else None

        def save() -> None:
            if save_checkpoint:
                self._save_epoch({PROGRESS: self.progress.state_dict(ranks)} if ranks else {})
            self.xp.link.update_history(self.history)

        self._on_source(save)
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
            within = f" and {self.progress.updates} updates" if self.progress.begun else ""
            self.logger.info("Restored %s: %d epochs%s done", self.checkpoint_path, len(self.history), within)
        elif self.cfg.continue_from:
            self._load_weights(self.load_pretrained_state(self.cfg.continue_from))
            self.logger.info("Continuing from %s", self.cfg.continue_from)
        else:
            return False
        if load_best:
            self._load_weights(self.best_weights())
        return True

    def best_weights(self) -> State:
        """State dict of the best model so far.

        Raises:
            CheckpointError: before the end of the first epoch.
        """
        if "model" not in self.best_state.states:
            raise CheckpointError(
                f"{self.checkpoint_path} holds no best state: its first epoch is not finished; train on, or load the "
                "weights in training (load_best=False)"
            )
        return self.best_state.states["model"]

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
            if PROGRESS in state:
                self.progress = Progress.from_state(state[PROGRESS], flashy.distrib.rank(), world_size())
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

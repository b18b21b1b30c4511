"""What a solver keeps on disk: checkpoints that are plain data and atomic, a history in step with them, resuming."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flashy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from audiotok import checkpoint
from audiotok.errors import CheckpointError
from audiotok.solvers.averages import BestState, State, WeightEMA


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

"""What follows the backward passes of a step, for every optimiser: unscale, sync, clip, skip, step, zero."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import flashy
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from audiotok.distributed import sum_over_ranks_
from audiotok.errors import DivergedError
from audiotok.solvers.precision import LossScale

logger = logging.getLogger(__name__)
State = dict[str, Any]
T = TypeVar("T")


def accumulated(cfg: DictConfig) -> int:
    """Batches of an update; a run that was frozen before there was a choice has one."""
    return int(cfg.optim.get("accumulate", 1))


def groups(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Batches in lists of `size`; what is left over at the end is dropped."""
    group: list[T] = []
    for batch in batches:  # one loop: flashy's progress bar begins anew with each iter()
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


class Stateful(Protocol):
    """What has a state to go back to."""

    def state_dict(self) -> State:
        """Return the state."""

    def load_state_dict(self, state: Any) -> None:
        """Restore it."""


class Snapshot:
    """What the forward pass of a training step changes besides gradients, to go back to when the step is skipped.

    Args:
        model: whose buffers are kept (its codebooks).
        others: with states of their own; None is passed over.
    """

    def __init__(self, model: nn.Module, *others: Stateful | None) -> None:
        self.model = model
        self.buffers = [buffer.clone() for buffer in model.buffers()]
        self.others = [(one, one.state_dict()) for one in others if one is not None]

    @torch.no_grad()
    def restore(self) -> None:
        """Go back."""
        for buffer, kept in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(kept)
        for one, state in self.others:
            one.load_state_dict(state)


class Skips:
    """How many updates of a run were skipped because something was not finite, and how many may be.

    Args:
        most: more of them raise DivergedError; 0: the first that is not finite stops the run.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.count = 0
        self.counted = False  # the current update, of whichever optimiser
        self.where = ""

    def next_update(self, where: str = "") -> None:
        """To be called before each update, which `where` names in messages."""
        self.counted, self.where = False, where

    def add(self, what: str) -> None:
        """Count the current update, once; DivergedError beyond the limit."""
        if self.counted:
            return
        what = f"{self.where}: {what}" if self.where else what
        self.counted = True
        self.count += 1
        if self.count > self.most:
            found = f"{what}, and {self.count - 1} updates were skipped before" if self.count > 1 else what
            raise DivergedError(
                f"{found} (optim.max_skipped={self.most}); lower optim.lr or the weight of a loss, or set "
                "optim.max_norm; the last checkpoint is kept"
            )
        logger.warning("Update skipped, %d of at most %d: %s", self.count, self.most, what)

    def state_dict(self) -> State:
        """Return the count."""
        return {"count": self.count}

    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict`."""
        self.count = int(state["count"])


class Updates:
    """Updates of one optimiser from the gradients that backward passes have left.

    With `accumulate` n, each n-th call of `step` updates, with the mean of the gradients since the last update; the
    others leave them where they are.

    Args:
        optimizer: over `parameters`, and maybe others.
        parameters: those whose gradients are averaged over ranks.
        clipped: those whose norm is reported and limited; `parameters` by default.
        max_norm: limit of that norm; 0: none.
        accumulate: batches of an update.
        scale: factor that the gradients carry (fp16), None for none.
        skips: shared by the optimisers of a solver.
        name: in messages.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        *,
        clipped: Sequence[nn.Parameter] | None = None,
        max_norm: float = 0.0,
        accumulate: int = 1,
        scale: LossScale | None = None,
        skips: Skips | None = None,
        name: str = "the model",
    ) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self.clipped = parameters if clipped is None else clipped
        self.max_norm, self.accumulate, self.scale, self.name = max_norm, accumulate, scale, name
        self.skips = skips or Skips()
        self.batches = 0  # since the last update
        self.bad: dict[str, Tensor] = {}  # losses since the last update: how often each was not finite
        self.overflowed = False  # whether the last that was skipped had finite losses, so that its scale is too large

    @property
    def guarded(self) -> bool:
        """Whether an update that is not finite is skipped rather than made, to be found in the metrics."""
        return self.scale is not None or self.skips.most > 0

    def step(self, losses: Mapping[str, Tensor] | None = None, *, norm: bool = True) -> dict[str, Any]:
        """Take in the gradients of a batch, and update if they are complete. A collective.

        Args:
            losses: of the batch, scalars; with `guarded`, an update is skipped if one is not finite on any rank.
            norm: whether to report the norm and the clipping.

        Returns:
            grad_norm (before clipping), with a limit clipped (1 or 0), when guarded skipped (1 or 0); {} between
            updates.

        Raises:
            DivergedError: beyond the allowed number of skipped updates.
        """
        if self.guarded:
            self._remember(losses or {})
        self.batches += 1
        if self.batches < self.accumulate:
            return {}
        self.batches = 0
        self._average()
        found: dict[str, Any] = {}
        if norm or self.guarded:
            size = nn.utils.clip_grad_norm_(self.clipped, self.max_norm or float("inf"))
            found["grad_norm"] = size
            if self.max_norm:
                found["clipped"] = (size > self.max_norm).float()
            if self.guarded:
                bad, overflow = self._judge(size)
                if bad or overflow:
                    return self._skip("its gradient is not finite", bad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.guarded:
            found["skipped"] = 0.0
            if self.scale is not None:
                self.scale.update(True)
        return found if norm else {}

    def skip(self, what: str, losses: Mapping[str, Tensor], *others: str) -> dict[str, float]:
        """Drop the gradients of an update that is not finite. A collective.

        Args:
            what: what was found.
            losses: of its last batch; one that is not finite is no overflow of gradients.
            others: names of what else was not finite, the same on every rank; none is an overflow either.

        Returns:
            skipped (1), see `step`.
        """
        self._remember(losses)
        return self._skip(what, [*self._judge(None)[0], *others])

    def _skip(self, what: str, bad: Sequence[str]) -> dict[str, float]:
        """Drop it; where gradients alone overflow in fp16, lower the scale first, which is no skipped update yet."""
        self.drop()
        self.overflowed = not bad
        if bad:
            what = f"{', '.join(bad)} not finite"
            if self.scale is not None:
                what += "; where fp16 is the reason, whose numbers end at 65504, take precision=bf16"
        if self.scale is not None and self.overflowed and self.scale.value > self.scale.least:
            self.scale.update(False)
            logger.info("fp16: an update of %s is dropped, its scale is now %g: %s", self.name, self.scale.value, what)
        else:
            self.skips.add(f"update of {self.name}: {what}")
        return {"skipped": 1.0}

    def drop(self) -> None:
        """Forget the gradients since the last update."""
        self.optimizer.zero_grad()
        self.batches, self.bad = 0, {}

    def _remember(self, losses: Mapping[str, Tensor]) -> None:
        for name, loss in losses.items():
            now = (~torch.isfinite(loss.detach()).all()).float()
            self.bad[name] = self.bad[name] + now if name in self.bad else now

    def _average(self) -> None:
        """Unscaled mean over batches and ranks."""
        factor = self.accumulate * (1.0 if self.scale is None else self.scale.value)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if factor != 1 and gradients:
            torch._foreach_mul_(gradients, 1 / factor)
        # Once, after all backward passes; which parameters have a gradient by then is the same on every rank.
        flashy.distrib.sync_gradients(self.parameters)

    def _judge(self, norm: Tensor | None) -> tuple[list[str], bool]:
        """Losses since the last update that were not finite on a rank, and whether the norm is not."""
        counts = [*self.bad.values(), *([] if norm is None else [(~torch.isfinite(norm)).float()])]
        found = sum_over_ranks_(torch.stack(counts)).tolist() if counts else []  # one wait for the device
        names = [name for name, count in zip(self.bad, found, strict=False) if count]
        self.bad = {}
        return names, norm is not None and bool(found[-1])

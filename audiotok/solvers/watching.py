"""Signs of trouble in a running training: collapsed codebooks, winning discriminators, exploding losses.

They are shown, and stop nothing. All they take are the floats that a step reports anyway, and counts of codes that stay
on the device until the end of an epoch. Each process watches its own steps; those of the first are shown and saved.

Sources: Dhariwal et al., "Jukebox", 2020 (perplexity of codes as the sign of collapse); Arjovsky and Bottou, "Towards
Principled Methods for Training Generative Adversarial Networks", ICLR 2017 (a discriminator without errors gives no
gradient to learn from).
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import flashy
import torch
from omegaconf import DictConfig
from torch import Tensor

from audiotok.solvers.averages import State
from audiotok.solvers.settings import settings

# Loss, on real and fake together, of a discriminator that gives all signals one score, the best one, by `adv_loss`.
CHANCES = {"mse": 0.5, "hinge": 2.0, "hinge2": 2.0}
_LEAST = 50  # steps before a median counts
_BEGINS = 3  # steps in a row beyond it: a single one is usual in adversarial training
_ENDS = 100  # steps in a row that are not: it is over

logger = logging.getLogger(__name__)


@dataclass
class _Course:
    """Past values of one metric."""

    usual: deque[float]  # the last ones that are not far beyond the others
    beyond: int = 0  # steps in a row far beyond
    calm: int = 0  # steps in a row that are not


@dataclass
class Watch:
    """Findings about a training, each a few words for people.

    Args:
        explosion: a metric is found to explode at so many times the median of its last `window` values; None: never.
        window: steps of that median; values that are beyond do not count.
        collapse: a codebook is found collapsed if the perplexity of its codes over an epoch of training is below this
            share of its size (of the frames, where there are fewer); None: never.
        victory: a discriminator is found to win if its mean loss over an epoch is below this share of that of a
            discriminator which gives all signals one score; None: never.
        metrics: names of those that may explode, positive numbers.
        chances: loss of a discriminator that gives all signals one score, by the name of its metric.
        codebooks: how many there are, and how many codes each has; None: their use is not watched.
        device: where codes are counted.
    """

    explosion: float | None = 10.0
    window: int = 200
    collapse: float | None = 0.1
    victory: float | None = 0.05
    metrics: Collection[str] = ()
    chances: Mapping[str, float] = field(default_factory=dict)
    codebooks: tuple[int, int] | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.findings: dict[str, str] = {}
        self._courses: dict[str, _Course] = {}
        self._skipped = 0
        self._counts = torch.zeros(self.codebooks or (0, 0), dtype=torch.long, device=self.device)

    @property
    def text(self) -> str:
        """All findings in one line, "" for none."""
        return "; ".join(self.findings.values())

    def note(self, key: str, text: str) -> None:
        """Show a finding from now on, in place of the last one of this key; the log has it when it begins."""
        if key not in self.findings:
            _log(logging.WARNING, f"watch: {text}")
        self.findings[key] = text

    def clear(self, key: str) -> None:
        """Show it no longer."""
        if text := self.findings.pop(key, ""):
            _log(logging.INFO, f"watch: over: {text}")

    # --- Every step ---

    def add_codes(self, codes: Tensor) -> None:
        """Count the codes [B, K, T] of a training batch, of the first K codebooks; waits for nothing."""
        if self.codebooks is None or self.collapse is None:
            return
        bins = self.codebooks[1]
        # In one row of all codebooks: counting with `bincount` would wait for the largest code.
        places = codes + bins * torch.arange(codes.shape[1], device=codes.device)[:, None]
        flat = places.flatten()
        self._counts.view(-1).index_add_(0, flat, torch.ones_like(flat))

    def add_step(self, metrics: Mapping[str, float], where: str, skipped: bool = False) -> None:
        """Hold the metrics of a training step against those before it; `where` names the step.

        A step that was `skipped`, as its loss or gradient was not finite, is counted. An overflow in fp16 is none: it
        lowers the scale, which is the usual course of things.
        """
        if skipped:
            self._skipped += 1
            count = f"{self._skipped} update{'s' * (self._skipped > 1)}"
            self.note("skipped", f"{count} skipped, not finite (the last: {where})")
        if self.explosion is None:
            return
        for name in self.metrics:
            value = metrics.get(name, math.nan)
            if math.isfinite(value):  # what is not is for others to judge
                self._hold(name, value, self.explosion, where)

    def _hold(self, name: str, value: float, factor: float, where: str) -> None:
        course = self._courses.setdefault(name, _Course(deque(maxlen=self.window)))
        usual = statistics.median(course.usual) if len(course.usual) >= min(_LEAST, self.window) else math.inf
        usual = max(usual, self.chances.get(name, 0.0))  # a discriminator that no longer wins does not explode
        if value > factor * usual > 0:
            course.beyond, course.calm = course.beyond + 1, 0
            if course.beyond == _BEGINS:
                self.note(f"explosion {name}", f"{name} explodes: {value:.3g}, usually {usual:.3g} ({where})")
            return
        course.usual.append(value)
        course.beyond, course.calm = 0, min(course.calm + 1, _ENDS)
        if course.calm == _ENDS:
            self.clear(f"explosion {name}")

    # --- Every epoch ---

    def end_epoch(self, means: Mapping[str, float], epoch: int) -> None:
        """Judge an epoch of training by the mean metrics of its steps and the codes that were counted."""
        self._judge_codes(epoch)
        for name, chance in self.chances.items() if self.victory is not None else ():
            if name in means and means[name] < (self.victory or 0.0) * chance:
                found = f"{name.removeprefix('d_')} wins: {name} {means[name]:.2g} of {chance:g} (epoch {epoch})"
                self.note(f"victory {name}", found)
            else:
                self.clear(f"victory {name}")

    def _judge_codes(self, epoch: int) -> None:
        if self.collapse is None or self.codebooks is None:
            return
        counts = self._counts.cpu().double()
        self._counts.zero_()
        for number, row in enumerate(counts, 1):
            frames = float(row.sum())
            shares = row[row > 0] / max(frames, 1.0)
            perplexity = float(torch.exp(-(shares * shares.log()).sum()))
            if frames and perplexity < self.collapse * min(frames, len(row)):
                found = f"codebook {number} collapsed: perplexity {perplexity:.3g} of {len(row)} (epoch {epoch})"
                self.note(f"collapse {number}", found)
            else:
                self.clear(f"collapse {number}")

    # --- Checkpoint ---

    def state_dict(self) -> State:
        """Findings, past values and counts, so that a resumed run finds the same."""
        courses = {
            name: {"usual": list(one.usual), "beyond": one.beyond, "calm": one.calm}
            for name, one in self._courses.items()
        }
        return {"findings": dict(self.findings), "courses": courses, "counts": self._counts, "skipped": self._skipped}

    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict`."""
        self.findings = {str(key): str(text) for key, text in state["findings"].items()}
        self._courses = {str(name): self._course(one) for name, one in state["courses"].items()}
        self._counts.copy_(state["counts"])
        self._skipped = int(state["skipped"])

    def _course(self, state: Mapping[str, Any]) -> _Course:
        values = deque(map(float, state["usual"]), maxlen=self.window)
        return _Course(values, int(state["beyond"]), int(state["calm"]))


def get_watch(cfg: DictConfig, **observed: Any) -> Watch:
    """With the thresholds of a configuration; a run that was frozen before has none, and takes the defaults."""
    return Watch(**settings(cfg.get("watch")), **observed)


def _log(level: int, text: str) -> None:
    if flashy.distrib.is_rank_zero():
        logger.log(level, "%s", text)

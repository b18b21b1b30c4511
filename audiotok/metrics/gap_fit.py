"""The factorisation gap of codes alone: fits a small language model to some recordings and measures it on others."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from audiotok.errors import ConfigError, DataError, DivergedError
from audiotok.metrics.codes import Codes, check_codes
from audiotok.metrics.gap import GapMeter, shrunk
from audiotok.models.lm import HEADS, LMModel
from audiotok.models.no_context import NoContextModel

logger = logging.getLogger(__name__)

CHOOSE, MEASURE = 1 / 8, 1 / 4  # shares of the recordings
_CHOOSE_WINDOWS = 64  # at most, evenly spread: a check costs as much as a few updates
_CHECK = 0.8  # updates at a check, over those at the next one
_MEMORY = 8  # weights are a mean over about the last 1 / (_MEMORY + 1) of the updates
_HOLD = 200  # updates before the rate falls
_ALONE = 2  # one window of so many is enough for the heads without context
_BATCH = 16  # windows, without gradients
_RECORDINGS = 4  # two are measured


@dataclass(frozen=True)
class GapFit:
    """The language model behind `factorisation_gap`, and how it is fitted.

    Attributes:
        dim, num_heads, num_layers, dropout: of the trunk, with rotary positions.
        depth_dim, depth_layers: of the chain head.
        code_scale: the chain head begins with embeddings so many times as large as a language model's. Of large tables
            each code is seen rarely, and is learned faster where the state does not drown it; small ones need 1.
        context: frames of a window, which is what the model sees at most.
        warmup: first frames of a held-out window, which are context only.
        batch_size: windows an update.
        lr: learning rate of AdamW, after 50 updates; from update 200 on it falls with their square root.
        updates: at most so many.
        min_updates: at least so many; a valid curve that is flat before may be one that has not begun to fall.
        tolerance: bits per frame by which the NLL of either head may still fall in the last fifth of the updates for
            the fit to end, and to count as converged.
    """

    dim: int = 128
    num_heads: int = 4
    num_layers: int = 2
    dropout: float = 0.0
    depth_dim: int = 64
    depth_layers: int = 2
    code_scale: float = 8.0
    context: int = 256
    warmup: int = 32
    batch_size: int = 4
    lr: float = 3e-3
    updates: int = 1000
    min_updates: int = 300
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        """ConfigError for a value that cannot be."""
        enough = self.updates > 1 and self.min_updates > 1 and self.batch_size > 0
        if not enough or not 0 <= self.warmup < self.context:
            raise ConfigError(
                f"{self} is impossible: updates and min_updates from 2, batch_size from 1, warmup below context."
            )


def factorisation_gap(
    codes: Codes,
    bins: int,
    *,
    tracks: Sequence[int] | npt.NDArray[np.int64] | Tensor,
    pattern: str = "delay",
    delays: Sequence[int] | None = None,
    seed: int = 0,
    held_out: Sequence[int] | None = None,
    fit: GapFit | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Bits per frame that parallel prediction of the codes costs, measured on held-out recordings.

    Fits an `LMModel` with both heads to some recordings, chooses one state of it by the sum of both NLLs on others,
    and measures that on the rest; beside it the same heads without context. The result is the total correlation of a
    step given the past, plus what the parallel head falls short of its best and minus what the chain head does: with
    few recordings the chain head overfits first, and the gap is too low, or negative; it is given as it is.

    Returns:
        What `GapMeter.compute` gives, and

        - `gap_converged`: 1, or 0 if the valid NLL of a head was still falling at the last update, of which the log
          warns; and `gap_fall`, by how many bits per frame in the last fifth of the updates (negative: it rose);
        - `gap_alone_fall`: by how many that of the chain head without context fell then, which ends no fit;
        - `gap_updates`: how many updates there were;
        - `gap_recordings_fit`, `gap_recordings_choose`: recordings in the other parts than the measured one.

    Args:
        codes: integers in 0..bins-1, tensor or array [B, K, T]; clips of T frames that follow each other.
        bins: size of a codebook.
        tracks: recording of each clip, B integers. A recording is in one part only.
        pattern: which codes stand in one step; see `audiotok.models.patterns.get_pattern`.
        delays: of the pattern.
        seed: of the parts, the fit and the bootstrap.
        held_out: recordings to measure; by default a quarter of them, drawn by the seed.
        fit: model and training.
        device: where to compute.
        progress: called with the updates done and the most there can be.

    Raises:
        ConfigError: for a pattern or a fit that cannot be.
        DataError: for codes or tracks that do not fit, fewer than 4 recordings, or clips that are too short.
        DivergedError: if the fit does.
    """
    found, fit = check_codes(codes, bins), fit or GapFit()
    owners = torch.as_tensor(np.asarray(tracks))
    if owners.shape != found.shape[:1] or owners.is_floating_point():
        raise DataError(
            f"tracks {list(owners.shape)} of {owners.dtype}; give one integer for each of {len(found)} clips."
        )
    parts = split_recordings(owners, seed, held_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Fitting(found, bins, owners, parts, pattern, delays, fit, torch.device(device)).run(seed, progress)


def split_recordings(
    tracks: Tensor, seed: int, held_out: Sequence[int] | None = None
) -> tuple[list[int], list[int], list[int]]:
    """Recordings to fit on, to choose a state by, and to measure: five eighths, one eighth and a quarter of them.

    Args:
        tracks: recording of each clip, [B].
        seed: of the draw.
        held_out: those to measure; the others are dealt five to one.

    Raises:
        DataError: for fewer than 4 recordings, or held-out ones that are not there or leave fewer than 2.
    """
    recordings = sorted(set(tracks.tolist()))
    if len(recordings) < _RECORDINGS:
        raise DataError(
            f"{len(recordings)} recording(s) are too few for the factorisation gap: it takes {_RECORDINGS} or more, to "
            "fit a model on some, choose its state by others and measure the rest."
        )
    order = [recordings[i] for i in np.random.default_rng(seed).permutation(len(recordings))]
    if held_out is None:
        measure = order[: max(2, round(MEASURE * len(order)))]
    else:
        measure = sorted(set(held_out))
        if missing := sorted(set(measure) - set(recordings)):
            raise DataError(f"held_out names recording(s) {missing} without clips; recordings are those in tracks.")
        if len(measure) < 2 or len(recordings) - len(measure) < 2:
            raise DataError(
                f"held_out names {len(measure)} of {len(recordings)} recordings; 2 or more have to be measured, "
                "and 2 or more left to fit and choose a model."
            )
    rest = [recording for recording in order if recording not in set(measure)]
    choose = max(1, round(CHOOSE / (1 - MEASURE) * len(rest)))
    return sorted(rest[choose:]), sorted(rest[:choose]), sorted(measure)


class _Fitting:
    """One fit of a language model and of its heads without context."""

    def __init__(
        self,
        codes: Tensor,
        bins: int,
        tracks: Tensor,
        parts: tuple[list[int], list[int], list[int]],
        pattern: str,
        delays: Sequence[int] | None,
        fit: GapFit,
        device: torch.device,
    ) -> None:
        self.fit, self.parts, self.device = fit, parts, device
        n_q, self.frames = codes.shape[1], min(fit.context, codes.shape[2])
        self.warmup = min(fit.warmup, self.frames // 2)
        depth: dict[str, Any] = {
            "depth_dim": fit.depth_dim,
            "depth_heads": fit.num_heads,
            "depth_layers": fit.depth_layers,
        }
        self.model = LMModel(
            n_q=n_q,
            bins=bins,
            dim=fit.dim,
            num_heads=fit.num_heads,
            num_layers=fit.num_layers,
            dropout=fit.dropout,
            positions="rope",
            pattern=pattern,
            delays=delays,
            heads=HEADS,
            **depth,
        ).to(device)
        order = self.model.pattern(self.frames)
        lacking = self.warmup - (self.frames - (order.length - order.valid_length)) + 1
        if lacking > 0 or self.frames < 2:
            raise DataError(
                f"Clips of {self.frames} frames are too short for the pattern {pattern}; {2 * lacking} more are enough."
            )
        self.alone = NoContextModel(self.model, dropout=fit.dropout, **depth).to(device)
        fitted, *self.others = (torch.isin(tracks, torch.tensor(part)) for part in parts)
        self.codes, self.tracks, self.fitted = codes, tracks, codes[fitted]
        counts = torch.stack([torch.bincount(self.fitted[:, k].flatten(), minlength=bins) for k in range(n_q)])
        with torch.no_grad():
            for module in (self.model, self.alone):
                for parameter in module.depth.emb.parameters() if module.depth is not None else ():
                    parameter.mul_(fit.code_scale)
            # The best law that knows nothing, but for the rarest codes.
            self.alone.logits.copy_((counts + 0.5).log() - (counts + 0.5).log().mean(dim=1, keepdim=True))
        self.average = AveragedModel(nn.ModuleList([self.model, self.alone]), avg_fn=_averaged)

    def run(self, seed: int, progress: Callable[[int, int], None] | None) -> dict[str, float]:
        """Fit, choose and measure."""
        checks = _checks(self.fit)
        updates = self._updates(seed)
        best = [
            (math.inf, self._state(0)),
            (math.inf, self._state(1)),
        ]  # of the model, and of the heads without context
        last: tuple[float, ...] = (math.inf,) * 3  # bits of the heads, and of the chain head without context
        falls, done = last, 0
        for check in checks:
            while done < check:
                next(updates)
                done += 1
                if progress is not None:
                    progress(done, checks[-1])
            found = self._measure(self.others[0], _CHOOSE_WINDOWS).compute()
            heads = (found["bits_parallel"], found["bits_chain"])
            sums = (sum(heads), 2 * found["bits_alone"] - found["gap_alone"])
            if not all(map(math.isfinite, sums)):
                raise DivergedError(f"The fit for the factorisation gap diverged by update {done}; lower its lr.")
            best = [
                (now, self._state(i)) if now < old[0] else old
                for i, (now, old) in enumerate(zip(sums, best, strict=True))
            ]
            now = (*heads, found["bits_alone"] - found["gap_alone"])
            falls = tuple(before - after for before, after in zip(last, now, strict=True))
            logger.debug("update %d: %.3f and %.3f bits, gap without context %.3f", done, *heads, found["gap_alone"])
            if done >= self.fit.min_updates and max(falls[:2]) <= self.fit.tolerance:
                break
            last = now
        for module, (_, state) in zip(self._modules(), best, strict=True):
            module.load_state_dict(state)
        depths = [head for head in (module.depth for module in self._modules()) if head is not None]
        with shrunk(depths, lambda: self._measure(self.others[0], _CHOOSE_WINDOWS)):
            metrics = self._measure(self.others[1]).compute(seed=seed)
        fall = max(falls[:2])
        converged = fall <= self.fit.tolerance
        if not converged:
            logger.warning(
                "the factorisation gap has not converged: in the last fifth of %d updates the valid NLL still fell by "
                "%.3f bits per frame (%.3f allowed); give more updates",
                *(done, fall, self.fit.tolerance),
            )
        metrics |= {"gap_converged": float(converged), "gap_fall": fall, "gap_alone_fall": falls[2]}
        metrics |= {"gap_updates": float(done)}
        return metrics | {
            f"gap_recordings_{name}": float(len(self.parts[i])) for i, name in enumerate(("fit", "choose"))
        }

    def _updates(self, seed: int) -> Iterator[None]:
        """Each step makes one update."""
        fit = self.fit
        modules: tuple[LMModel | NoContextModel, ...] = (self.model, self.alone)
        optimizer = torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=fit.lr, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: min((done + 1) / 50, 1.0, math.sqrt(_HOLD / (done + 1)))
        )
        rng = np.random.default_rng([seed, 1])
        order: list[int] = []
        self.model.train()
        self.alone.train()
        while True:
            while len(order) < fit.batch_size:
                order += rng.permutation(len(self.fitted)).tolist()
            chosen, order = order[: fit.batch_size], order[fit.batch_size :]
            starts = rng.integers(self.fitted.shape[2] - self.frames + 1, size=len(chosen))
            batch = [self.fitted[i, :, start : start + self.frames] for i, start in zip(chosen, starts, strict=True)]
            codes = torch.stack(batch).to(self.device)
            loss = torch.zeros((), device=self.device)
            for module, few in zip(modules, (len(codes), -(-len(codes) // _ALONE)), strict=True):
                nll = module.nll(codes[:few])
                assert nll.chain is not None
                loss = loss + nll.parallel.mean() + nll.chain[:, 1:].sum() / nll.chain.numel()
            optimizer.zero_grad()
            loss.backward()
            for module in modules:  # each on its own: neither shall feel the other
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            self.average.update_parameters(nn.ModuleList(modules))
            yield

    @torch.no_grad()
    def _measure(self, clips: Tensor, most: int | None = None) -> GapMeter:
        """The averaged model on windows of clips [B] (a mask), whose warm-ups overlap the window before."""
        self.average.eval()
        lm, alone = self._modules()
        starts = range(0, self.codes.shape[2] - self.frames + 1, self.frames - self.warmup)
        windows = [(int(clip), start) for clip in clips.nonzero()[:, 0] for start in starts]
        if most is not None and len(windows) > most:
            windows = [windows[i * len(windows) // most] for i in range(most)]
        meter = GapMeter(self.warmup)
        for first in range(0, len(windows), _BATCH):
            part = windows[first : first + _BATCH]
            codes = torch.stack([self.codes[clip, :, start : start + self.frames] for clip, start in part])
            codes = codes.to(self.device)
            owners = self.tracks[[clip for clip, _ in part]]
            meter.update(lm.nll(codes), owners, alone.nll(codes))
        return meter

    def _modules(self) -> tuple[LMModel, NoContextModel]:
        """The averaged ones."""
        modules = self.average.module
        assert isinstance(modules, nn.ModuleList)
        lm, alone = modules
        assert isinstance(lm, LMModel) and isinstance(alone, NoContextModel)
        return lm, alone

    def _state(self, index: int) -> dict[str, Tensor]:
        """A copy of the averaged weights of the model, or of the heads without context."""
        return {name: value.clone() for name, value in self._modules()[index].state_dict().items()}


def _averaged(mean: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Mean of weights over the last part of the updates, however many there are; `count` were averaged before.

    Source: Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", ICML 2013 (polynomial decay).
    """
    return mean.lerp(new, (_MEMORY + 1) / (float(count) + _MEMORY + 1))


def _checks(fit: GapFit) -> list[int]:
    """Updates after which the state is measured: the last, and each time four fifths of those; two or more."""
    checks = [fit.updates]
    while len(checks) < 2 or checks[-1] > fit.min_updates / 2:
        checks.append(min(round(checks[-1] * _CHECK), checks[-1] - 1))
    return checks[::-1]

"""The MMD step: gather training batches, then pull the codebooks of all of them apart at once.

One batch holds too few frames to estimate a dependence, and the graph of many does not fit in memory. So batches are
kept as waveforms; once `num_batches` are there, their latents are computed without a graph, the MMD is differentiated
with respect to these latents, and each batch goes through the encoder once more to receive its share of the gradient.
The result is the gradient of the MMD of all batches together, at the memory of one (gradient caching, Gao et al. 2021).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from audiotok.distributed import gather_clips, own_clips, world_size
from audiotok.errors import ConfigError, DivergedError
from audiotok.losses.mmd import MMDLoss
from audiotok.models.encodec import EncodecModel
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.solvers.gradient_share import GradientShare, clip_norms

WEIGHTINGS = ("absolute", "share")


class LatentError(DivergedError):
    """The encoder's output is not finite."""


@dataclass(frozen=True)
class MMDWeight:
    """Weight of the MMD by epoch: 0 before `start_epoch`, then up in `ramp_epochs` equal steps, then constant.

    Epochs count from 1; the first epoch of a ramp over 4 has a quarter of the weight, the fourth has all; 0 or 1
    `ramp_epochs` are no ramp. ConfigError if an epoch is not a whole number or too small.
    """

    weight: float
    start_epoch: int
    ramp_epochs: int

    def __post_init__(self) -> None:
        for name, value, least in (("start_epoch", self.start_epoch, 1), ("ramp_epochs", self.ramp_epochs, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"mmd.{name}={value!r}; give a whole number of epochs, {least} or more")

    def __call__(self, epoch: int) -> float:
        """Weight at an epoch, from 1 on."""
        done = epoch - self.start_epoch + 1
        return self.weight * min(1.0, max(0, done) / max(1, self.ramp_epochs))


def stream_mmd(
    loss: MMDLoss,
    model: EncodecModel,
    latent: torch.Tensor,
    stream: str,
    generator: torch.Generator,
    n_q: int | None = None,
) -> torch.Tensor:
    """MMD of the streams of the first n_q codebooks (None: of those in use) of a latent [B, D, T], with its graph."""
    if not isinstance(model.quantizer, ResidualVectorQuantizer):
        raise ConfigError("losses.mmd needs the codebooks of encodec.quantizer=rvq; set losses.mmd=0 without them")
    if not torch.isfinite(latent).all():
        raise LatentError("the encoder's output is not finite, so there is no MMD; lower optim.lr or losses.mmd")
    value: torch.Tensor = loss(model.quantizer.streams(latent, stream, n_q), generator=generator)
    return value


class MacroBatch:
    """Pending batches of the MMD step, and the step itself.

    Ranks: pending batches are those of all ranks, and so is the MMD. Value and averaged gradient are those of one
    process that reads everything, and a run may be resumed by another number of processes. Whether a step runs depends
    on numbers that are the same on every rank; both methods hold collectives, so that all ranks must call them.

    Quantiser dropout: a codebook that a training step does not use takes no part in the MMD of that step. The step that
    completes a macro-batch thus decides for all of its batches, whatever their own steps had drawn: each number of
    codebooks gets MMD steps as often as training draws it, and each step has all samples. With one codebook there is
    nothing to compare; the step then waits for the next draw, with the latest batches.

    Args:
        loss: the criterion.
        stream: which streams of the quantiser it compares, one of STREAM_KINDS.
        num_batches: batches gathered for one step, on each rank; 1 for a step on every batch.
        seed: of the permutations; the same on every rank.
        weighting: what a weight is: "absolute", a factor; "share", the norm of the MMD's gradient at the latent
            relative to that of the reconstruction; see `GradientShare`.
        ema_decay: of the reconstruction's norm, for each batch.
        max_samples: samples that a step without weight compares, those of clips spread evenly over the batches; None:
            all. Rounded up to whole clips, as many on each rank.
        measure: the criterion where that leaves clips out; None: `loss`.
        once: whether an epoch needs one step without weight alone, as each of them is costly; for those who call.

    Attributes:
        share: that norm; `share.add_reconstruction` takes in a batch.
        reached: the share that the gradient of the latest step had, of the clips of this rank; 0 without weight.
        epoch: of the latest step, for those who take one an epoch; 0 before the first.
    """

    def __init__(
        self,
        loss: MMDLoss,
        stream: str,
        num_batches: int,
        seed: int,
        weighting: str = "absolute",
        ema_decay: float = 0.999,
        max_samples: int | None = None,
        measure: MMDLoss | None = None,
        once: bool = False,
    ) -> None:
        if weighting not in WEIGHTINGS:
            raise ConfigError(f"mmd.weighting={weighting!r}; choose one of: {', '.join(WEIGHTINGS)}")
        if num_batches < 1:
            raise ConfigError(f"mmd.num_batches_mmd={num_batches}; give at least 1")
        self.loss = loss
        self.stream = stream
        self.num_batches = num_batches
        self.seed = seed
        self.weighting = weighting
        self.max_samples, self.measure, self.once = max_samples, measure or loss, once
        self.share = GradientShare(ema_decay)
        self.reached = 0.0
        self.pending: list[torch.Tensor] = []
        self.steps, self.epoch = 0, 0

    def add(self, wav: torch.Tensor) -> bool:
        """Keep a batch [B, C, T] of each rank, and the last `num_batches` of them; True once that many are there."""
        self.pending = [*self.pending, gather_clips(wav).cpu()][-self.num_batches :]
        return len(self.pending) >= self.num_batches

    def value(self, model: EncodecModel, weight: float, n_q: int | None = None) -> torch.Tensor:
        """Unweighted MMD of the pending batches, which are then dropped: a scalar without graph, equal on all ranks.

        Adds its gradient to the encoder's, as the weighting of `weight` has it; 0 measures only.
        Compares n_q codebooks, 2 or more, or those in use. The quantiser's buffers are read, never written.
        """
        device = next(model.parameters()).device
        pending = self._sampled(model, n_q) if weight == 0 else self.pending
        loss = self.loss if pending is self.pending else self.measure
        wavs, self.pending = [own_clips(wav) for wav in pending], []
        keep_graph = weight != 0 and len(wavs) == 1  # a single batch needs no second pass
        with torch.set_grad_enabled(keep_graph):
            own = torch.cat([model.encode_latent(wav.to(device))[0] for wav in wavs])
        latent = gather_clips(own).requires_grad_(weight != 0)
        # The same shuffle on every rank, another at every step, and the same again in a resumed run.
        generator = torch.Generator().manual_seed(self.seed + self.steps)
        value = stream_mmd(loss, model, latent, self.stream, generator, n_q)
        self.steps += 1
        self.reached = 0.0
        if weight != 0:
            gradient = self._weighted_gradient(value, weight, latent, own)
            self.reached = self.share.reached(clip_norms(gradient).mean())
            for wav, part in zip(wavs, gradient.split([len(wav) for wav in wavs]), strict=True):
                graph = own if keep_graph else model.encode_latent(wav.to(device))[0]
                graph.backward(part)
        return value.detach()

    def _sampled(self, model: EncodecModel, n_q: int | None) -> list[torch.Tensor]:
        """Batches of the clips to measure on: all that are pending, or `max_samples` of their samples."""
        clips = sum(len(wav) for wav in self.pending)
        frames = math.ceil(self.pending[0].shape[-1] / round(model.sample_rate / model.frame_rate))
        delayed = (n_q or model.num_codebooks) if self.loss.delay else 0
        of_clip = 1 if self.loss.between == "frames" else max(1, frames - delayed)
        count = clips if self.max_samples is None else math.ceil(self.max_samples / of_clip)
        count = math.ceil(max(2, count) / world_size()) * world_size()
        if count >= clips:
            return self.pending
        chosen = torch.cat(self.pending)[torch.arange(count) * clips // count]
        return list(chosen.split(len(self.pending[0])))

    def _weighted_gradient(
        self, value: torch.Tensor, weight: float, latent: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        """Gradient to send into the encoder for the clips of this rank: `own`, of the gathered `latent`."""
        if self.weighting == "absolute":
            # Times world_size, as the gradients of ranks, each of its own clips only, are averaged later on.
            return own_clips(torch.autograd.grad(weight * world_size() * value, latent)[0])
        gradient = own_clips(torch.autograd.grad(value, latent)[0])
        return gradient * self.share.scale(weight, gradient, own)

    def state_dict(self) -> dict[str, Any]:
        """Pending batches of all ranks, the counts and the norm, so that a resumed run takes the same steps."""
        counts = {"steps": self.steps, "epoch": self.epoch}
        return {"pending": list(self.pending), **counts, "share": self.share.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; that of an earlier version holds no norm and no epoch."""
        self.pending = list(state["pending"])
        self.steps, self.epoch = int(state["steps"]), int(state.get("epoch", 0))
        if "share" in state:
            self.share.load_state_dict(state["share"])

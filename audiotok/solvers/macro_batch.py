"""The MMD step: gather training batches, then pull the codebooks of all of them apart at once.

One batch holds too few frames to estimate a dependence, and the graph of many does not fit in memory. So batches are
kept as waveforms; once `num_batches` are there, their latents are computed without a graph, the MMD is differentiated
with respect to these latents, and each batch goes through the encoder once more to receive its share of the gradient.
The result is the gradient of the MMD of all batches together, at the memory of one (gradient caching, Gao et al. 2021).
"""

from typing import Any

import torch

from audiotok.errors import ConfigError, DivergedError
from audiotok.losses.mmd import MMDLoss
from audiotok.models.encodec import EncodecModel
from audiotok.quantization import ResidualVectorQuantizer


def stream_mmd(
    loss: MMDLoss, model: EncodecModel, latent: torch.Tensor, stream: str, generator: torch.Generator
) -> torch.Tensor:
    """MMD of the codebook streams of a latent [B, D, T], with a gradient to the latent if it asks for one."""
    if not isinstance(model.quantizer, ResidualVectorQuantizer):
        raise ConfigError("losses.mmd needs the codebooks of encodec.quantizer=rvq; set losses.mmd=0 without them")
    if not torch.isfinite(latent).all():
        raise DivergedError("the encoder's output is not finite, so there is no MMD; lower optim.lr or losses.mmd")
    value: torch.Tensor = loss(model.quantizer.streams(latent, stream), generator=generator)
    return value


class MacroBatch:
    """Pending batches of the MMD step, and the step itself.

    Args:
        loss: the criterion.
        stream: which streams of the quantiser it compares: input, residual or code.
        num_batches: batches gathered for one step, on each rank.
        seed: of the permutations; the same on every rank.
    """

    def __init__(self, loss: MMDLoss, stream: str, num_batches: int, seed: int) -> None:
        if num_batches < 1:
            raise ConfigError(f"mmd.num_batches_mmd={num_batches}; give at least 1")
        self.loss = loss
        self.stream = stream
        self.num_batches = num_batches
        self.seed = seed
        self.pending: list[torch.Tensor] = []
        self.steps = 0

    def add(self, wav: torch.Tensor) -> bool:
        """Keep a batch [B, C, T], and no more than the last `num_batches`; True once that many are there."""
        self.pending = [*self.pending, wav.detach().cpu()][-self.num_batches :]
        return len(self.pending) >= self.num_batches

    def value(self, model: EncodecModel, weight: float) -> torch.Tensor:
        """MMD of the pending batches, which are then dropped; adds `weight` times its gradient to the encoder's.

        Args:
            model: the codec; its quantiser's buffers are read, never written.
            weight: of the loss; 0 measures only.

        Returns:
            The unweighted MMD, a scalar without graph.
        """
        device = next(model.parameters()).device
        wavs, self.pending = self.pending, []
        with torch.no_grad():
            latents = [model.encode_latent(wav.to(device))[0] for wav in wavs]
        sizes = [len(latent) for latent in latents]
        latent = torch.cat(latents).requires_grad_(weight != 0)
        value = stream_mmd(self.loss, model, latent, self.stream, self._generator())
        if weight != 0:
            (gradient,) = torch.autograd.grad(weight * value, latent)
            for wav, share in zip(wavs, gradient.split(sizes), strict=True):
                model.encode_latent(wav.to(device))[0].backward(share)
        self.steps += 1
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        """Pending batches and count, so that a resumed run takes the same steps."""
        return {"pending": list(self.pending), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved batches."""
        self.pending = list(state["pending"])
        self.steps = int(state["steps"])

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self.steps)

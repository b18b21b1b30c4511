"""The MMD's gradient as a share of the reconstruction's: both are measured at the latent, clip by clip.

At the input of the decoder the straight-through gradient of the latent is that of the balanced losses alone, without
the quantiser's commitment, and it is on its way to the encoder anyway: measuring it costs one norm.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from audiotok.distributed import sum_over_ranks_, world_size
from audiotok.errors import CheckpointError

FLOOR = 1e-7  # of the change in `GradientShare.scale`: what float32 resolves of a value of order 1


def clip_norms(gradient: Tensor) -> Tensor:
    """Euclidean norm of each clip of [B, ...], float64 [B]: the squares of a small gradient vanish in float32."""
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
    return norms


class GradientProbe:
    """Mean norm per clip of the latest gradient at the input [B, ...] of a module, as `norm`, a float64 scalar."""

    def __init__(self, module: nn.Module) -> None:
        self.norm = torch.zeros((), dtype=torch.float64)
        module.register_forward_pre_hook(self._watch)

    def _watch(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].requires_grad:
            args[0].register_hook(self._measure)

    def _measure(self, gradient: Tensor) -> None:
        self.norm = clip_norms(gradient).mean()


class GradientShare:
    """Compares the MMD's gradient with the reconstruction's, and gives the factor that makes it a share of that.

    With r_i and g_i the gradients of the balanced losses and of the MMD at the latent of clip i,

        factor = share * average |r_i| / mean |g_i|

    Both are means over the clips of all ranks. |r_i| is averaged over steps as in `Balancer`: exponentially, with its
    decay, corrected for its start. |g_i| is that of the step itself, over the clips of all its batches. Averaged over
    steps too, one large gradient, as of codebooks that hardly vary yet, would hold the share down for a thousand steps.

    A clip is once in a training step and once in an MMD step. It thus receives r_i and a gradient of norm share * |r_i|
    whatever the number of gathered batches. Nothing is multiplied by the number of ranks: the gradients of both are
    summed over the clips of a rank and averaged over ranks.

    Args:
        decay: of the average per training step, in (0, 1]; 1 is a plain average.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._total: Tensor | float = 0.0
        self._count = 0.0

    def add_reconstruction(self, norm: Tensor) -> None:
        """Take in a training step: the mean of |r_i| over this rank's clips. A collective, no wait for a device."""
        self._total = self._total * self._decay + sum_over_ranks_(norm.clone()) / world_size()
        self._count = self._count * self._decay + 1

    def scale(self, share: float, gradient: Tensor, latent: Tensor) -> float:
        """Return the factor of an MMD step; a collective, equal on all ranks.

        0 if sum_i |g_i| |z_i| < FLOOR: to first order, moving every latent z_i by its own size then changes the
        criterion by less than float32 resolves of it. Such a gradient (kernels far narrower than the distances, a value
        clamped at 0) would be noise if it were scaled up.

        Args:
            share: in use in this step, > 0.
            gradient: g_i of the clips of this rank, [clips, D, T].
            latent: z_i of these clips, [clips, D, T].
        """
        norms = clip_norms(gradient)
        change = (norms * clip_norms(latent.detach())).sum()
        mean, change = sum_over_ranks_(torch.stack([norms.mean() / world_size(), change])).tolist()
        return 0.0 if change < FLOOR else share * self._average() / mean

    def reached(self, norm: Tensor) -> float:
        """A mean norm per clip at the latent as a share of average |r_i|; 0 before anything was measured."""
        average = self._average()
        return float(norm) / average if average else 0.0

    def state_dict(self) -> dict[str, float]:
        """The average as plain floats, the same on all ranks: a resumed run continues exactly."""
        return {"total": float(self._total), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; CheckpointError if the state is not of that form."""
        if set(state) != {"total", "count"}:
            raise CheckpointError(f"state of the MMD's share holds {sorted(state)}; expected count and total")
        self._total, self._count = float(state["total"]), float(state["count"])

    def _average(self) -> float:
        return float(self._total) / self._count if self._count else 0.0

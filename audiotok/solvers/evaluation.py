"""Codebook metrics of the evaluate stage: their dependence on each other, and how well they are used.

Held-out data, settings that are the same for every experiment of a grid (`metrics` in the configuration), and the clips
of all ranks together: an average of estimates over ranks would be another, worse estimate.
"""

from omegaconf import DictConfig
from torch import Generator, Tensor, cat

from audiotok.distributed import gather_clips
from audiotok.metrics import dependence_metrics, mmd_permutation_test
from audiotok.models.encodec import EncodecModel
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.solvers.settings import settings


class CodebookMeasures:
    """Gathers codes and latents over the evaluate stage, then measures them.

    Nothing is measured unless the quantiser is residual and ready.
    """

    def __init__(self, model: EncodecModel, cfg: DictConfig) -> None:
        self.model = model
        self.cfg = cfg
        self.codes: list[Tensor] = []
        self.latents: list[Tensor] = []
        quantizer = model.quantizer
        self.quantizer = quantizer if isinstance(quantizer, ResidualVectorQuantizer) and quantizer.ready else None

    def add(self, wav: Tensor, codes: Tensor) -> None:
        """Take the clips [B, C, T] and codes [B, K, T'] of a batch; clips of another length than the first are left."""
        if self.quantizer is None or (self.codes and codes.shape[-1] != self.codes[0].shape[-1]):
            return
        chosen = self.cfg.evaluate.metrics
        if chosen.dependence:
            self.codes.append(codes)
        # Equal on all ranks, which hold as many clips: `metrics` gathers, a collective.
        enough = sum(len(latent) for latent in self.latents) >= self.cfg.metrics.mmd.max_samples
        if chosen.mmd and self.model.num_codebooks > 1 and not enough:
            self.latents.append(self.model.encode_latent(wav)[0])

    def metrics(self) -> dict[str, float]:
        """The metrics; see docs/dependence.md. Every rank must call this, and gets the same."""
        found: dict[str, float] = {}
        if self.quantizer is not None and self.codes:
            codes = gather_clips(cat(self.codes)).cpu()
            books = self.quantizer.vq.codebooks(codes.shape[1])
            found |= dependence_metrics(
                codes,
                bins=self.model.cardinality,
                frame_rate=self.model.frame_rate,
                vectors=[codebook.embed.cpu() for codebook in books],
                seed=self.cfg.seed,
                **settings(self.cfg.metrics.dependence),
            )
        if self.quantizer is not None and self.latents:
            options = settings(self.cfg.metrics.mmd)
            streams = self.quantizer.streams(gather_clips(cat(self.latents)), str(options.pop("stream")))
            generator = Generator().manual_seed(self.cfg.seed)
            found |= mmd_permutation_test(streams, generator=generator, **options).metrics()
        return found

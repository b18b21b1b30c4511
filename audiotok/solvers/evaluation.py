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

    Args:
        model: the codec, whose quantiser must be residual and ready for anything to be measured.
        cfg: the whole configuration.
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
        enough = sum(len(latent) for latent in self.latents) >= self.cfg.metrics.mmd.max_samples
        if chosen.mmd and self.model.num_codebooks > 1 and not enough:
            self.latents.append(self.model.encode_latent(wav)[0])

    def metrics(self) -> dict[str, float]:
        """The metrics; see docs/dependence.md. Every rank must call this, and gets the same."""
        found: dict[str, float] = {}
        if self.codes:
            found.update(self._dependence(gather_clips(cat(self.codes)).cpu()))
        if self.latents:
            found.update(self._mmd(gather_clips(cat(self.latents))))
        return found

    def _dependence(self, codes: Tensor) -> dict[str, float]:
        assert self.quantizer is not None
        books = self.quantizer.vq.codebooks(codes.shape[1])
        return dependence_metrics(
            codes,
            bins=self.model.cardinality,
            frame_rate=self.model.frame_rate,
            vectors=[codebook.embed.cpu() for codebook in books],
            seed=self.cfg.seed,
            **settings(self.cfg.metrics.dependence),
        )

    def _mmd(self, latent: Tensor) -> dict[str, float]:
        assert self.quantizer is not None
        options = settings(self.cfg.metrics.mmd)
        streams = self.quantizer.streams(latent, str(options.pop("stream")))
        generator = Generator().manual_seed(self.cfg.seed)
        return mmd_permutation_test(streams, generator=generator, **options).metrics()

"""The evaluate stage: metrics of reconstructed clips; dependence of the codebooks, and how well they are used.

Held-out data, settings that are the same for every experiment of a grid (`metrics` in the configuration), and the clips
of all ranks together: an average of estimates over ranks would be another, worse estimate.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Generator, Tensor, cat

from audiotok.data import SegmentInfo
from audiotok.distributed import gather_clips, gather_objects, is_source, world_size
from audiotok.errors import DataError
from audiotok.metrics import dependence_metrics, mmd_permutation_test
from audiotok.metrics.shuffles import evenly_in_runs
from audiotok.models.encodec import EncodecModel
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.solvers import builders, protocol
from audiotok.solvers.clip_metrics import ClipMetrics, Place
from audiotok.solvers.settings import settings
from audiotok.utils.device import resolve_device

logger = logging.getLogger(__name__)

_EARLIER = {"clips": "shifts"}  # shuffles of runs that were frozen before recordings were known


def evaluate_codec(
    model: EncodecModel,
    cfg: DictConfig,
    batches: Iterable[tuple[Tensor, Sequence[SegmentInfo]]],
    *,
    clips: int,
    folder: Path,
    after_step: Callable[[], None],
) -> dict[str, float]:
    """All metrics of the evaluate stage and the number of their protocol; every rank must call this, all get the same.

    Args:
        model: the codec, in eval mode.
        cfg: the configuration.
        batches: clips [B, C, T], and where each is from.
        clips: how many there are, over all ranks.
        folder: of the experiment, where the protocol is kept.
        after_step: to be called after each batch, and once more at the end.
    """
    device = resolve_device(cfg.device)
    codebooks = CodebookMeasures(model, cfg, clips)
    metrics, sets = builders.get_evaluation_metrics(cfg)
    with ClipMetrics(metrics, sets, clips) as measures:
        for batch, infos in batches:
            reference = batch.to(device)
            result = model(reference)

            def vectors(index: int, estimates: Tensor = result.x, codes: Tensor = result.codes) -> Tensor:
                one = slice(index, index + 1)
                return model.decode_latent(cat([model.encode(estimates[one])[0], codes[one]]))

            measures.add(result.x, reference, infos, vectors)
            codebooks.add(reference, result.codes, infos)
            after_step()
        found = measures.metrics()
    after_step()  # a signal that came while slow metrics were computed
    described = protocol.describe(cfg, {**metrics, **sets}, measures.infos())
    if is_source():
        protocol.keep(described, folder)
    return {**found, **codebooks.metrics(), "protocol": protocol.number_of(described)}


class CodebookMeasures:
    """Gathers codes and latents over the evaluate stage, then measures them.

    Nothing is measured unless the quantiser is residual and ready.

    Args:
        model: the codec.
        cfg: the configuration.
        clips: how many clips the stage has, over all ranks.
    """

    def __init__(self, model: EncodecModel, cfg: DictConfig, clips: int) -> None:
        self.model = model
        self.cfg = cfg
        self.codes: list[Tensor] = []
        self.places: list[Place] = []
        self.latents: list[Tensor] = []
        self.latent_places: list[Place] = []
        self._compared = set(evenly_in_runs(-(-clips // world_size()), cfg.metrics.mmd.max_samples).tolist())
        self._seen = 0
        quantizer = model.quantizer
        self.quantizer = quantizer if isinstance(quantizer, ResidualVectorQuantizer) and quantizer.ready else None

    def add(self, wav: Tensor, codes: Tensor, infos: Sequence[SegmentInfo]) -> None:
        """Take the clips [B, C, T] and codes [B, K, T'] of a batch, if as long as the first ones."""
        if self.quantizer is None or (self.codes and codes.shape[-1] != self.codes[0].shape[-1]):
            return
        places = [(str(info.path), info.start_s) for info in infos]
        self.codes.append(codes)
        self.places += places
        if not (self.cfg.evaluate.metrics.mmd and self.model.num_codebooks > 1):
            return
        # No more clips than the test compares, spread over the stage and so over recordings. Equal on all ranks, which
        # hold as many clips: `metrics` gathers, a collective.
        chosen = [i for i in range(len(places)) if self._seen + i in self._compared]
        self._seen += len(places)
        if chosen:
            self.latents.append(self.model.encode_latent(wav[chosen])[0])
            self.latent_places += [places[i] for i in chosen]

    def metrics(self) -> dict[str, float]:
        """The metrics; see docs/dependence.md. Every rank must call this, and gets the same."""
        found: dict[str, float] = {}
        if self.quantizer is not None and self.codes and self.cfg.evaluate.metrics.dependence:
            codes, tracks = _by_recording(self.codes, self.places)
            books = self.quantizer.vq.codebooks(codes.shape[1])
            try:
                found |= dependence_metrics(
                    codes.cpu(),
                    bins=self.model.cardinality,
                    frame_rate=self.model.frame_rate,
                    tracks=tracks,
                    vectors=[codebook.embed.cpu() for codebook in books],
                    seed=self.cfg.seed,
                    **_settings(self.cfg.metrics, "dependence"),
                )
            except DataError as error:  # the same on every rank; a training that lasts days goes on
                logger.warning("dependence and use of the codebooks are left out: %s", error)
        if self.quantizer is not None and self.latents:
            options = _settings(self.cfg.metrics, "mmd")
            latents, tracks = _by_recording(self.latents, self.latent_places)
            streams = self.quantizer.streams(latents, str(options.pop("stream")))
            generator = Generator().manual_seed(self.cfg.seed)
            try:
                found |= mmd_permutation_test(streams, generator=generator, tracks=tracks, **options).metrics()
            except DataError as error:  # the same on every rank; a training that lasts days goes on
                logger.warning("mmd and mmd_p are left out: %s", error)
        return found


def _by_recording(own: list[Tensor], places: list[Place]) -> tuple[Tensor, list[int]]:
    """Clips of all ranks in the order of recordings and time, each clip once, and the recording of each.

    A loader repeats clips so that all ranks have as many, and takes another where a file cannot be read.
    """
    clips = gather_clips(cat(own))
    ranks: list[list[Place]] = gather_objects(places)
    first: dict[Place, int] = {}
    for index, place in enumerate(place for step in zip(*ranks, strict=True) for place in step):
        first.setdefault(place, index)
    paths = {path: number for number, path in enumerate(sorted({path for path, _ in first}))}
    return clips[[first[place] for place in sorted(first)]], [paths[path] for path, _ in sorted(first)]


def _settings(cfg: DictConfig, name: str) -> dict[str, Any]:
    """A section of `metrics`; a shuffle by its earlier name takes the place of it that holds."""
    options = settings(cfg[name])
    earlier = str(options.get("shuffle"))
    if earlier in _EARLIER:
        options["shuffle"] = _EARLIER[earlier]
        logger.warning(
            "metrics.%s.shuffle=%s takes clips of one recording for independent draws; %s are used in their place, and "
            "values that were measured by earlier versions do not compare", name, earlier, _EARLIER[earlier],
        )  # fmt: skip
    return options

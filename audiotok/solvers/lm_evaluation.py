"""The evaluate stage of a language model: cross-entropies of held-out codes, the gap between its heads, protocol."""

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from audiotok.data import AudioLoader
from audiotok.data.tokens import TokenSet
from audiotok.distributed import gather_objects, is_source, rank, world_size
from audiotok.metrics.gap import GapMeter
from audiotok.models.codec_lm import CodecLM
from audiotok.models.lm import CodeNLL
from audiotok.solvers import protocol
from audiotok.solvers.lm_data import CodeBatch

_MOST_NATS = 700.0  # exp of more is no float
VERSION = 2  # of the stage: the next one where the same settings give other numbers


def mean_by_codebook(nll: Tensor, mask: Tensor) -> Tensor:
    """Mean nats [K] of a code of each codebook: nll [B, K, T] over the positions of mask [K, T]."""
    return nll.sum(dim=(0, 2)) / (len(nll) * mask.sum(dim=1)).clamp(min=1)


def mean_entropies(nll: CodeNLL) -> dict[str, Any]:
    """`ce`, the mean over codebooks, `ce_q1`, …, and `ce_chain` of a chain head, as 0-d tensors in nats."""
    by_codebook = mean_by_codebook(nll.parallel, nll.mask)
    found: dict[str, Any] = {"ce": by_codebook.mean()}
    found |= {f"ce_q{k}": value for k, value in enumerate(by_codebook, start=1)}
    if nll.chain is not None:
        found["ce_chain"] = mean_by_codebook(nll.chain, nll.mask).mean()
    return found


def with_bits(metrics: dict[str, Any], frame_rate: float) -> dict[str, Any]:
    """Metrics with the perplexities of their cross-entropies, and with bits a frame and a second.

    Of means over a stage, since a mean of perplexities is not the perplexity of the mean.
    """
    if "ce" not in metrics:  # every update of the epoch was skipped
        return metrics
    names = [name for name in metrics if name == "ce" or name.startswith("ce_q")]
    more = {name.replace("ce", "ppl", 1): math.exp(min(metrics[name], _MOST_NATS)) for name in names}
    n_q = len(names) - 1
    more["bits_frame"] = metrics["ce"] * n_q / math.log(2)
    more["bits_s"] = more["bits_frame"] * frame_rate
    if "ce_chain" in metrics:
        more["bits_frame_chain"] = metrics["ce_chain"] * n_q / math.log(2)
    return {**metrics, **more}


class HeldOut:
    """Gathers the likelihoods of the evaluate stage over all processes; a window that ranks repeat counts once.

    Args:
        model: the language model.
        tokens: the token set of the stage.
        loader: its windows.
    """

    def __init__(self, model: CodecLM, tokens: TokenSet, loader: AudioLoader) -> None:
        self.model, self.tokens = model, tokens
        self.gap = GapMeter() if "chain" in model.heads and model.n_q > 1 else None
        self.windows = len(loader.dataset)
        self._seen = 0
        self._entropies: list[tuple[int, dict[str, float]]] = []  # of each window of this rank
        self._tracks: set[int] = set()
        self._frames = 0

    def add(self, nll: CodeNLL, batch: CodeBatch) -> None:
        """Take the likelihoods of a batch."""
        numbers = [rank() + (self._seen + i) * world_size() for i in range(len(batch.codes))]
        self._seen += len(numbers)
        self._frames = batch.codes.shape[2]
        own = [i for i, number in enumerate(numbers) if number < self.windows]  # beyond, the loader begins again
        nll = _of_windows(nll, own)
        for i, number in enumerate(numbers[: len(own)]):
            one = mean_entropies(_of_windows(nll, [i]))
            self._entropies.append((number, {name: float(value) for name, value in one.items()}))
        self._tracks |= set(batch.tracks[own].tolist())
        if self.gap is not None and own:
            add_to_gap(self.gap, self.model, nll, batch.codes[own], batch.tracks[own])

    def metrics(self, folder: Path) -> dict[str, float]:
        """The metrics, and the number of their protocol, which is kept in the folder of the experiment.

        Every rank must call this, and gets the same.
        """
        windows = sorted((one for ranks in gather_objects(self._entropies) for one in ranks), key=lambda one: one[0])
        means = {name: math.fsum(values[name] for _, values in windows) / len(windows) for name in windows[0][1]}
        tracks = set[int]().union(*gather_objects(self._tracks))
        gap: dict[str, float] = {}
        if self.gap is not None:
            gap = gathered(self.gap).compute()
        described = self._protocol(len(tracks))
        if is_source():
            protocol.keep(described, folder)
        return {**with_bits(means, self.tokens.frame_rate), **gap, "protocol": protocol.number_of(described)}

    def _protocol(self, recordings: int) -> dict[str, Any]:
        """What the numbers were measured on. Not with which codec: codecs are what a grid compares."""
        tokens, model = self.tokens, self.model
        common = os.path.commonpath({str(Path(track.path).parent) for track in tokens.tracks})
        tracks = [f"{os.path.relpath(track.path, common)} {track.frames}" for track in tokens.tracks]
        delays = "" if model.delays is None else f" {list(model.delays)}"
        return {
            "version": VERSION,
            "clips": self.windows,
            "recordings": recordings,
            "seconds": round(self._frames / tokens.frame_rate, 3),
            "digest": f"{zlib.crc32(chr(10).join(tracks).encode('utf-8', 'surrogateescape')):08x}",
            "sample_rate": tokens.sample_rate,
            "channels": tokens.channels,
            "metrics": {
                "codes": f"{tokens.n_q} codebooks of {tokens.bins} at {tokens.frame_rate:g} Hz, windows of "
                f"{self._frames} frames, pattern {model.pattern_name}{delays}"
            },
        }


def add_to_gap(gap: GapMeter, model: CodecLM, nll: CodeNLL, codes: Tensor, tracks: Tensor) -> None:
    """Add windows [B, K, T] of some recordings [B], and their likelihoods, to a meter; without context if it can."""
    gap.update(nll, tracks, None if model.alone is None else model.alone.nll(codes))


def gathered(gap: GapMeter) -> GapMeter:
    """What the meters of all ranks have read; every rank must call this."""
    meter: GapMeter
    meter, *others = gather_objects(gap)
    for other in others:
        meter.merge(other)
    return meter


def _of_windows(nll: CodeNLL, chosen: Sequence[int]) -> CodeNLL:
    """The likelihoods of some windows of a batch."""
    index = list(chosen)
    return CodeNLL(nll.parallel[index], None if nll.chain is None else nll.chain[index], nll.mask)

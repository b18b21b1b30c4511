"""Bias of the Fréchet distances of a codec on real music: `python -m benchmarks.frechet CHECKPOINT MANIFEST`.

Distances from ever more clips, plain and extrapolated, and of one half of the recordings' clips from the other half,
which is what the number of frames alone makes of two equal laws. Means over random sets of clips.
"""

import functools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audiotok.data import AudioDataset, read_manifest
from audiotok.metrics.frechet import LogMelFrames, Moments, frechet_distance
from audiotok.models.encodec import CompressionModel, EncodecModel

CLIPS, SECONDS, DRAWS = 96, 4.0, 12
Pair = tuple[Moments, Moments]  # of a clip: reference, estimate


@torch.inference_mode()
def moments(model: EncodecModel, manifest: str) -> tuple[list[Pair], list[Pair]]:
    """Of codec vectors and of log-mel frames, for clips spread over all recordings."""
    metas, rate, channels = read_manifest(manifest), model.sample_rate, model.channels
    dataset = AudioDataset(metas, segment_s=SECONDS, sample_rate=rate, channels=channels, num_samples=CLIPS, tile=True)
    frames = LogMelFrames(model.sample_rate)
    codec: list[Pair] = []
    mel: list[Pair] = []

    def vectors(wav: Tensor) -> Tensor:
        return model.decode_latent(model.encode(wav)[0])[0].T

    for index in range(CLIPS):
        segment = dataset[index]
        assert isinstance(segment, Tensor)
        wav = segment[None]
        estimate = model(wav).x
        codec.append((Moments.of(vectors(wav)), Moments.of(vectors(estimate))))
        mel.append((Moments.of(frames(wav[0])), Moments.of(frames(estimate[0]))))
    return codec, mel


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of all."""
    return functools.reduce(Moments.merge, parts)


def distance(pairs: Sequence[Pair]) -> float:
    """Of estimates from references."""
    references, estimates = zip(*pairs, strict=True)
    return frechet_distance(merged(references), merged(estimates))


def extrapolated(pairs: Sequence[Pair]) -> float:
    """The same, to infinitely many clips."""
    return 2 * distance(pairs) - (distance(pairs[::2]) + distance(pairs[1::2])) / 2


def of_halves(pairs: Sequence[Pair]) -> float:
    """Of references from other references."""
    references = [reference for reference, _ in pairs]
    return frechet_distance(merged(references[::2]), merged(references[1::2]))


def main(checkpoint: str, manifest: str) -> None:
    """Print a row for each number of clips."""
    model = CompressionModel.get_pretrained(checkpoint)
    assert isinstance(model, EncodecModel)
    generator = torch.Generator().manual_seed(0)
    for name, pairs in zip(("codec vectors", "log-mel frames"), moments(model, manifest), strict=True):
        whole = merged([reference for reference, _ in pairs])
        scale = float(whole.covariance.trace()) if name == "codec vectors" else 1.0
        print(f"\n{name}: {len(whole.mean)} dimensions\n\n| clips | frames | distance | extrapolated | of halves |")
        print("| --- | --- | --- | --- | --- |")
        for count in (6, 12, 24, 48, 96):
            draws = [[pairs[i] for i in torch.randperm(CLIPS, generator=generator)[:count]] for _ in range(DRAWS)]
            cells = [_mean(measure, draws, scale) for measure in (distance, extrapolated, of_halves)]
            print(f"| {count} | {whole.count * count // CLIPS} |", " | ".join(cells), "|", flush=True)


def _mean(measure: Callable[[Sequence[Pair]], float], draws: list[list[Pair]], scale: float) -> str:
    values = torch.tensor([measure(draw) / scale for draw in draws])
    return f"{float(values.mean()):.4f} ± {float(values.std()):.4f}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

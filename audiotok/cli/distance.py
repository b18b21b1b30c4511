"""`audiotok distance`: Fréchet distance of generated music from a reference, both folders of audio."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiotok.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from audiotok.metrics.embeddings import Embedding


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("distance", help="Fréchet distance between two folders of audio")
    parser.description = (
        "Print the Fréchet distance of the audio below one folder from that below another, with its standard error; "
        "files are independent draws, and may differ in number and length."
    )
    parser.add_argument("generated", type=Path, metavar="GENERATED", help="folder of audio")
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="folder of audio")
    group = parser.add_mutually_exclusive_group()
    text = "`logmel` (default), or a TorchScript (which is code: trust its source) or ONNX file"
    group.add_argument("--embedding", default="logmel", metavar="NAME", help=text)
    group.add_argument("--codec", metavar="CODEC", help="compare the vectors of a codec: //sig/SIG, a file, or demo")
    text = "rate that all audio is brought to (default: that of the embedding; logmel: the lowest of all files)"
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help=text)
    parser.set_defaults(run=_distance)


def _distance(args: argparse.Namespace) -> None:
    from audiotok.metrics.embeddings import FileEmbedding, LogMelEmbedding
    from audiotok.metrics.folder_distance import folder_distance

    rate = args.sample_rate
    if rate is not None and not 1000 <= rate <= 768_000:
        raise ConfigError(f"--sample-rate {rate}: give Hz, from 1000 to 768000.")
    if args.codec and rate is not None:
        raise ConfigError("--sample-rate does nothing with --codec, which has its own rate: leave it out.")
    fixed: Any = _CodecVectors(args.codec) if args.codec else None
    if not args.codec and args.embedding != "logmel":
        fixed = FileEmbedding(args.embedding, rate)

    def embedding(lowest: int) -> "Embedding":
        made: Embedding = fixed or LogMelEmbedding(rate or lowest)
        return made

    distance, generated, reference, used = folder_distance(args.generated, args.reference, embedding)
    print(f"distance   {distance.value:.6g} ± {distance.error:.3g}  ({used.name})")
    dims = len(reference.files[0].mean)
    for name, one, folder in (("generated", generated, args.generated), ("reference", reference, args.reference)):
        resampled = f", {one.resampled} of them resampled" if one.resampled else ""
        print(f"{name}  {len(one.files)} files{resampled}, {one.frames} vectors of {dims} dimensions  ({folder})")
    print(
        f"bias       none to first order: extrapolated to infinitely many files by the jackknife; measured on these "
        f"alone it is {distance.plain:.6g}"
    )


class _CodecVectors:
    """Dequantised code vectors of a codec, in units of the variance of the reference."""

    relative = True

    def __init__(self, name: str) -> None:
        from audiotok.models import CompressionModel

        self.model = CompressionModel.get_pretrained(name)
        self.sample_rate, self.channels = self.model.sample_rate, self.model.channels
        self.name = f"code vectors of {name} at {self.sample_rate} Hz, in units of the reference's variance"

    def __call__(self, wav: "Tensor") -> "Tensor":
        """Vectors [N, D] of audio [C, T]."""
        import torch

        with torch.inference_mode():
            codes, _ = self.model.encode(wav[None])
            return self.model.decode_latent(codes)[0].T

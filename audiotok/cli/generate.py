"""`audiotok generate`: music from a trained language model, from nothing or as the continuation of a file."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from audiotok.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from audiotok.models.encodec import CompressionModel

_MOST_S = 3600.0  # of a clip, which is decoded in one pass


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("generate", help="draw music from a trained language model")
    parser.description = (
        "Draw clips from a language model and write them as audio, and their codes as .npy; a clip depends on the seed "
        "and its number alone."
    )
    parser.add_argument("lm", metavar="LM", help="//sig/SIG of its experiment, or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the clips")
    parser.add_argument("--codec", metavar="CODEC", help="a copy of the codec it was trained with (default: that one)")
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of a clip (default: 10)")
    parser.add_argument("--prompt", type=Path, metavar="FILE", help="audio that the clips go on from")
    text = "how much of its beginning (default: 3, less if the file or half of the clip is shorter)"
    parser.add_argument("--prompt-seconds", type=float, metavar="S", help=text)
    parser.add_argument("--label", metavar="NAME", help="class label, of a model that was trained with labels")
    parser.add_argument("--guidance", type=float, default=1.0, metavar="W", help="with a label; default: 1")
    parser.add_argument("--head", choices=("parallel", "chain"), help="which head draws (default: chain if there is)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="default: 1; 0: the likeliest codes"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest codes; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="from the likeliest of that probability")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="clips at once (default: 16)")
    parser.add_argument("--format", choices=("wav", "flac", "ogg"), default="wav")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from audiotok.models.codec_lm import CodecLM
    from audiotok.models.encodec import CompressionModel
    from audiotok.models.fingerprint import codec_hash
    from audiotok.models.lm import Sampling
    from audiotok.solvers.lm_generation import Drawing
    from audiotok.solvers.samples import save_sample
    from audiotok.utils.device import resolve_device

    for name in ("clips", "seconds", "batch_size"):
        if not getattr(args, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)}: give more than 0.")
    if os.path.isfile(args.out):
        raise DataError(f"--out {args.out} is a file: give a folder.")
    if not args.seconds <= _MOST_S:
        raise ConfigError(f"--seconds {args.seconds:g}: give at most {_MOST_S:g}.")
    if args.prompt_seconds is not None and args.prompt is None:
        raise ConfigError(f"--prompt-seconds {args.prompt_seconds:g} does nothing without --prompt: give a file.")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: give 0 or more.")
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    device = resolve_device(args.device)
    lm = CodecLM.get_pretrained(args.lm, device)
    try:
        codec = CompressionModel.get_pretrained(args.codec or lm.codes.codec, device)
    except CheckpointError as error:
        if args.codec:
            raise
        raise CheckpointError(
            f"the codec of {args.lm} cannot be loaded: {error}; --codec names a copy of it"
        ) from error
    lm.codes.check_codec(codec_hash(codec), args.codec or lm.codes.codec, args.lm)
    if args.label is not None:
        lm.label_ids([args.label])  # refuses one that it does not know, and all without labels
    frames = max(1, round(args.seconds * codec.frame_rate))
    prompt = None if args.prompt is None else _prompt(codec, args.prompt, args.prompt_seconds, args.seconds)
    drawing = Drawing(frames, sampling, args.guidance, args.seed)
    with torch.inference_mode():
        for first in range(0, args.clips, args.batch_size):
            numbers = range(first, min(first + args.batch_size, args.clips))
            codes = drawing(
                lm,
                numbers,
                head=args.head or lm.heads[-1],
                prompt=None if prompt is None else prompt.expand(len(numbers), -1, -1),
                labels=None if args.label is None else [args.label] * len(numbers),
            )
            for number, one, wav in zip(numbers, codes.cpu(), codec.decode(codes).float().cpu(), strict=True):
                path = args.out / f"{number:04d}.{args.format}"
                with _writing(args.out):
                    save_sample(path, wav, codec.sample_rate, strategy="rescale")
                    np.save(path.with_suffix(".npy"), one.numpy().astype(np.uint16))
                print(path, flush=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written to: {error.strerror or error}. Free some space, or choose another folder; the "
            "same command draws the same clips."
        ) from error


def _prompt(codec: "CompressionModel", path: Path, seconds: float | None, clip_s: float) -> "Tensor":
    """Codes [1, K, T] of the beginning of a file."""
    import torch

    from audiotok.data.audio import read_segment

    wanted = min(3.0, clip_s / 2) if seconds is None else seconds
    if not 0 < wanted < clip_s:
        raise ConfigError(f"--prompt-seconds {wanted:g}: give more than 0 and less than the {clip_s:g} s of a clip.")
    samples = max(1, round(wanted * codec.sample_rate))
    wav, _ = read_segment(path, start_s=0.0, n_frames=samples, sample_rate=codec.sample_rate, channels=codec.channels)
    if seconds is not None and wav.shape[-1] < samples:
        raise DataError(f"{path} has {wav.shape[-1] / codec.sample_rate:.3g} s; --prompt-seconds {seconds:g} are more.")
    parameter = next(codec.parameters())
    with torch.inference_mode():
        codes, _ = codec.encode(wav[None].to(parameter.device))
    return codes[..., : max(1, int(wav.shape[-1] / codec.sample_rate * codec.frame_rate))]

"""Turning the tracks of manifests into a token set: reading, encoding, writing, and going on after a kill."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from audiotok import __version__
from audiotok.data.audio import read_segment
from audiotok.data.manifest import AudioMeta, read_manifest
from audiotok.data.token_writer import join, writing
from audiotok.data.tokens import FORMAT, MAX_BINS, TokenSet
from audiotok.errors import ConfigError, DataError
from audiotok.models.encodec import CompressionModel
from audiotok.models.fingerprint import codec_hash

logger = logging.getLogger(__name__)


def tokenize(model: CompressionModel, manifests: Sequence[Path], out: Path, *, codec: str, **options: Any) -> TokenSet:
    """Make the token set of the tracks of some manifests by one codec; go on with one that is begun.

    Args and errors as `tokenize_part`, whose `part` is all. Nothing is done if the set is complete.
    """
    tokens = tokenize_part(model, manifests, out, codec=codec, **options)
    assert tokens is not None
    return tokens


def tokenize_part(
    model: CompressionModel,
    manifests: Sequence[Path],
    out: Path,
    *,
    codec: str,
    label: str | None = None,
    part: tuple[int, int] = (1, 1),
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[float, float], None] | None = None,
) -> TokenSet | None:
    """Make a part of a token set; whoever finishes last joins the parts. None if other parts are not done."""
    header = _header(model, manifests, codec, label)
    metas = _tracks(manifests)
    named = [(str(meta.path), meta.path.parent.name if label == "folder" else None) for meta in metas]
    with writing(out, header, part) as writer:
        if writer is None:
            return TokenSet.open(out)
        done = writer.done()
        for track, meta in enumerate(metas):
            if track in done or track % part[1] != part[0] - 1:
                continue
            try:
                wav, _ = read_segment(
                    meta.path, start_s=0, n_frames=None, sample_rate=model.sample_rate, channels=model.channels
                )
            except DataError as error:
                writer.fail(track, str(error))
                continue
            with torch.inference_mode():
                codes, scale = model.encode(wav[None])
            volume = None if scale is None else float(scale)
            writer.add(track, codes[0], duration=wav.shape[-1] / model.sample_rate, scale=volume)
        return join(out, header, named)


def manifest_hash(path: Path) -> str:
    """SHA-256 of a manifest's file, 64 hex digits; DataError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror or error}).") from error


def _header(model: CompressionModel, manifests: Sequence[Path], codec: str, label: str | None) -> dict[str, Any]:
    """What `tokens.json` says of the whole set."""
    if not 1 <= model.cardinality <= MAX_BINS:
        raise ConfigError(f"{codec} has codes of {model.cardinality} values; a token set holds up to {MAX_BINS}.")
    return {
        "format": FORMAT,
        "program": f"audiotok {__version__}",
        "codec": codec,
        "codec_hash": codec_hash(model),
        "signature": codec.split("//sig/")[-1].strip("/") if "//sig/" in codec else None,
        "frame_rate": model.frame_rate,
        "sample_rate": model.sample_rate,
        "channels": model.channels,
        "n_q": model.num_codebooks,
        "bins": model.cardinality,
        "label": label,
        "window_s": None,
        "manifests": [manifest_hash(path) for path in manifests],
    }


def _tracks(manifests: Sequence[Path]) -> list[AudioMeta]:
    """The tracks of all manifests, each file once."""
    metas = {meta.path: meta for manifest in reversed(manifests) for meta in reversed(read_manifest(manifest))}
    return list(reversed(metas.values()))

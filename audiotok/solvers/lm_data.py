"""Codes for a language model: its codec, the token set of each manifest, made on first use, and loaders over them."""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import flashy
import torch
from omegaconf import DictConfig
from torch import Tensor

from audiotok.data import AudioLoader
from audiotok.data.limits import require_open_files
from audiotok.data.manifest import read_labels
from audiotok.data.tokens import TokenDataset, TokenSet
from audiotok.errors import ConfigError, DataError
from audiotok.files import NoLocksError, hold_lock, is_locked
from audiotok.models.encodec import CompressionModel
from audiotok.models.fingerprint import codec_hash
from audiotok.models.lm import LMModel
from audiotok.models.pretrained import check_trained, find_pretrained
from audiotok.solvers.builders import SPLITS, draws_of, load_split
from audiotok.solvers.settings import settings
from audiotok.tokenizing import manifest_hash, tokenize

logger = logging.getLogger(__name__)

_DIGITS = 16  # of a hash, in the name of a folder
_REPORT_S = 30.0  # between two lines
_PATIENCE_S = 7 * 24 * 3600.0  # for another job that makes the same set; a job's time limit ends sooner


@dataclass
class CodeBatch:
    """Windows of codes [B, K, T] with the number of the track [B] and the class label [B] of each."""

    codes: Tensor
    tracks: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return type(self)(*(one.to(device) for one in (self.codes, self.tracks, self.labels)))


def load_codec(name: str | None, root: Path, device: torch.device) -> CompressionModel:
    """The codec of `compression_model_checkpoint`, in evaluation mode.

    Args:
        name: as `find_pretrained` reads it.
        root: Dora's folder, for signatures.
        device: where to put it.

    Raises:
        CheckpointError: if there is no such codec, or it is an experiment that has not trained to its last epoch.
        ConfigError: if there is no name, or the codec has no codes.
    """
    if not name:
        raise ConfigError(
            "compression_model_checkpoint is not set; give the codec whose codes are modelled: //sig/SIG of an "
            "experiment, //pretrained/PATH of a file, or demo"
        )
    check_trained(name, root)
    codec = CompressionModel.get_pretrained(find_pretrained(name, root), device)
    codec.cardinality  # noqa: B018  refuses a codec without codes
    return codec


def get_token_sets(cfg: DictConfig, codec: CompressionModel, root: Path) -> dict[str, TokenSet]:
    """Token sets of the manifests of all splits, under `tokens` of Dora's folder; those that are missing are made.

    Raises:
        ConfigError: if a split has no manifest.
        DataError: if a manifest or its audio cannot be used, or a set is damaged.
    """
    missing = [f"datasource.{split}" for split in SPLITS if not cfg.datasource[split]]
    if missing:
        raise ConfigError(f"{', '.join(missing)} not set; choose data such as dset=audio/demo (`audiotok data demo`)")
    name, digest = str(cfg.compression_model_checkpoint), codec_hash(codec)
    options = {"batch_size": cfg.tokens.batch_size, "workers": cfg.tokens.num_workers}
    made: dict[str, TokenSet] = {}
    for split in SPLITS:
        manifest = Path(cfg.datasource[split])
        folder = root / "tokens" / f"{digest[:_DIGITS]}-{_place_hash(manifest)[:_DIGITS]}"
        made[split] = _token_set(folder, codec, digest, manifest, name=name, options=options)
    return made


def _token_set(
    folder: Path, codec: CompressionModel, digest: str, manifest: Path, *, name: str, options: dict[str, Any]
) -> TokenSet:
    """The set in a folder, made by the first process that comes; the others wait for it."""
    lock = folder.with_name(f"{folder.name}.lock")
    options = {**options, "codec": name, "progress": _Progress(manifest, name)}
    if is_locked(lock):
        logger.info("waiting for %s: another process makes the codes of %s", folder, manifest)
    try:
        with hold_lock(lock, patience_s=_PATIENCE_S):
            tokenize(codec, [manifest], folder, **options)
    except NoLocksError:
        if flashy.distrib.is_rank_zero():
            tokenize(codec, [manifest], folder, **options)
        flashy.distrib.barrier()
    return TokenSet.open(folder, codec_hash=digest)


def _place_hash(manifest: Path) -> str:
    """Of the content of a manifest and of its folder, for paths in it are seen from there."""
    return hashlib.sha256(f"{manifest_hash(manifest)} {manifest.resolve().parent}".encode(errors="replace")).hexdigest()


class _Progress:
    """Lines in the log while codes are made."""

    def __init__(self, manifest: Path, codec: str) -> None:
        self._what, self._next = f"{manifest} by {codec}", 0.0

    def __call__(self, done_s: float, all_s: float) -> None:
        now = time.monotonic()
        if self._next == 0.0:
            logger.info("encoding %s: %.2f h of audio", self._what, all_s / 3600)
        elif now >= self._next:
            logger.info("encoding %s: %.0f %% done", self._what, 100 * done_s / max(all_s, 1e-9))
        else:
            return
        self._next = now + _REPORT_S


def with_labels(tokens: TokenSet, kind: str | None, manifest: Path) -> TokenSet:
    """A token set with the class labels that `lm.labels` names.

    Args:
        tokens: the set.
        kind: None for no labels, `folder` for that of each track, or a field of the lines of the manifest.
        manifest: of the set.
    """
    fields = read_labels(manifest, kind) if kind not in (None, "folder") else {}
    folders = {path: path.parent.name for path in (Path(one.path) for one in tokens.tracks) if kind == "folder"}
    found = fields | folders
    tracks = [replace(one, label=found.get(Path(one.path))) for one in tokens.tracks]
    return replace(tokens, tracks=tracks, labels=sorted({one.label for one in tracks if one.label is not None}))


def log_counts(tokens: TokenSet) -> Tensor:
    """Logarithms [K, bins] of how often each code occurs, half a time added; of mean 0 for each codebook."""
    counts = torch.zeros(tokens.n_q, tokens.bins, dtype=torch.float64)
    for track in range(len(tokens.tracks)):
        counts += torch.stack([torch.bincount(own, minlength=tokens.bins) for own in tokens.codes(track)])
    logits = (counts + 0.5).log()
    return (logits - logits.mean(dim=1, keepdim=True)).float()


def get_loaders(cfg: DictConfig, sets: dict[str, TokenSet], labels: Sequence[str]) -> dict[str, AudioLoader]:
    """Loaders of windows of codes, `CodeBatch`es, for train, valid and evaluate.

    Raises:
        ConfigError: if a batch cannot be dealt out to the processes.
        DataError: if every track of a split is shorter than a window.
    """
    data = settings(cfg.dataset)
    of_split = {split: {**data, **data[split]} for split in ("train", "valid", "evaluate")}
    require_open_files(sum(options["num_workers"] for options in of_split.values()))
    return {split: _loader(cfg, split, options, sets[split], labels) for split, options in of_split.items()}


def _loader(cfg: DictConfig, split: str, data: dict[str, Any], tokens: TokenSet, labels: Sequence[str]) -> AudioLoader:
    frames, draws = window_frames(data["segment_duration"], tokens.frame_rate), draws_of(cfg, split, data)
    try:
        dataset = TokenDataset(tokens, frames=frames, labels=labels, **draws)
    except DataError as error:
        raise DataError(f"{split} of {cfg.datasource[split]}: {error}") from None
    return load_split(dataset, split, data, collate=collate)


def check_windows(lm: LMModel, split: str, loader: AudioLoader) -> None:
    """ConfigError if windows are so short that the pattern leaves a codebook no code to predict."""
    assert isinstance(loader.dataset, TokenDataset)
    frames = loader.dataset.frames
    pattern = lm.pattern(frames)
    if lacking := [k for k, step in enumerate(pattern.steps[:, 0].tolist(), 1) if step >= pattern.valid_length]:
        raise ConfigError(
            f"windows of {frames} frames of {split}: pattern {lm.pattern_name} delays codebook {lacking[0]} beyond "
            "their end; lower lm.delays, or give a longer dataset.segment_duration"
        )


def window_frames(seconds: float, frame_rate: float) -> int:
    """Frames of a window of codes, at least 1."""
    return max(1, round(seconds * frame_rate))


def collate(items: Sequence[tuple[Tensor, int, int]]) -> CodeBatch:
    """Batch of windows with their tracks and labels."""
    codes, tracks, labels = zip(*items, strict=True)
    return CodeBatch(torch.stack(codes), torch.tensor(tracks), torch.tensor(labels))

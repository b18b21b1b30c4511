"""Codes for a language model: its codec, the token set of each manifest, made on first use, and loaders over them."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import flashy
import torch
from omegaconf import DictConfig
from torch import Tensor

from audiotok.checkpoint import load_checkpoint, resolve_checkpoint
from audiotok.data import AudioLoader, get_loader, read_manifest
from audiotok.data.limits import require_open_files
from audiotok.data.tokens import TokenDataset, TokenSet
from audiotok.errors import CheckpointError, ConfigError, DataError
from audiotok.files import NoLocksError, hold_lock
from audiotok.models.encodec import CompressionModel
from audiotok.models.fingerprint import codec_hash
from audiotok.models.pretrained import configuration_of
from audiotok.solvers.builders import HELD_OUT_SEED, SPLITS
from audiotok.solvers.settings import settings
from audiotok.tokenizing import tokenize

logger = logging.getLogger(__name__)

_DIGITS = 16  # of a hash, in the name of a folder
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
        name: as `resolve_checkpoint` reads it.
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
    path = resolve_checkpoint(name, root)
    if name.startswith("//sig/"):
        _check_trained(name, path)
    codec = CompressionModel.get_pretrained(path, device)
    codec.cardinality  # noqa: B018  refuses a codec without codes
    return codec


def _check_trained(name: str, path: Path) -> None:
    """CheckpointError for an experiment that is still training: its codes would be those of another codec later."""
    state = load_checkpoint(path)
    done, cfg = state.get("history"), configuration_of(state, path)
    epochs = (cfg.get("optim") or {}).get("epochs")
    if isinstance(done, list) and isinstance(epochs, int) and len(done) < epochs:
        raise CheckpointError(
            f"codec {name} is not trained yet: {len(done)} of {epochs} epochs are done; wait for it, or give the "
            f"codec as it is now a name of its own: copy {path} and give //pretrained/COPY"
        )


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
        folder = root / "tokens" / f"{digest[:_DIGITS]}-{_manifest_hash(manifest)[:_DIGITS]}"
        made[split] = _token_set(folder, codec, digest, manifest, name=name, options=options)
    return made


def _token_set(
    folder: Path, codec: CompressionModel, digest: str, manifest: Path, *, name: str, options: dict[str, Any]
) -> TokenSet:
    """The set in a folder, made by the first process that comes; the others wait for it."""
    lock = folder.with_name(f"{folder.name}.lock")
    try:
        with hold_lock(lock, patience_s=_PATIENCE_S):
            tokenize(codec, [manifest], folder, codec=name, **options)
    except NoLocksError:
        if flashy.distrib.is_rank_zero():
            tokenize(codec, [manifest], folder, codec=name, **options)
        flashy.distrib.barrier()
    return TokenSet.open(folder, codec_hash=digest)


def _manifest_hash(path: Path) -> str:
    """Of which recordings a manifest lists, wherever it lies; equal for equal tracks in equal order."""
    entries = ((str(meta.path), meta.duration, meta.sample_rate, meta.channels) for meta in read_manifest(path))
    return hashlib.sha256("\n".join(map(repr, entries)).encode()).hexdigest()


def with_labels(tokens: TokenSet, kind: str | None) -> TokenSet:
    """A token set with the class labels that `lm.labels` names: none, the folder of each track, or its own label."""
    if kind == "tag":
        return tokens
    tracks = [replace(one, label=Path(one.path).parent.name if kind == "folder" else None) for one in tokens.tracks]
    labels = sorted({one.label for one in tracks if one.label is not None})
    return replace(tokens, tracks=tracks, labels=labels)


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
    world_size = flashy.distrib.world_size()
    batch_size, num_samples = data["batch_size"], data["num_samples"]
    if batch_size % world_size:
        found = f"batch size {batch_size} of {split} over {world_size} processes"
        raise ConfigError(f"{found}; choose a multiple of {world_size}")
    if split == "train" and cfg.optim.updates_per_epoch:
        num_samples = cfg.optim.updates_per_epoch * batch_size
    try:
        dataset = TokenDataset(
            tokens,
            frames=window_frames(data["segment_duration"], tokens.frame_rate),
            num_samples=num_samples,
            shuffle=data["shuffle"],
            seed=cfg.seed if split == "train" else HELD_OUT_SEED,
            tile=split == "evaluate",
            labels=labels,
        )
    except DataError as error:
        raise DataError(f"{split} of {cfg.datasource[split]}: {error}") from None
    return get_loader(
        dataset,
        batch_size=batch_size // world_size,
        num_workers=data["num_workers"],
        rank=flashy.distrib.rank(),
        world_size=world_size,
        drop_last=split == "train",
        collate=collate,
    )


def window_frames(seconds: float, frame_rate: float) -> int:
    """Frames of a window of codes, at least 1."""
    return max(1, round(seconds * frame_rate))


def collate(items: Sequence[tuple[Tensor, int, int]]) -> CodeBatch:
    """Batch of windows with their tracks and labels."""
    codes, tracks, labels = zip(*items, strict=True)
    return CodeBatch(torch.stack(codes), torch.tensor(tracks), torch.tensor(labels))

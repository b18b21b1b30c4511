"""Fréchet distance between the audio in two folders, whose files are independent draws."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from audiotok.data.audio import ENCODINGS, AudioInfo, audio_info, read_segment
from audiotok.data.scan import scan_folders
from audiotok.errors import DataError
from audiotok.metrics.embeddings import Embedding
from audiotok.metrics.frechet import Moments, SetDistance, distance_of_sets

logger = logging.getLogger(__name__)

_PIECE_S = 30.0  # of a file at once, at most


@dataclass(frozen=True)
class FolderMoments:
    """What is left of the audio of a folder: moments of each file, and how many files have been resampled."""

    files: Sequence[Moments]
    resampled: int

    @property
    def frames(self) -> int:
        """Vectors in all."""
        return sum(one.count for one in self.files)


def folder_distance(
    generated: Path, reference: Path, embedding: Callable[[int], Embedding]
) -> tuple[SetDistance, FolderMoments, FolderMoments, Embedding]:
    """Fréchet distance of the audio of one folder from that of another, which may hold other numbers of files.

    Files are read in equal pieces of up to 30 s. Those that cannot be used are left out, with the reasons in the log.

    Args:
        generated: folder of generated audio, looked through recursively.
        reference: folder of what it is compared with.
        embedding: makes an embedding, given the lowest sample rate of all files in Hz.

    Returns:
        The distance, what it is made of, and the embedding.

    Raises:
        DataError: if a folder holds less than two files that can be used, or too few frames.
    """
    files = [_audio_of(folder) for folder in (generated, reference)]
    chosen = embedding(min(info.sample_rate for found in files for info in found.values()))
    first, second = _moments(generated, files[0], chosen), _moments(reference, files[1], chosen)
    dims = {len(one.mean) for one in (*first.files, *second.files)}
    if len(dims) > 1:
        raise DataError(f"vectors of {sorted(dims)} dimensions from {chosen.name}; all have to have as many")
    return distance_of_sets(first.files, second.files, relative=chosen.relative), first, second, chosen


def _audio_of(folder: Path) -> dict[Path, AudioInfo]:
    """Audio files below a folder that can be read; DataError if there is none."""
    found: dict[Path, AudioInfo] = {}
    problems: list[str] = []
    for path in scan_folders([folder], ENCODINGS).found:
        try:
            found[path] = audio_info(path)
        except DataError as error:
            problems.append(str(error))
    _log(folder, problems)
    if not found:
        raise DataError(f"{folder} holds no audio that can be read ({', '.join(ENCODINGS)}).")
    return found


def _moments(folder: Path, files: dict[Path, AudioInfo], embedding: Embedding) -> FolderMoments:
    moments: list[Moments] = []
    problems: list[str] = []
    resampled = 0
    for path, info in files.items():
        try:
            moments.append(_of_file(path, info, embedding))
            resampled += info.sample_rate != embedding.sample_rate
        except DataError as error:
            problems.append(str(error))
    _log(folder, problems)
    if len(moments) < 2:
        why = f": {problems[0]}" if problems else ""
        raise DataError(f"{folder} has {len(moments)} files that can be compared, two or more are needed{why}")
    return FolderMoments(moments, resampled)


def _of_file(path: Path, info: AudioInfo, embedding: Embedding) -> Moments:
    pieces = math.ceil(info.duration_s / _PIECE_S)
    samples = math.ceil(info.duration_s / pieces * embedding.sample_rate)
    found: Moments | None = None
    for index in range(pieces):
        wav, _ = read_segment(
            path,
            start_s=index * samples / embedding.sample_rate,
            n_frames=samples,
            sample_rate=embedding.sample_rate,
            channels=embedding.channels,
        )
        vectors = embedding(wav)
        if not torch.isfinite(vectors).all():
            raise DataError("vectors that are not finite")
        one = Moments.of(vectors)
        if found is not None and len(found.mean) != len(one.mean):
            raise DataError(f"vectors of {len(found.mean)} and of {len(one.mean)} dimensions")
        found = one if found is None else found.merge(one)
    assert found is not None
    return found


def _log(folder: Path, problems: Sequence[str]) -> None:
    """A line for each reason for which files of a folder are left out."""
    for reason, count in Counter(problems).most_common(10):
        logger.warning("%s: left out %d file%s: %s", folder, count, "s" * (count > 1), reason)

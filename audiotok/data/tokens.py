"""Token sets: the codes of whole tracks by one codec, in a folder that is read through memory maps.

`tokens.json`, written last, says what codec made them and where each track lies; the shards beside it are raw unsigned
16-bit numbers (little-endian), the codes of a frame side by side: time by time, `n_q` numbers each. A folder without
`tokens.json` is no token set, or one that is still being made (`audiotok.data.token_writer`).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from audiotok.errors import ConfigError, DataError, one_line
from audiotok.files import UnreadableError, is_file_in, load_json
from audiotok.text import number_in

logger = logging.getLogger(__name__)

FORMAT = 1
NAME = "tokens.json"
MAKING = "making"  # folder with the state of a set that is not finished
CODE = np.dtype("<u2")
MAX_BINS = 1 << 16
HINT = "Make it with `audiotok tokenize CODEC MANIFEST --out DIR`."
MAX_JSON = 1 << 28  # bytes; a million tracks
MAX_N_Q = 1 << 10
_MAX_FRAMES = 1 << 40
TokenItem: TypeAlias = tuple[Tensor, int, int]


@dataclass(frozen=True, slots=True)
class TokenTrack:
    """One track of a token set.

    Args:
        path: of its audio file, when the set was made.
        duration: in seconds.
        frames: of its codes.
        label: None without one.
        shard, start: the number of its shard, and its first frame there.
        scale: its volume, of codecs that renormalise: decode takes it; None of others.
    """

    path: str
    duration: float
    frames: int
    label: str | None
    shard: int = 0
    start: int = 0
    scale: float | None = None


@dataclass(frozen=True)
class TokenSet:
    """The codes of tracks by one codec; made by `open`.

    Args:
        folder: where it lies.
        codec, codec_hash, signature: the codec as it was named, `audiotok.models.fingerprint.codec_hash`, and the
            signature of its experiment (None if it was none).
        frame_rate, sample_rate, channels: of the codes in Hz, and of the audio that they stand for.
        n_q, bins: codebooks, and values of a code.
        tracks: in the order of the manifests.
        labels: of the tracks, sorted, each once.
        shards: names of the files, and their frames.
    """

    folder: Path
    codec: str
    codec_hash: str
    signature: str | None
    frame_rate: float
    sample_rate: int
    channels: int
    n_q: int
    bins: int
    tracks: Sequence[TokenTrack]
    labels: list[str]
    shards: Sequence[tuple[str, int]] = ()
    _maps: dict[int, NDArray[np.uint16]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | Path, *, codec_hash: str | None = None) -> "TokenSet":
        """Open a token set; the codes are read when they are used.

        Args:
            folder: with its `tokens.json`.
            codec_hash: of the codec that it must be of; None for any.

        Raises:
            DataError: if there is none, it is damaged, truncated, empty or of another version, or of another codec.
        """
        tokens = _parse(Path(folder))
        if codec_hash is not None and codec_hash != tokens.codec_hash:
            raise DataError(
                f"{folder} holds tokens of another codec ({tokens.codec!r}, hash {tokens.codec_hash[:12]}, not "
                f"{codec_hash[:12]}): its codes mean nothing to this one. {HINT}"
            )
        return tokens

    def codes(self, track: int, start: int = 0, frames: int | None = None) -> Tensor:
        """Codes [K, T] int64 of a track, from a frame on; of all the rest without `frames`.

        Raises:
            DataError: if there is no such track or stretch, or the codes are not those of `bins` values.
        """
        if not 0 <= track < len(self.tracks):
            raise DataError(f"{self.folder}: no track {track}; it has {len(self.tracks)}.")
        entry = self.tracks[track]
        count = entry.frames - start if frames is None else frames
        if start < 0 or count < 0 or start + count > entry.frames:
            raise DataError(
                f"{self.folder}: no frames {start} to {start + count} in track {track}, {one_line(entry.path)}, which "
                f"has {entry.frames}."
            )
        first = entry.start + start
        shard = self._shard(entry.shard)
        # Reading a map beyond the end of a file that has become shorter would kill the process (SIGBUS).
        _check_size(self.folder / self.shards[entry.shard][0], shard.nbytes)
        codes = shard[first : first + count].T.astype(np.int64)
        if codes.size and codes.max() >= self.bins:
            raise DataError(
                f"{self.folder / self.shards[entry.shard][0]}: code {codes.max()} in track {track}; codes of this set "
                f"stay below {self.bins}. The file has changed since it was written: make the set again."
            )
        return torch.from_numpy(codes)

    def _shard(self, index: int) -> NDArray[np.uint16]:
        """A shard [frames, K], mapped on its first use in this process."""
        if index not in self._maps:
            name, frames = self.shards[index]
            _check_shard(self.folder, name, frames, self.n_q)
            try:
                self._maps[index] = np.memmap(self.folder / name, CODE, "r", shape=(frames, self.n_q))
            except (OSError, ValueError) as error:
                raise DataError(f"{self.folder / name} cannot be read: {error}. {HINT}") from error
        return self._maps[index]

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, whose contents would travel to data workers."""
        return {**self.__dict__, "_maps": {}}


class TokenDataset(Dataset[TokenItem]):
    """Windows (codes [K, T] int64, track, label) of a token set.

    A window is a function of (seed, epoch, index) alone, as the segments of `AudioDataset`: a track drawn in
    proportion to its frames, then a start. The label is an index into `labels`; `len(labels)` where a track has none.

    Args:
        tokens: the set.
        frames: T.
        num_samples: windows per epoch, over all processes together; None: as many as the tracks hold.
        shuffle: draw anew in each epoch; otherwise all epochs are the same.
        seed: 0 or more.
        tile: windows that lie end to end from the start of each track, in order, the same in every epoch; what is left
            at a track's end is shorter than a window and left out. `num_samples` takes some of them, evenly spread.
        labels: those that a label may be; None: those of the set.

    Raises:
        ConfigError: for a value out of its range.
        DataError: if no track has as many frames, or a track has a label that is not among `labels`.
    """

    def __init__(
        self,
        tokens: TokenSet,
        *,
        frames: int,
        num_samples: int | None,
        shuffle: bool,
        seed: int,
        tile: bool = False,
        labels: Sequence[str] | None = None,
    ) -> None:
        if frames < 1 or seed < 0 or (num_samples is not None and num_samples < 1):
            raise ConfigError(
                f"windows of {frames} frames, {num_samples} an epoch, seed {seed}: expected 1 or more, 1 or more or "
                "null, and 0 or more."
            )
        self.tokens, self.frames, self.shuffle, self.seed, self.epoch = tokens, frames, shuffle, seed, 0
        self.labels = list(tokens.labels if labels is None else labels)
        counts = np.array([track.frames for track in tokens.tracks])
        self._used = np.flatnonzero(counts >= frames)
        if not len(self._used):
            raise DataError(
                f"{tokens.folder}: a window has {frames} frames ({frames / tokens.frame_rate:.3g} s), more than every "
                f"track: the longest has {counts.max()}. Make windows shorter."
            )
        if len(self._used) < len(counts):
            left = len(counts) - len(self._used)
            logger.warning("%s: left out %d of %d tracks: shorter than a window", tokens.folder, left, len(counts))
        self._label_of = self._indices_of_labels()
        self._room = counts[self._used] - frames
        self._tiles = _tiles(self._used, self._room // frames + 1, frames, num_samples) if tile else None
        if self._tiles is not None:
            self.num_samples = len(self._tiles)
        else:
            self._cumulative = np.cumsum(counts[self._used])
            self.num_samples = num_samples or int(self._cumulative[-1]) // frames

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0 or more) of the windows; before iterating over a loader, not during."""
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch, in order: windows are random anyway."""
        return list(range(self.num_samples))

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: int | tuple[int, int]) -> TokenItem:
        """The window of an index, or of an (epoch, index) pair as a loader sends it to its workers."""
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index {index} of a dataset of {self.num_samples} windows")
        if self._tiles is not None:
            track, start = (int(value) for value in self._tiles[index])
        else:
            # Of its own for each index: a draw depends neither on the worker nor on the draws before.
            rng = np.random.default_rng((self.seed, epoch if self.shuffle else 0, index))
            place = int(np.searchsorted(self._cumulative, rng.integers(self._cumulative[-1]), side="right"))
            track, start = int(self._used[place]), int(rng.integers(self._room[place] + 1))
        return self.tokens.codes(track, start, self.frames), track, self._label_of[track]

    def _indices_of_labels(self) -> list[int]:
        """Of every track: the place of its label."""
        places: dict[str | None, int] = {label: index for index, label in enumerate(self.labels)}
        places[None] = len(self.labels)
        for index in self._used:
            track = self.tokens.tracks[int(index)]
            if track.label not in places:
                known = ", ".join(self.labels[:20]) or "none"
                raise DataError(
                    f"{self.tokens.folder}: {one_line(track.path)} has label {track.label!r}, which is not among those "
                    f"of training: {known}. Leave its tracks out of the manifest, or train with it."
                )
        return [places.get(track.label, places[None]) for track in self.tokens.tracks]


def _tiles(tracks: NDArray[np.int64], counts: NDArray[np.int64], frames: int, most: int | None) -> NDArray[np.int64]:
    """Track and first frame of windows that lie end to end, [N, 2]; at most so many, evenly spread."""
    ends = np.cumsum(counts)
    total = int(ends[-1])
    count = min(total, most or total)
    chosen = np.array([(2 * i + 1) * total // (2 * count) for i in range(count)])
    which = np.searchsorted(ends, chosen, side="right")
    return np.stack([tracks[which], (chosen - (ends - counts)[which]) * frames], axis=1)


def _parse(folder: Path) -> TokenSet:
    """A token set as its `tokens.json` describes it, checked against its shards."""
    path = folder / NAME
    try:
        content: dict[str, Any] = load_json(path, limit=MAX_JSON)
    except (FileNotFoundError, NotADirectoryError):
        made = "; it is not finished: repeat the command that makes it" if (folder / MAKING).exists() else ""
        raise DataError(f"{folder} holds no {NAME}{made}. {HINT}") from None
    except UnreadableError as error:
        raise DataError(f"{path} cannot be read: {error.reason}. {HINT}") from error
    if content.get("format") != FORMAT:
        raise DataError(f"{path} has format {content.get('format')!r}; this version of audiotok reads {FORMAT}. {HINT}")
    values = _Values(path, content)
    n_q = values.whole("n_q", 1, MAX_N_Q)
    shards = [(each.text("file"), each.whole("frames", 0, _MAX_FRAMES)) for each in values.rows("shards")]
    for name, frames in shards:
        _check_shard(folder, name, frames, n_q)
    tracks = [_track(each, shards) for each in values.rows("tracks")]
    if not tracks:
        raise DataError(f"{path} names no tracks: the token set is empty. {HINT}")
    if twice := [name for name, count in Counter(track.path for track in tracks).most_common(1) if count > 1]:
        raise DataError(f"{path} names the track {twice[0][:200]} twice; each recording counts once. {HINT}")
    return TokenSet(
        folder=folder.absolute(),  # maps are made later, perhaps from another current folder
        codec=values.text("codec"),
        codec_hash=values.text("codec_hash"),
        signature=values.text_or_none("signature"),
        frame_rate=values.number("frame_rate", 1e-3, 1e6),
        sample_rate=values.whole("sample_rate", 1, 10**8),
        channels=values.whole("channels", 1, 1024),
        n_q=n_q,
        bins=values.whole("bins", 1, MAX_BINS),
        tracks=tracks,
        labels=sorted({track.label for track in tracks if track.label is not None}),
        shards=shards,
    )


def _track(values: "_Values", shards: Sequence[tuple[str, int]]) -> TokenTrack:
    shard = values.whole("shard", 0, len(shards) - 1)
    frames, start = values.whole("frames", 1, _MAX_FRAMES), values.whole("start", 0, _MAX_FRAMES)
    if start + frames > shards[shard][1]:
        raise DataError(
            f"{values.where}: frames {start} to {start + frames} lie beyond the {shards[shard][1]} of "
            f"{shards[shard][0]}. {HINT}"
        )
    scale = values.content.get("scale")
    return TokenTrack(
        path=values.text("path"),
        duration=values.number("duration", 0, 1e9),
        frames=frames,
        label=values.text_or_none("label"),
        shard=shard,
        start=start,
        scale=None if scale is None else values.number("scale", 0, 1e9),
    )


def _check_shard(folder: Path, name: str, frames: int, n_q: int) -> None:
    """Check that a shard is a file of the folder, and long enough; what a killed process added may follow."""
    path = folder / name
    if Path(name).name != name or not is_file_in(folder, path):
        raise DataError(f"{folder / NAME} names the shard {name!r}, which is no file of its folder. {HINT}")
    _check_size(path, frames * n_q * CODE.itemsize)


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. {HINT}") from error
    if size < expected:
        raise DataError(
            f"{path} has {size} bytes, not {expected}: it is truncated or of another set. Remove {path.parent} and "
            "make the set again."
        )


class _Values:
    """Values of a JSON object, checked: kind and range."""

    def __init__(self, where: object, content: Mapping[str, Any]) -> None:
        self.where, self.content = where, content

    def whole(self, name: str, least: int, most: int) -> int:
        value = self.content.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(name, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float) -> float:
        value = number_in(self.content, name)
        if value is None or not least <= value <= most:
            raise self._wrong(name, f"a number from {least:g} to {most:g}")
        return value

    def text(self, name: str) -> str:
        value = self.content.get(name)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, "a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self.content.get(name) is None else self.text(name)

    def rows(self, name: str) -> list["_Values"]:
        value = self.content.get(name)
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self._wrong(name, "a list of objects")
        return [_Values(f"{self.where}, {name}[{index}]", each) for index, each in enumerate(value)]

    def _wrong(self, name: str, allowed: str) -> DataError:
        found = repr(self.content.get(name))[:60]
        return DataError(f"{self.where}: {name}={found}; expected {allowed}. {HINT}")

"""Turning the tracks of manifests into a token set: reading, encoding, writing, and going on after a kill.

Tracks of about the same length go side by side through the encoder, a window of each at a time
(`audiotok.models.windows`), while threads read and resample the next windows: libsndfile and the resampling work
without the interpreter's lock.
"""

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiotok import __version__
from audiotok.data.audio import audio_info, read_at
from audiotok.data.manifest import AudioMeta, manifest_file, read_labels, read_manifest
from audiotok.data.token_writer import TokenWriter, join, writing
from audiotok.data.tokens import FORMAT, MAX_BINS, TokenSet
from audiotok.errors import ConfigError, DataError
from audiotok.models.encodec import CompressionModel
from audiotok.models.fingerprint import codec_hash
from audiotok.models.windows import Lane, WindowEncoder

logger = logging.getLogger(__name__)

WINDOW_S = 10.0
BATCH_SIZE = {"cpu": 4, "cuda": 16}  # tracks side by side; 64 filters at 32 kHz take about 0.3 GB each
_SILENCE = 1e-8  # as in `EncodecModel`
_AHEAD = 3  # steps of which the audio is read before they are encoded
Progress = Callable[[float, float], None]


@dataclass(slots=True)
class Statistics:
    """What a call did: tracks and their seconds, and where the time went."""

    tracks: int = 0
    audio_s: float = 0.0
    frames: int = 0
    failed: int = 0
    elapsed_s: float = 0.0
    encoding_s: float = 0.0  # of elapsed_s
    encoding_cpu_s: float = 0.0  # of the encoding thread


def tokenize(model: CompressionModel, manifests: Sequence[Path], out: Path, *, codec: str, **options: Any) -> TokenSet:
    """Make the token set of the tracks of some manifests; see `tokenize_part`, of which this makes all parts."""
    tokens = tokenize_part(model, manifests, out, codec=codec, **options)
    if tokens is None:  # options hold a part
        raise ConfigError(f"{out} is not complete: other parts are not done. Make them, or leave out `part`.")
    return tokens


def tokenize_part(
    model: CompressionModel,
    manifests: Sequence[Path],
    out: Path,
    *,
    codec: str,
    label: str | None = None,
    part: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
    window_s: float = WINDOW_S,
    workers: int = 2,
    progress: Progress | None = None,
    statistics: Statistics | None = None,
) -> TokenSet | None:
    """Make a part of a token set; whoever finishes last joins the parts.

    Goes on with a set that is begun, and does nothing if it is complete. A track that cannot be read is named and left
    out, unless there are too many of them.

    Args:
        model: the codec, on its device.
        manifests: of the tracks; a file in several of them counts once.
        out: folder of the set; made if it is missing.
        codec: the name of the codec for those who read the set, such as //sig/SIG.
        label: "folder" for the name of each track's folder, or a field of the manifests' lines; None for no labels.
        part: number of this part and of all, from 1 up: parts can be made side by side.
        batch_size: tracks encoded side by side; None: by the device.
        window_s: length of the windows in which tracks are encoded; does not change the codes, see
            `audiotok.models.windows` for models where it does.
        workers: threads that read.
        progress: called with the seconds of audio done and those to do.
        statistics: filled in.

    Returns:
        The set; None if other parts are not done.

    Raises:
        ConfigError: if the codec has no codes that 16 bits hold, is not trained, or an option is out of its range.
        DataError: if a manifest cannot be read, the folder holds something else, or too many tracks are unreadable.
    """
    _check(part, batch_size, workers)
    encoder = WindowEncoder(model, window_s)
    metas = _tracks(manifests)
    header = _header(encoder, model, manifests, codec, label, window_s)
    labels = _labels(metas, manifests, label)
    stats = statistics or Statistics()
    with writing(out, header, part) as writer:
        if writer is None:
            return TokenSet.open(out)
        done = writer.done()
        todo = [track for track in _share([meta.duration for meta in metas], part) if track not in done]
        size = batch_size or BATCH_SIZE["cuda" if encoder.device.type == "cuda" else "cpu"]
        _Run(encoder, writer, metas, stats, progress).encode(todo, size, workers)
        return join(out, header, [(str(meta.path), labels.get(meta.path)) for meta in metas])


def manifest_hash(path: Path) -> str:
    """SHA-256 of a manifest's file, 64 hex digits; DataError if it cannot be read."""
    try:
        return hashlib.sha256(manifest_file(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror or error}).") from error


@dataclass(slots=True)
class _Track:
    """A track that is being encoded."""

    index: int
    meta: AudioMeta
    lane: Lane
    windows: int
    grid: int  # samples between two places at which the reader can begin
    samples: int = 0  # encoded so far
    ended: bool = False


class _Run:
    """Encodes tracks and writes them down."""

    def __init__(
        self,
        encoder: WindowEncoder,
        writer: TokenWriter,
        metas: Sequence[AudioMeta],
        stats: Statistics,
        progress: Progress | None,
    ) -> None:
        self.encoder, self.writer, self.metas = encoder, writer, metas
        self.stats, self._progress = stats, progress
        self._rate, self._channels = encoder.model.sample_rate, encoder.model.channels
        self._total_s = self._done_s = 0.0

    def encode(self, todo: Sequence[int], batch_size: int, workers: int) -> None:
        """Encode tracks, those of about the same length side by side."""
        started = time.perf_counter()
        todo = sorted(todo, key=lambda index: -self.metas[index].duration)
        self._total_s = sum(self.metas[index].duration for index in todo)
        groups = [todo[first : first + batch_size] for first in range(0, len(todo), batch_size)]
        pool = ThreadPoolExecutor(workers)
        try:
            for tracks, parts in self._read_ahead(groups, pool):
                self._step(tracks, parts)
        finally:  # Ctrl-C, too: what is being read ends, what waits does not begin
            pool.shutdown(cancel_futures=True)
            self.stats.elapsed_s += time.perf_counter() - started

    def _read_ahead(
        self, groups: Sequence[Sequence[int]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[_Track], list["Future[Tensor]"]]]:
        """The next window of each track of a group, read some steps ahead."""
        waiting = deque[tuple[list[_Track], list[Future[Tensor]]]]()
        for group in groups:
            tracks = list[_Track]()
            for index, opened in zip(group, pool.map(self._open, group), strict=True):
                if isinstance(opened, DataError):
                    self._fail(index, opened)
                else:
                    tracks.append(opened)
            for window in range(max((track.windows for track in tracks), default=0)):
                now = [track for track in tracks if window < track.windows and not track.ended]
                waiting.append((now, [pool.submit(self._read, track, window) for track in now]))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _open(self, index: int) -> _Track | DataError:
        """Begin a track: its length, and its volume if the model divides by it."""
        meta = self.metas[index]
        try:
            info = audio_info(meta.path)
            windows = self.encoder.windows(math.ceil(info.frames * self._rate / info.sample_rate))
            grid = self._rate // math.gcd(self._rate, info.sample_rate)
            track = _Track(index, meta, self.encoder.begin(), windows, grid)
            if self.encoder.per_signal_scale:
                track.lane.scale = self._volume(track)
        except DataError as error:
            return error
        return track

    def _read(self, track: _Track, window: int) -> Tensor:
        """Samples [C, T] of a window, with its context; to the track's end if it is the last."""
        start, count = self.encoder.span(window)
        return self._samples(track, start, None if window == track.windows - 1 else count)

    def _samples(self, track: _Track, start: int, count: int | None) -> Tensor:
        """Samples [C, at most count] of a track from a sample of the model's rate on."""
        options = {"sample_rate": self._rate, "channels": self._channels}
        return read_at(track.meta.path, start, count, grid=track.grid, **options)

    def _volume(self, track: _Track) -> float:
        """Root mean square of the mean of all channels, over the whole track, as the model takes it in one pass."""
        total, samples, block = 0.0, 0, self.encoder.frames * self.encoder.hop
        for window in range(track.windows):
            wav = self._samples(track, window * block, None if window == track.windows - 1 else block)
            total += float(wav.double().mean(dim=0).pow(2).sum())
            samples += wav.shape[1]
        return math.sqrt(total / max(samples, 1)) + _SILENCE

    def _step(self, tracks: Sequence[_Track], parts: Sequence["Future[Tensor]"]) -> None:
        """Encode a window of each track, and write down those that end with it."""
        now, wavs = list[_Track](), list[Tensor]()
        for track, part in zip(tracks, parts, strict=True):
            if track.ended:
                continue
            try:
                wavs.append(part.result())
                now.append(track)
            except DataError as error:
                track.ended = True
                self._fail(track.index, error)
        # A file may end some packets before its header's end, and with it the track.
        last = [
            track.lane.window == track.windows - 1 or wav.shape[1] < self.encoder.span(track.lane.window)[1]
            for track, wav in zip(now, wavs, strict=True)
        ]
        started, cpu = time.perf_counter(), time.thread_time()
        if now:
            firsts = [self.encoder.span(track.lane.window)[0] for track in now]
            try:
                self.encoder.step([track.lane for track in now], wavs, last)
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"{len(now)} tracks side by side exceed the memory of the device: lower the batch size or the "
                    "window; the same command then goes on."
                ) from error
            for track, wav, first in zip(now, wavs, firsts, strict=True):
                track.samples = first + wav.shape[1]
        codes = [track.lane.all_codes() if ends else None for track, ends in zip(now, last, strict=True)]
        self.stats.encoding_s += time.perf_counter() - started
        self.stats.encoding_cpu_s += time.thread_time() - cpu
        for track, each in zip(now, codes, strict=True):
            if each is not None:
                self._finish(track, each)
        self._tell(now)

    def _finish(self, track: _Track, codes: Tensor) -> None:
        track.ended = True
        duration = track.samples / self._rate
        self.writer.add(track.index, codes, duration=duration, scale=track.lane.scale)
        self.stats.tracks += 1
        self.stats.audio_s += duration
        self.stats.frames += codes.shape[1]

    def _fail(self, index: int, error: DataError) -> None:
        self.writer.fail(index, str(error))
        self.stats.failed += 1

    def _tell(self, now: Sequence[_Track]) -> None:
        for track in now:
            if not track.ended:
                self._done_s += self.encoder.frames * self.encoder.hop / self._rate
            else:
                self._done_s += max(0.0, track.meta.duration - self.encoder.span(track.windows - 1)[0] / self._rate)
        if self._progress is not None:
            self._progress(min(self._done_s, self._total_s), self._total_s)


def _header(
    encoder: WindowEncoder,
    model: CompressionModel,
    manifests: Sequence[Path],
    codec: str,
    label: str | None,
    window_s: float,
) -> dict[str, Any]:
    """What `tokens.json` says of the whole set."""
    if not 1 <= model.cardinality <= MAX_BINS:
        raise ConfigError(f"{codec} has codes of {model.cardinality} values; a token set holds up to {MAX_BINS}.")
    if not getattr(getattr(model, "quantizer", None), "ready", True):
        raise ConfigError(f"{codec} is not trained: its codebooks are empty. Train it first.")
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
        "window_s": None if encoder.exact else window_s,
        "manifests": [manifest_hash(path) for path in manifests],
    }


def _tracks(manifests: Sequence[Path]) -> list[AudioMeta]:
    """The tracks of all manifests, each file once."""
    metas = dict[Path, AudioMeta]()
    for manifest in manifests:
        for meta in read_manifest(manifest):
            metas.setdefault(meta.path, meta)
    return list(metas.values())


def _labels(metas: Sequence[AudioMeta], manifests: Sequence[Path], label: str | None) -> dict[Path, str]:
    if label is None:
        return {}
    if label == "folder":
        return {meta.path: meta.path.parent.name for meta in metas}
    labels = dict[Path, str]()
    for manifest in reversed(manifests):
        labels |= read_labels(manifest, label)
    if not labels:
        names = ", ".join(map(str, manifests))
        raise DataError(f"no line of {names} has the field {label!r}; --label names one, or is `folder`.")
    return labels


def _share(durations: Sequence[float], part: tuple[int, int]) -> list[int]:
    """Tracks of a part: the longest first to the part that has least, so that all have about as much."""
    number, count = part
    if count == 1:
        return list(range(len(durations)))
    loads, mine = [0.0] * count, list[int]()
    for index in sorted(range(len(durations)), key=lambda index: (-durations[index], index)):
        least = min(range(count), key=loads.__getitem__)
        loads[least] += durations[index] + 1e-3  # tracks of no length are dealt out, too
        if least == number - 1:
            mine.append(index)
    return mine


def _check(part: tuple[int, int], batch_size: int | None, workers: int) -> None:
    if not 1 <= part[0] <= part[1]:
        raise ConfigError(f"part {part[0]} of {part[1]}: expected I/N with I from 1 to N, such as 1/4.")
    if workers < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError(f"workers={workers}, batch size {batch_size}: expected 1 or more.")

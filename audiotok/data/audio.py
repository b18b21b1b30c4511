"""Reading, writing and converting audio files.

soundfile (libsndfile) decodes and encodes wav, flac, ogg/vorbis, opus and mp3. Its seeks are exact to the sample (a
test holds them against full decodes) but in mp3, which `audiotok.data.mp3` reads by its frames, and at the end of
ogg: a segment is read by one seek and costs no more than its own length. `audiotok.data.headers` checks the length
in a file's header.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from audiotok.data.headers import Patched, last_page, patch_header
from audiotok.data.limits import require_a_file
from audiotok.data.mp3 import mp3_length, open_mp3
from audiotok.data.opus import open_opus
from audiotok.data.resample import is_direct, reach, resample, resample_at
from audiotok.errors import DataError
from audiotok.files import replacing

logger = logging.getLogger(__name__)

# Container and default sample encoding of each extension that can be written (and is read).
ENCODINGS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_SHORT_READ_S = 0.1  # a file may end this much before its header's end: mp3 and ogg ones are sometimes a packet off
# Beyond it, samples are refused. Masters in float may pass full scale (1) by some decibels, never by 24; integers that
# were stored as floats without dividing by their range (128, 32768, 8388608), and damaged samples, lie beyond it.
MAX_PEAK = 16.0
WRITE_BLOCK = 1 << 16  # frames: libsndfile overflows its stack on a very long one-shot vorbis write

_MIN_RATE, _MAX_RATE = 1000, 768_000  # Hz; others are damaged headers

ClipStrategy = Literal["clip", "rescale", "none"]


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """Header of an audio file; `frames` counts samples per channel."""

    duration_s: float
    sample_rate: int
    channels: int
    frames: int


def audio_info(path: str | Path) -> AudioInfo:
    """Length and kind of an audio file, without decoding it.

    The header is checked against the size of the file, its last frame (flac) or its pages (ogg); only an mp3 whose
    length its first frame does not give is walked frame by frame.

    Raises:
        DataError: if it is missing, is not audio, holds no samples, is cut off, or holds several streams.
    """
    with _open_file(Path(path)) as handle:
        rate, frames = int(handle.samplerate), int(handle.frames)
        if handle.format == "MP3":
            frames = mp3_length(Path(path))
        _check_frames(path, frames)
        return AudioInfo(frames / rate, rate, int(handle.channels), frames)


def read_audio(
    path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None, pad: bool = False
) -> tuple[torch.Tensor, int]:
    """Decode a file, or a part of it, at its own rate.

    Args:
        path: wav, flac, ogg, opus or mp3 file.
        start_s: where to start, in seconds, rounded to the nearest frame.
        duration_s: how much to read, in seconds; None reads to the end.
        pad: append zeros where the file ends before `duration_s`; otherwise the result is shorter.

    Returns:
        wav [C, T] float32 (full scale is 1) and its sample rate in Hz.

    Raises:
        DataError: if the file cannot be read, or starts after its end, or is cut off, or holds NaN, infinity or
            samples beyond `MAX_PEAK`.
    """
    if start_s < 0 or (duration_s is not None and duration_s < 0):
        raise DataError(f"{path}: cannot read from {start_s} s for {duration_s} s: use values of 0 or more.")
    with _open_audio(path) as handle:
        rate = handle.rate
        frames = None if duration_s is None else round(duration_s * rate)
        wav = _read_frames(handle, round(start_s * rate), frames)
    if pad and frames is not None:
        wav = F.pad(wav, (0, frames - wav.shape[-1]))
    return wav.contiguous(), rate


def read_segment(
    path: str | Path, *, start_s: float, n_frames: int | None, sample_rate: int, channels: int
) -> tuple[torch.Tensor, float]:
    """Read a segment so that it equals the same stretch of the whole file, resampled.

    Args:
        path: audio file.
        start_s: where to start, in seconds; moved back to the grid on which source and target frames coincide (every 3
            frames from 48 to 32 kHz, 10 ms from 44.1), or where that is coarse, to the grid of `sample_rate`.
        n_frames: length at `sample_rate`; None reads to the end.
        sample_rate: of the result, in Hz.
        channels: of the result.

    Returns:
        wav [channels, at most n_frames] (fewer where the file ends) and the true start in seconds.

    Raises:
        DataError: if the file cannot be read, has ended before `start_s`, or has channels that cannot be mixed.
    """
    with _open_audio(path) as handle:
        rate = handle.rate
        if is_direct(rate, sample_rate):
            return _segment_at(handle, int(start_s * sample_rate), n_frames, sample_rate, channels)
        step, step_out = Fraction(rate, sample_rate).as_integer_ratio()
        first = int(start_s * rate) // step
        # At the ends of what it gets, the filter sees zeros instead of audio: read more, and cut it off.
        margin = math.ceil(reach(rate, sample_rate) / step)
        lead = min(first, margin)
        blocks = None if n_frames is None else (lead + math.ceil(n_frames / step_out) + margin) * step
        source = _read_frames(handle, (first - lead) * step, blocks)
    wav = convert_audio(source, rate, sample_rate, channels)[:, lead * step_out :]
    if wav.shape[-1] == 0:
        raise DataError(f"{path}: has ended before {start_s:.3f} s. Run `audiotok data prepare` again.")
    return (wav if n_frames is None else wav[:, :n_frames]), first * step / rate


def read_at(
    path: str | Path, start: int, count: int | None, *, sample_rate: int, channels: int, grid: int | None = None
) -> torch.Tensor:
    """Samples [channels, at most count] of a file, resampled, from one of them on; equal to those of the whole file.

    Args:
        path: audio file.
        start: first sample, at `sample_rate`.
        count: of samples; None reads to the end.
        sample_rate: in Hz.
        channels: of the result.
        grid: samples at `sample_rate` between two places at which `read_segment` can begin, at most; None: a look
            into the file finds it.

    Raises:
        DataError: as `read_segment`.
    """
    if grid is None:
        grid = sample_rate // math.gcd(sample_rate, audio_info(path).sample_rate)
    # Half a sample on, so that rounding does not lose one; the reader begins there or before, and returns where.
    options = {"sample_rate": sample_rate, "channels": channels}
    more = None if count is None else count + grid
    wav, start_s = read_segment(path, start_s=(start + 0.5) / sample_rate, n_frames=more, **options)
    lead = start - round(start_s * sample_rate)
    return wav[:, lead:] if count is None else wav[:, lead : lead + count]


def _segment_at(
    source: "_Source", first: int, n_frames: int | None, sample_rate: int, channels: int
) -> tuple[torch.Tensor, float]:
    """A segment from target frame `first` on, for rates whose frames coincide too rarely."""
    margin = reach(source.rate, sample_rate)
    left = -(-source.frames * sample_rate // source.rate) - first
    if left <= 0:
        raise DataError(
            f"{source.name}: has ended before {first / sample_rate:.3f} s. Run `audiotok data prepare` again."
        )
    count = left if n_frames is None else min(n_frames, left)
    begin = max(0, first * source.rate // sample_rate - margin)
    end = (first + count) * source.rate // sample_rate + margin + 1
    wav = _mixed(_read_frames(source, begin, end - begin), channels)
    wav = resample_at(wav, source.rate, sample_rate, first, count, offset=begin)
    return wav.expand(channels, -1).contiguous(), first / sample_rate


def write_audio(
    path: str | Path,
    wav: torch.Tensor,
    sample_rate: int,
    *,
    subtype: str | None = None,
    strategy: ClipStrategy = "clip",
) -> Path:
    """Write a file whose format follows its extension: complete, or not there at all (write, then rename).

    Args:
        path: ends in one of the extensions of `ENCODINGS`; missing folders are made.
        wav: [C, T]; full scale is 1.
        sample_rate: in Hz.
        subtype: soundfile's name of the sample encoding, such as "FLOAT" or "PCM_24"; None takes the usual one.
        strategy: what to do beyond full scale. "clip" cuts there, "rescale" divides the whole file by its
            peak, "none" hands the values on (fixed-point and lossy encodings then saturate by themselves).

    Raises:
        DataError: for an unknown extension or strategy, a shape other than [C, T], values that are not
            finite, or a rate or subtype that the format cannot hold.
    """
    path = Path(path)
    if path.suffix.lower() not in ENCODINGS:
        raise DataError(f"cannot write {path}: extension {path.suffix!r}; use one of {', '.join(ENCODINGS)}.")
    container, usual_subtype = ENCODINGS[path.suffix.lower()]
    samples = _fit_full_scale(path, wav.detach().to("cpu", torch.float32), strategy).T.numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"format": container, "subtype": subtype or usual_subtype}  # the suffix of a draft gives soundfile no format
    try:
        with (
            replacing(path) as draft,
            soundfile.SoundFile(os.fsencode(draft), "w", sample_rate, samples.shape[1], **kind) as handle,
        ):
            for start in range(0, len(samples), WRITE_BLOCK):
                handle.write(samples[start : start + WRITE_BLOCK])
    except (soundfile.SoundFileError, ValueError) as err:
        raise DataError(f"cannot write {path} at {sample_rate} Hz as {kind}: {_reason(err)}") from err
    return path


def convert_audio(wav: torch.Tensor, from_rate: int, to_rate: int, to_channels: int) -> torch.Tensor:
    """Resample and mix: mono is the mean of a stereo pair, stereo is mono twice.

    Shape:
        wav [..., C, T] -> [..., to_channels, ceil(T * to_rate / from_rate)].

    Raises:
        DataError: for any other change of channels, or rates too far apart to resample.
    """
    wav = _mixed(wav, to_channels)
    wav = resample(wav, from_rate, to_rate)
    return wav.expand(*wav.shape[:-2], to_channels, -1).contiguous() if to_channels > wav.shape[-2] else wav


def _mixed(wav: torch.Tensor, to_channels: int) -> torch.Tensor:
    """Mono of stereo; what becomes stereo stays mono: to mix before and copy after resampling is half the work."""
    found = wav.shape[-2]
    if found != to_channels and {found, to_channels} != {1, 2}:
        raise DataError(
            f"cannot turn {found} channels into {to_channels}: only mono from stereo, stereo from mono, or "
            "no change. Mix the files down to one or two channels beforehand."
        )
    # Not mean(): in decoded samples the channels of a frame lie side by side, where it is ten times slower.
    return wav[..., :1, :].add(wav[..., 1:, :]).div_(2) if to_channels < found else wav


@dataclass(frozen=True, slots=True)
class _Source:
    """An open file: `read(start, count)` gives [at most count, C] float32."""

    name: str
    rate: int
    channels: int
    frames: int
    read: Callable[[int, int], NDArray[np.float32]]


@contextmanager
def _open_audio(path: str | Path) -> Iterator[_Source]:
    """Open for reading; libsndfile and file-system errors become a DataError that names the file."""
    with _open_file(Path(path)) as handle:
        if handle.format == "MP3":
            mp3 = open_mp3(Path(path))
            yield _Source(str(path), mp3.rate, mp3.channels, mp3.frames, mp3.read)
            return
        _check_frames(path, int(handle.frames))
        rate, exact = int(handle.samplerate), int(handle.frames)
        if handle.format == "OGG":
            # libsndfile takes the last page to be as long as its packets, though the stream ends within them: a seek to
            # it lands at another place, while reading on to it does not. Opus counts at 48 kHz.
            last = last_page(Path(path)) * (rate if handle.subtype == "OPUS" else 48000) // 48000
            exact = max(0, last - rate)

        opus = open_opus(Path(path), rate) if handle.subtype == "OPUS" else None

        def read(start: int, count: int) -> NDArray[np.float32]:
            if opus is not None and (found := opus.read(start, count)) is not None and len(found) == count:
                return found
            begin = min(start, exact)
            handle.seek(begin)
            samples: NDArray[np.float32] = handle.read(start - begin + count, dtype="float32", always_2d=True)
            return samples[start - begin :]

        yield _Source(str(path), rate, int(handle.channels), int(handle.frames), read)


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    """The file in libsndfile, its header mended where it is wrong."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file. If it has moved, run `audiotok data prepare` again.")
    try:
        patch = patch_header(path)
        with soundfile.SoundFile(Patched(path, *patch) if patch else os.fsencode(path)) as handle:
            if not _MIN_RATE <= handle.samplerate <= _MAX_RATE:
                raise DataError(f"{path}: sample rate {handle.samplerate} Hz; {_MIN_RATE} to {_MAX_RATE} are read.")
            if handle.format == "MP3" and handle.subtype != "MPEG_LAYER_III":
                raise DataError(f"{path}: MPEG audio of layer I or II. Leave it out, or convert it.")
            yield handle
    except (soundfile.SoundFileError, OSError, TypeError) as err:  # TypeError: a headerless .raw file
        raise _unreadable(path, err) from err


def _check_frames(path: str | Path, frames: int) -> None:
    if frames == 0:
        raise DataError(f"{path}: holds no samples. Leave it out or replace it.")
    if frames >= 1 << 40:  # 291 days at 44.1 kHz; libsndfile's for an unknown length is 2^63
        raise DataError(f"{path}: of unknown length. Encode it again.")


def _read_frames(source: _Source, start: int, frames: int | None = None) -> torch.Tensor:
    """Decode at most `frames` frames from `start`, or to the end: wav [C, T] float32, a transposed view."""
    left = source.frames - start
    if left <= 0:
        raise DataError(
            f"{source.name}: ends at {source.frames / source.rate:.3f} s, nothing to read from "
            f"{start / source.rate:.3f} s on. Run `audiotok data prepare` again if it has changed."
        )
    count = left if frames is None else min(frames, left)
    try:
        samples = source.read(start, count)  # shorter, without an error, if the file is cut off
    except MemoryError as err:
        raise DataError(f"{source.name}: {count} frames of {source.channels} channels exceed the memory.") from err
    if count - len(samples) > _SHORT_READ_S * source.rate or (count and not len(samples)):
        raise DataError(f"{source.name}: cut off or damaged: {len(samples)} of {count} frames after frame {start}.")
    wav = torch.from_numpy(samples)
    low, high = map(float, wav.aminmax()) if wav.numel() else (0.0, 0.0)  # NaN if any sample is
    peak = max(-low, high)
    if not math.isfinite(low + high):
        raise DataError(f"{source.name}: holds NaN or infinity after frame {start}. Leave it out or repair it.")
    if peak > MAX_PEAK:
        raise DataError(
            f"{source.name}: peak {peak:.6g} after frame {start}, far beyond full scale (1; at most {MAX_PEAK:.0f} is "
            "read). Divide its samples by their range, such as 32768, or leave it out."
        )
    return wav.T


def _fit_full_scale(path: Path, wav: torch.Tensor, strategy: str) -> torch.Tensor:
    """Check the shape and the values, and apply the clipping strategy."""
    if wav.dim() != 2 or wav.shape[-1] == 0:
        raise DataError(f"cannot write {path}: shape {tuple(wav.shape)}; expected [C, T] with T > 0.")
    if not bool(torch.isfinite(wav).all()):
        raise DataError(f"cannot write {path}: the signal holds NaN or infinity.")
    peak = float(wav.abs().max())
    if strategy not in ("clip", "rescale", "none"):
        raise DataError(f"cannot write {path}: strategy={strategy!r}; choose one of: clip, rescale, none.")
    if peak <= 1 or strategy == "none":
        return wav
    logger.warning("%s: peak %.3f is beyond full scale: %s", path, peak, strategy)
    return wav / peak if strategy == "rescale" else wav.clamp(-1, 1)


def _unreadable(path: str | Path, err: Exception) -> DataError:
    require_a_file()
    allowed, reason = ", ".join(ENCODINGS), _reason(err)
    if reason.startswith("File does not exist") and Path(path).is_file():
        reason = "no audio found in it"  # libsndfile's words for a file without any frame of mp3
    return DataError(f"{path}: not readable as audio ({reason}). Leave it out, or convert to {allowed}.")


def _reason(err: Exception) -> str:
    """Libsndfile's own words, without the path that it repeats."""
    text = str(getattr(err, "error_string", err)) or type(err).__name__
    return text.removeprefix("Error : ").rstrip(".")

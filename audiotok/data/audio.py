"""Reading, writing and converting audio files.

soundfile (libsndfile) decodes and encodes wav, flac, ogg/vorbis, opus and mp3; torchaudio resamples.
Seeking in libsndfile 1.2 is sample-exact in all five formats (a test holds it against full decodes), so a
segment is read by one seek and costs no more than its own length.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import soundfile
import torch
import torch.nn.functional as F
import torchaudio

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
_FILTER_ZEROS = 24  # zero crossings on each side of the resampling filter: a transition band below 5 % of the band
_FILTER_ROLLOFF = 0.945  # cut-off of the resampling filter as a share of the lower Nyquist frequency
_SHORT_READ_S = 0.1  # a file may end this much before its header's end: mp3 and ogg ones are sometimes a packet off
# Beyond it, samples are refused. Masters in float may pass full scale (1) by some decibels, never by 24; integers that
# were stored as floats without dividing by their range (128, 32768, 8388608), and damaged samples, lie beyond it.
MAX_PEAK = 16.0
WRITE_BLOCK = 1 << 16  # frames: libsndfile overflows its stack on a very long one-shot vorbis write

ClipStrategy = Literal["clip", "rescale", "none"]


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """Header of an audio file; `frames` counts samples per channel."""

    duration_s: float
    sample_rate: int
    channels: int
    frames: int


def audio_info(path: str | Path) -> AudioInfo:
    """Header of an audio file, without decoding it; DataError if it is missing, is not audio, or holds no samples."""
    with _open_audio(path) as handle:
        frames, rate = int(handle.frames), int(handle.samplerate)
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
        rate = int(handle.samplerate)
        frames = None if duration_s is None else round(duration_s * rate)
        wav = _read_frames(handle, round(start_s * rate), frames)
    if pad and frames is not None:
        wav = F.pad(wav, (0, frames - wav.shape[-1]))
    return wav, rate


def read_segment(
    path: str | Path, *, start_s: float, n_frames: int | None, sample_rate: int, channels: int
) -> tuple[torch.Tensor, float]:
    """Read a segment so that it equals the same stretch of the whole file, resampled.

    Args:
        path: audio file.
        start_s: where to start, in seconds; moved back to the grid on which source and target frames coincide (every 3
            frames from 48 to 32 kHz, 10 ms from 44.1).
        n_frames: length at `sample_rate`; None reads to the end.
        sample_rate: of the result, in Hz.
        channels: of the result.

    Returns:
        wav [channels, at most n_frames] (fewer where the file ends) and the true start in seconds.

    Raises:
        DataError: if the file cannot be read, has ended before `start_s`, or has channels that cannot be mixed.
    """
    with _open_audio(path) as handle:
        rate = int(handle.samplerate)
        step, step_out = Fraction(rate, sample_rate).as_integer_ratio()
        first = int(start_s * rate) // step
        # At the ends of what it gets, the filter sees zeros instead of audio: read more, and cut it off.
        margin = math.ceil(_resample_reach(rate, sample_rate) / step)
        lead = min(first, margin)
        blocks = None if n_frames is None else (lead + math.ceil(n_frames / step_out) + margin) * step
        source = _read_frames(handle, (first - lead) * step, blocks)
    wav = convert_audio(source, rate, sample_rate, channels)[:, lead * step_out :]
    if wav.shape[-1] == 0:
        raise DataError(f"{path}: has ended before {start_s:.3f} s. Run `audiotok data prepare` again.")
    return (wav if n_frames is None else wav[:, :n_frames]), first * step / rate


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
    kind = {"format": container, "subtype": subtype or usual_subtype}  # soundfile cannot tell by a draft's suffix
    try:
        with replacing(path) as draft, soundfile.SoundFile(draft, "w", sample_rate, samples.shape[1], **kind) as handle:
            for start in range(0, len(samples), WRITE_BLOCK):
                handle.write(samples[start : start + WRITE_BLOCK])
    except (soundfile.SoundFileError, ValueError) as err:
        raise DataError(f"cannot write {path} at {sample_rate} Hz as {kind}: {_reason(err)}") from err
    return path


def convert_audio(wav: torch.Tensor, from_rate: int, to_rate: int, to_channels: int) -> torch.Tensor:
    """Resample and mix: mono is the mean of a stereo pair, stereo is mono twice.

    The filter is a Hann-windowed sinc of 24 zero crossings cut at 94.5 % of the lower Nyquist frequency.

    Shape:
        wav [..., C, T] -> [..., to_channels, ceil(T * to_rate / from_rate)].

    Raises:
        DataError: for any other change of channels.
    """
    found = wav.shape[-2]
    if found != to_channels and {found, to_channels} != {1, 2}:
        raise DataError(
            f"cannot turn {found} channels into {to_channels}: only mono from stereo, stereo from mono, or "
            "no change. Mix the files down to one or two channels beforehand."
        )
    if to_channels < found:  # mix before resampling, copy after it: half the work
        wav = wav.mean(dim=-2, keepdim=True)
    if from_rate != to_rate:
        wav = _resampler(from_rate, to_rate, wav.dtype, str(wav.device))(wav)
    return wav.expand(*wav.shape[:-2], to_channels, -1).contiguous() if to_channels > found else wav


def _resample_reach(from_rate: int, to_rate: int) -> int:
    """How many source frames on each side of a point the resampling filter looks at."""
    if from_rate == to_rate:
        return 0
    return math.ceil(_FILTER_ZEROS * from_rate / (min(from_rate, to_rate) * _FILTER_ROLLOFF))


@contextmanager
def _open_audio(path: str | Path) -> Iterator[Any]:
    """Open for reading; libsndfile and file-system errors become a DataError that names the file."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file. If it has moved, run `audiotok data prepare` again.")
    try:
        handle = soundfile.SoundFile(str(path))
    except (soundfile.SoundFileError, OSError, TypeError) as err:  # TypeError: a headerless .raw file
        raise _unreadable(path, err) from err
    with handle:
        if handle.frames == 0:
            raise DataError(f"{path}: holds no samples. Leave it out or replace it.")
        try:
            yield handle
        except (soundfile.SoundFileError, OSError) as err:
            raise _unreadable(path, err) from err


def _read_frames(handle: Any, start: int, frames: int | None = None) -> torch.Tensor:
    """Decode at most `frames` frames of an open file from `start`, or to its end: wav [C, T] float32."""
    left = int(handle.frames) - start
    if left <= 0:
        raise DataError(
            f"{handle.name}: ends at {handle.frames / handle.samplerate:.3f} s, nothing to read from "
            f"{start / handle.samplerate:.3f} s on. Run `audiotok data prepare` again if it has changed."
        )
    count = left if frames is None else min(frames, left)
    handle.seek(start)
    samples = handle.read(count, dtype="float32", always_2d=True)  # shorter, without an error, if the file is cut off
    if count - len(samples) > _SHORT_READ_S * handle.samplerate or (count and not len(samples)):
        raise DataError(f"{handle.name}: cut off or damaged: {len(samples)} of {count} frames after frame {start}.")
    wav = torch.from_numpy(samples).T.contiguous()
    if not bool(torch.isfinite(wav).all()):
        raise DataError(f"{handle.name}: holds NaN or infinity after frame {start}. Leave it out or repair it.")
    peak = float(wav.abs().max()) if wav.numel() else 0.0
    if peak > MAX_PEAK:
        raise DataError(
            f"{handle.name}: peak {peak:.6g} after frame {start}, far beyond full scale (1; at most {MAX_PEAK:.0f} is "
            "read). Divide its samples by their range, such as 32768, or leave it out."
        )
    return wav


@lru_cache(maxsize=32)
def _resampler(from_rate: int, to_rate: int, dtype: torch.dtype, device: str) -> Any:
    """The resampling kernel for a pair of rates, computed once (it takes longer than using it)."""
    options: dict[str, Any] = {"lowpass_filter_width": _FILTER_ZEROS, "rolloff": _FILTER_ROLLOFF, "dtype": dtype}
    return torchaudio.transforms.Resample(from_rate, to_rate, **options).to(device)


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
    allowed = ", ".join(ENCODINGS)
    return DataError(f"{path}: not readable as audio ({_reason(err)}). Leave it out, or convert to {allowed}.")


def _reason(err: Exception) -> str:
    """Libsndfile's own words, without the path that it repeats."""
    text = str(getattr(err, "error_string", err)) or type(err).__name__
    return text.removeprefix("Error : ").rstrip(".")

"""Resampling by a sinc cut at 94.5 % of the lower Nyquist frequency under a Hann window of 24 zero crossings.

torchaudio holds the filter at each of `to_rate / gcd` phases: fast for the usual rates, gigabytes for rates with no
common divisor. Those are resampled here, at any phase, from a table of phases with straight lines between them:
within 1e-6 of full scale of the filter itself.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio

from audiotok.errors import DataError

ZEROS = 24  # zero crossings on each side of the filter: a transition band below 5 % of the band
ROLLOFF = 0.945  # cut-off of the filter as a share of the lower Nyquist frequency
_MAX_KERNEL = 1 << 22  # numbers in torchaudio's kernel: 16 MiB; from 44.1 to 32 kHz it has 165 thousand
_PHASES = 4096  # of the table
_BLOCK = 1 << 20  # numbers at once in the direct method
_MAX_RATIO = 128  # between two rates


def is_direct(from_rate: int, to_rate: int) -> bool:
    """Whether torchaudio's kernel for these rates would be too large."""
    divisor = math.gcd(from_rate, to_rate)
    return (2 * reach(from_rate, to_rate) + from_rate // divisor) * (to_rate // divisor) > _MAX_KERNEL


def reach(from_rate: int, to_rate: int) -> int:
    """How many source frames on each side of a point the filter looks at."""
    return 0 if from_rate == to_rate else math.ceil(ZEROS * from_rate / (min(from_rate, to_rate) * ROLLOFF))


def resample(wav: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Resample a whole signal [..., T] to [..., ceil(T * to_rate / from_rate)].

    Raises:
        DataError: if one rate is more than 128 times the other.
    """
    if from_rate == to_rate:
        return wav
    if max(from_rate, to_rate) > _MAX_RATIO * min(from_rate, to_rate):
        raise DataError(f"cannot resample from {from_rate} to {to_rate} Hz: at most a factor of {_MAX_RATIO}.")
    if is_direct(from_rate, to_rate):
        return resample_at(wav, from_rate, to_rate, 0, -(-wav.shape[-1] * to_rate // from_rate))
    return _resampler(from_rate, to_rate, wav.dtype, str(wav.device))(wav)  # type: ignore[no-any-return]


def resample_at(
    wav: torch.Tensor, from_rate: int, to_rate: int, first: int, count: int, *, offset: int = 0
) -> torch.Tensor:
    """Target frames `first` to `first + count` of a signal, any two rates.

    Args:
        wav: [..., T], source frames from `offset` on; zeros elsewhere.
        from_rate: in Hz.
        to_rate: in Hz.
        first: of the target frames, counted from the start of the whole signal.
        count: of target frames.
        offset: of the source frames.

    Returns:
        [..., count].
    """
    half = reach(from_rate, to_rate)
    table = _table(from_rate, to_rate, wav.dtype, str(wav.device))
    out = wav.new_empty(*wav.shape[:-1], count)
    block = max(1, _BLOCK // table.shape[1])
    for done in range(0, count, block):
        frames = torch.arange(first + done, first + min(done + block, count), device=wav.device)
        at = frames * from_rate  # position in the source, in units of 1 / to_rate: whole numbers lose nothing
        whole, phase = at // to_rate, (at % to_rate).double() * (_PHASES / to_rate)
        low = phase.long()
        weights = torch.lerp(table[low], table[low + 1], (phase - low).to(wav.dtype)[:, None])
        begin = int(whole[0]) - half + 1 - offset
        end = int(whole[-1]) + half + 1 - offset
        source = wav[..., max(0, begin) : max(0, end)]
        lead = max(0, -begin)
        source = F.pad(source, (lead, end - begin - lead - source.shape[-1]))
        windows = source.unfold(-1, 2 * half, 1)[..., whole - whole[0], :]
        out[..., done : done + len(frames)] = (windows * weights).sum(-1)
    return out


@lru_cache(maxsize=8)
def _table(from_rate: int, to_rate: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """The filter at each phase between two source frames: [_PHASES + 1, 2 * reach]."""
    half = reach(from_rate, to_rate)
    cut = min(from_rate, to_rate) * ROLLOFF / from_rate
    phases = torch.arange(_PHASES + 1, dtype=torch.float64) / _PHASES
    taps = torch.arange(1 - half, half + 1, dtype=torch.float64)
    at = ((phases[:, None] - taps) * cut).clamp(-ZEROS, ZEROS)
    return (cut * torch.sinc(at) * (torch.pi * at / (2 * ZEROS)).cos().square()).to(device, dtype)


@lru_cache(maxsize=32)
def _resampler(from_rate: int, to_rate: int, dtype: torch.dtype, device: str) -> Any:
    """The resampling kernel for a pair of rates, computed once (it takes longer than using it)."""
    options: dict[str, Any] = {"lowpass_filter_width": ZEROS, "rolloff": ROLLOFF, "dtype": dtype}
    return torchaudio.transforms.Resample(from_rate, to_rate, **options).to(device)

"""What listening tests need of a recording: its loudness, and the low-pass anchor of a rating test.

Loudness is ITU-R BS.1770-4, as pyloudnorm implements it. The anchor is the low anchor of ITU-R BS.1534-3, section 5.1.
"""

import warnings
from typing import Any

import numpy as np
import pyloudnorm
from scipy import signal

ANCHOR_HZ = 3500.0
_STOP_HZ = 4000.0  # BS.1534-3: 25 dB down at 4 kHz, 50 dB at 4.5 kHz; this one has its 60 dB from 4 kHz on
_STOP_DB = 60.0
_BLOCK_S = 0.4  # shortest signal that BS.1770 measures

Floats = np.ndarray[Any, np.dtype[np.float64]]


def loudness(wav: Floats, sample_rate: int) -> float | None:
    """Integrated loudness in LUFS.

    Args:
        wav: signal [T, C], full scale at 1.
        sample_rate: Hz.

    Returns:
        LUFS; None for what has no loudness: below 0.4 s, silence (under the gate of −70 LUFS), more than 5 channels.
    """
    if len(wav) < _BLOCK_S * sample_rate or wav.shape[1] > 5:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of no block, where all are under the gate
        measured = float(pyloudnorm.Meter(sample_rate).integrated_loudness(wav))
    return measured if np.isfinite(measured) else None


def anchor(wav: Floats, sample_rate: int) -> Floats | None:
    """Low anchor of a rating test: the signal below 3.5 kHz, without delay.

    Args:
        wav: signal [T, C], full scale at 1.
        sample_rate: Hz.

    Returns:
        [T, C], within full scale; None where the sample rate holds nothing above the anchor's band.
    """
    if sample_rate <= 2 * _STOP_HZ:
        return None
    taps, beta = signal.kaiserord(_STOP_DB, (_STOP_HZ - ANCHOR_HZ) / (sample_rate / 2))
    lowpass = signal.firwin(taps | 1, (ANCHOR_HZ + _STOP_HZ) / 2, window=("kaiser", beta), fs=sample_rate)
    filtered: Floats = signal.oaconvolve(wav, lowpass[:, None], mode="full", axes=0)
    delay = len(lowpass) // 2
    return np.clip(filtered[delay : delay + len(wav)], -1.0, 1.0)

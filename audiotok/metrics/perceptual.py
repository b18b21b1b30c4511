"""Perceptual quality of a clip by ViSQOL, and of speech by PESQ and STOI, in the packages of the extra `perceptual`.

A package is imported when its metric is made, so that a run without it fails at its start. All three are models of one
ear: the channels of a clip are averaged first, as ViSQOL's own programme does with a file.

Sources: Chinen et al., "ViSQOL v3", QoMEX 2020; ITU-T P.862 and P.862.2 (PESQ); Taal et al., "An Algorithm for
Intelligibility Prediction of Time-Frequency Weighted Noisy Speech", IEEE TASLP 2011 (STOI); Jensen and Taal, IEEE/ACM
TASLP 2016 (extended STOI).
"""

import contextlib
import importlib
import importlib.metadata
import logging
import math
import warnings
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from audiotok.data.resample import resample
from audiotok.errors import ConfigError, DataError, first_line
from audiotok.losses.waveform import check_pair

_PACKAGES = {"visqol": ("visqol", "visqol-python"), "pesq": ("pesq", "pesq"), "stoi": ("pystoi", "pystoi")}
_VISQOL_RATE = 48000  # of the audio mode, in Hz
_VISQOL_SHORTEST_S = 0.96  # a window of 80 ms and 44 hops of 20 ms: one patch after the half that is left out
_PESQ_BANDS = {"narrow": (8000, "nb"), "wide": (16000, "wb")}  # rate in Hz, name in the package
_PESQ_SHORTEST_S = 0.25
# The C code has room for 50 utterances, each 0.4 s or more with the pause after it, and does not check.
_PESQ_LONGEST_S = 20.0
_STOI_SHORTEST_S = 0.41  # 30 frames of 256 samples, every 128, at 10 kHz

Signal = NDArray[np.float64]


class ViSQOL:
    """MOS-LQO of ViSQOL v3 in audio mode: 1 to 4.73, higher is better; 4.7321 for identical clips.

    The mean of the channels at 48 kHz, aligned and brought to the level of the reference by ViSQOL itself: it hears
    neither a constant delay nor a gain. About 12 s of CPU for a clip of 10 s, 2 s where numba is installed.

    Args:
        sample_rate: of the clips, in Hz.

    Raises:
        ConfigError: if the package is missing.
    """

    parallel: ClassVar[bool] = True

    def __init__(self, sample_rate: int) -> None:
        _package("visqol")
        self.sample_rate = sample_rate
        self.protocol = f"audio mode, mean of channels at 48 kHz, {_version('visqol')}"
        self._api: Any = None  # holds libsvm's model by a pointer: made in the process that uses it

    def __call__(self, *, estimate: Tensor, reference: Tensor) -> float:
        """MOS-LQO of one clip, both [C, T]; DataError if silent, shorter than 0.96 s or beyond alignment."""
        degraded, clean = _mono_pair(estimate, reference, self.sample_rate, _VISQOL_RATE, _VISQOL_SHORTEST_S)
        if not degraded.any():
            raise DataError("the estimate is silent")
        return self.score(clean, degraded)

    def score(self, clean: Signal, degraded: Signal) -> float:
        """MOS-LQO of mono signals at 48 kHz, of any two lengths."""
        if self._api is None:
            self._api = _package("visqol").VisqolApi()
            self._api.create(mode="audio")
            logging.getLogger("visqol").setLevel(logging.ERROR)  # a line a clip for patches left out at its ends
            with contextlib.suppress(ImportError):  # visqol uses numba where it is installed, on all cores
                importlib.import_module("numba").set_num_threads(1)
        try:
            return _finite(self._api.measure_from_arrays(clean, degraded, _VISQOL_RATE).moslqo, "ViSQOL")
        except ValueError as error:
            raise DataError("ViSQOL finds no part of the reference in the estimate") from error

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the model, which each process loads for itself."""
        return {**self.__dict__, "_api": None}


class PESQ:
    """MOS-LQO of PESQ for speech, from 1.0 on, higher is better: 4.64 for identical clips (narrow band: 4.55).

    The mean of the channels, at 16 kHz (wide) or 8 kHz (narrow). Made for 8 to 12 s of speech, and of no meaning for
    music. In worker processes, which its C code may end.

    Args:
        sample_rate: of the clips, in Hz; at least that of the band.
        band: wide (P.862.2) | narrow (P.862 with the mapping of P.862.1).

    Raises:
        ConfigError: if the package is missing, for an unknown band or one that the sample rate does not hold.
    """

    parallel: ClassVar[bool] = True

    def __init__(self, sample_rate: int, band: str = "wide") -> None:
        if band not in _PESQ_BANDS:
            raise ConfigError(f"pesq.band={band!r}; choose one of: {', '.join(_PESQ_BANDS)}.")
        self.rate, self.mode = _PESQ_BANDS[band]
        if sample_rate < self.rate:
            hint = "set pesq.band=narrow" if sample_rate >= _PESQ_BANDS["narrow"][0] else "switch pesq off"
            raise ConfigError(f"pesq.band={band} needs {self.rate} Hz, sample_rate is {sample_rate}: {hint}.")
        _package("pesq")
        self.sample_rate = sample_rate
        self.protocol = f"{band} band, mean of channels at {self.rate // 1000} kHz, {_version('pesq')}"

    def __call__(self, *, estimate: Tensor, reference: Tensor) -> float:
        """MOS-LQO of one clip, both [C, T]; DataError if silent, without speech, under 0.25 s or over 20 s."""
        if reference.shape[-1] > _PESQ_LONGEST_S * self.sample_rate:
            raise DataError(f"longer than {_PESQ_LONGEST_S:.0f} s, which PESQ does not hold")
        degraded, clean = _mono_pair(estimate, reference, self.sample_rate, self.rate, _PESQ_SHORTEST_S)
        if not degraded.any():
            raise DataError("the estimate is silent")
        package = _package("pesq")
        try:
            return _finite(package.pesq(self.rate, clean, degraded, self.mode), "PESQ")
        except package.NoUtterancesError as error:
            raise DataError("PESQ finds no speech") from error
        except package.PesqError as error:
            raise DataError(f"PESQ: {first_line(error)}") from error


class STOI:
    """Short-time objective intelligibility of speech: up to 1, higher is better; 1 for identical clips.

    The mean of the channels, resampled to 10 kHz by pystoi with the filter of the published programme.

    Args:
        sample_rate: of the clips, in Hz.
        extended: the extended measure (ESTOI), for noise that comes and goes.

    Raises:
        ConfigError: if the package is missing.
    """

    def __init__(self, sample_rate: int, extended: bool = False) -> None:
        _package("stoi")
        self.sample_rate = sample_rate
        self.extended = extended
        self.protocol = f"{'extended, ' * extended}mean of channels, {_version('stoi')}"

    def __call__(self, *, estimate: Tensor, reference: Tensor) -> float:
        """STOI of one clip, both [C, T]; DataError if the reference holds less than 0.41 s of sound."""
        degraded, clean = _mono_pair(estimate, reference, self.sample_rate, self.sample_rate, _STOI_SHORTEST_S)
        state = np.random.get_state()  # the extended measure draws from it (noise of 1e-16)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
                value = _package("stoi").stoi(clean, degraded, self.sample_rate, extended=self.extended)
        except RuntimeWarning as error:
            raise DataError("STOI finds too little sound in the reference") from error
        finally:
            np.random.set_state(state)
        return _finite(value, "STOI")


def _package(metric: str) -> Any:
    """The module that computes a metric; ConfigError if it is missing or does not load."""
    module, distribution = _PACKAGES[metric]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"evaluate.metrics.{metric} needs the package {distribution}, which cannot be imported here "
            f"({first_line(error)}): pip install 'audiotok[perceptual]', or switch the metric off."
        ) from error


def _version(metric: str) -> str:
    distribution = _PACKAGES[metric][1]
    return f"{distribution} {importlib.metadata.version(distribution)}"


def _mono_pair(
    estimate: Tensor, reference: Tensor, from_rate: int, to_rate: int, shortest_s: float
) -> tuple[Signal, Signal]:
    """Both [C, T] as means over channels at another rate; DataError for a clip with nothing to compare."""
    check_pair(estimate[None], reference[None])
    if reference.shape[-1] < math.ceil(shortest_s * from_rate):
        raise DataError(f"shorter than {shortest_s} s")
    if not (estimate.isfinite().all() and reference.isfinite().all()):
        raise DataError("samples that are not finite")
    clean = resample(reference.double().mean(0), from_rate, to_rate).numpy()
    degraded = resample(estimate.double().mean(0), from_rate, to_rate).numpy()
    if not clean.any():
        raise DataError("the reference is silent")
    return degraded, clean


def _finite(value: float, name: str) -> float:
    """The value; DataError if it is not finite."""
    if not math.isfinite(value):
        raise DataError(f"{name} gives no finite value")
    return float(value)

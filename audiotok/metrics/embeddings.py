"""Vectors that stand for audio in a Fréchet distance: log-mel frames, a codec's own, or those of a network in a file.

A file is TorchScript or ONNX, such as an export of VGGish or CLAP. It gets mono audio [B, C, T] = [1, 1, T] float32 at
its sample rate (ONNX whose input has two axes: [1, T]) and returns vectors of which the last axis is the dimension.
TorchScript is code: it is loaded from the file that its user names, and from nowhere else.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from audiotok.errors import ConfigError, DataError, first_line
from audiotok.metrics.frechet import LogMelFrames

_RATES = range(1000, 768_001)
_MOST_DIMS = 1 << 13  # their covariance takes 512 MB


class Embedding(Protocol):
    """Vectors [N, D] of audio [channels, T] at `sample_rate`; DataError for audio that has none.

    Attributes:
        name: for people.
        sample_rate: in Hz.
        channels: of the audio.
        relative: whether distances are in units of the variance of the reference.
    """

    name: str
    sample_rate: int
    channels: int
    relative: bool

    def __call__(self, wav: Tensor) -> Tensor:
        """The vectors."""


class LogMelEmbedding:
    """Log-mel frames of mono audio, see `LogMelFrames`.

    Args:
        sample_rate: in Hz.
    """

    channels, relative = 1, False

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._frames = LogMelFrames(sample_rate)
        self.name = f"log-mel frames at {sample_rate} Hz, in squared decades"

    def __call__(self, wav: Tensor) -> Tensor:
        """The frames; DataError if the audio is shorter than one."""
        return self._frames(wav)


class FileEmbedding:
    """The network of a file.

    Args:
        path: TorchScript, or ONNX if its name ends so.
        sample_rate: in Hz; None: that of the file, the attribute `sample_rate` of the module or an entry of that name
            in the metadata of ONNX.

    Raises:
        ConfigError: without a rate, or without the package that ONNX needs.
        DataError: if the file cannot be read.
    """

    channels, relative = 1, False

    def __init__(self, path: str | Path, sample_rate: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"no file {path}; give the TorchScript or ONNX file of an embedding, or `logmel`.")
        load = _onnx if self.path.suffix.lower() == ".onnx" else _torchscript
        self._network, found = load(self.path)
        rate = sample_rate or found
        if not isinstance(rate, int) or rate not in _RATES:
            raise ConfigError(f"{path} does not say at which rate it takes audio: give it in Hz, as --sample-rate.")
        self.sample_rate = rate
        self.name = f"{self.path.name} at {rate} Hz"

    def __call__(self, wav: Tensor) -> Tensor:
        """The vectors; DataError if the network fails, or returns something else."""
        try:
            found = self._network(wav[None].float())
        except Exception as error:  # of a network of the user's, whatever it is
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[-1][:200] if lines else first_line(error)
            raise DataError(f"{self.path} fails for [1, 1, {wav.shape[-1]}] samples: {reason}") from error
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 1 or not found.numel():
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise DataError(f"{self.path} returns {what}; vectors [N, D] of floats are expected")
        if found.shape[-1] > _MOST_DIMS:
            raise DataError(f"{self.path} returns vectors of {found.shape[-1]} dimensions; {_MOST_DIMS} are the most")
        return found.reshape(-1, found.shape[-1])


_Network = Callable[[Tensor], Any]


def _torchscript(path: Path) -> tuple[_Network, object]:
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # torch raises many kinds here, all of them about the file
        raise DataError(f"{path} cannot be read as TorchScript ({first_line(error)}).") from error
    module.eval()

    @torch.no_grad()
    def run(wav: Tensor) -> Any:
        return module(wav)

    return run, getattr(module, "sample_rate", None)


def _onnx(path: Path) -> tuple[_Network, object]:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the package onnxruntime ({first_line(error)}): pip install 'audiotok[onnx]'."
        ) from error
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, all of them about the file
        raise DataError(f"{path} cannot be read as ONNX ({first_line(error)}).") from error
    given = session.get_inputs()[0]
    rate = session.get_modelmeta().custom_metadata_map.get("sample_rate", "")

    def run(wav: Tensor) -> Any:
        samples = wav.numpy() if len(given.shape) != 2 else wav[0].numpy()
        return torch.from_numpy(np.asarray(session.run(None, {given.name: samples})[0]))

    return run, int(rate) if rate.isdecimal() else None

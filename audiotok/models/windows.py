"""Encoding of long audio in windows of bounded memory, to the codes of one pass over all of it.

An encoder is convolutions, an LSTM over the frames, and convolutions again. A window is read with as much audio on both
sides as the first convolutions look at, so that its frames are those of one pass; the LSTM, which looks back without
end, carries its state from window to window; the last convolutions wait for the frames that they look ahead. What is
left is rounding: kernels for other shapes add up in another order, which decides a code where two vectors are equally
near.

Models that normalise over the whole of what they get (`time_group_norm`), and models of other kinds, cannot be
continued: each of their windows is encoded by itself, as the segments of their training were.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audiotok.errors import ConfigError
from audiotok.modules.conv import StreamableConv1d
from audiotok.modules.lstm import StreamableLSTM
from audiotok.modules.seanet import SEANetEncoder, SEANetResnetBlock
from audiotok.quantization import BaseQuantizer

LONGEST_S = 3600


class Codec(Protocol):
    """What windows and chunks use of a codec; `audiotok.models.CompressionModel` documents it.

    Of EnCodec they use its parts, too: encoder, quantizer, decoder, and whether it renormalises.
    """

    channels: int
    sample_rate: int
    frame_rate: float

    def encode(self, wav: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes of wav, and its volume."""

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Audio of codes."""

    def decode_latent(self, codes: Tensor) -> Tensor:
        """Latent of codes."""

    def state_dict(self) -> dict[str, Any]:
        """The weights."""


@dataclass(slots=True)
class Lane:
    """One signal on its way through the encoder; made by `WindowEncoder.begin`.

    Args:
        scale: its volume, by which models that renormalise divide; None of others.
    """

    scale: float | None = None
    window: int = 0  # the next one
    state: tuple[Tensor, Tensor] | None = None  # of the LSTM, [layers, D] each
    kept: Tensor | None = None  # frames [D, t] that the last convolutions still look at
    kept_from: int = 0  # place of its first
    emitted: int = 0  # frames
    codes: list[Tensor] = field(default_factory=list)

    def all_codes(self) -> Tensor:
        """Codes [K, T] of all windows."""
        return torch.cat(self.codes, dim=1).cpu()


class WindowEncoder:
    """Encodes signals window by window, several side by side.

    Attributes:
        exact: whether the codes are those of one pass; False where each window is encoded by itself.
        frames: of a window.
        hop: samples of a frame.
        device: of the model.

    Args:
        model: on its device, in evaluation mode.
        window_s: length of a window without its context, in seconds.

    Raises:
        ConfigError: if a window would hold no frame, or more than `LONGEST_S`.
    """

    def __init__(self, model: Codec, window_s: float) -> None:
        self.model = model
        self.hop = round(model.sample_rate / model.frame_rate)
        if not 1 / model.frame_rate <= window_s <= LONGEST_S:
            frame = f"{1 / model.frame_rate:.3g}"
            raise ConfigError(f"windows of {window_s} s; expected from {frame} s (a frame) to {LONGEST_S}.")
        self.frames = round(window_s * model.frame_rate)
        self.device: torch.device = next(iter(model.state_dict().values())).device
        self.exact = continuable(model)
        self._left = self._right = 0  # context in samples
        if self.exact:
            parts: Any = model
            layers = list(parts.encoder.model)
            self._quantizer: BaseQuantizer = parts.quantizer
            at = next((i for i, layer in enumerate(layers) if isinstance(layer, StreamableLSTM)), len(layers))
            self._front = nn.Sequential(*layers[:at])
            lstm = layers[at] if at < len(layers) else None
            self._lstm = lstm if isinstance(lstm, StreamableLSTM) else None
            self._back = nn.Sequential(*layers[at + 1 :])
            left, right = reach(self._front)
            self._left, self._right = (math.ceil(each / self.hop) * self.hop for each in (left, right))
            self._back_left, self._back_right = reach(self._back)

    @property
    def per_signal_scale(self) -> bool:
        """Whether `begin` takes the volume of the whole signal."""
        return self.exact and bool(getattr(self.model, "renormalize", False))

    def begin(self, scale: float | None = None) -> Lane:
        """A new signal, which `step` is given window by window."""
        return Lane(scale)

    def span(self, window: int) -> tuple[int, int]:
        """First sample of a window with its context, and how many there are unless the signal ends before."""
        first = window * self.frames * self.hop
        start = max(0, first - self._left)
        return start, first + self.frames * self.hop + self._right - start

    def windows(self, samples: int) -> int:
        """How many windows cover a signal: the last is the first whose span reaches its end."""
        return max(1, math.ceil((samples - self._right) / (self.frames * self.hop)))

    @torch.inference_mode()
    def step(self, lanes: Sequence[Lane], wavs: Sequence[Tensor], last: Sequence[bool]) -> None:
        """Encode the next window of each lane.

        Args:
            lanes: signals.
            wavs: [C, T] of each, the samples of `span`; to the end of the signal if it is the last.
            last: whether the signal ends with it.
        """
        if self.exact:
            frames = self._run_front(lanes, wavs, last)
            frames = self._run_lstm(lanes, frames)
            self._run_back(lanes, frames, last)
        else:
            for indices, batch in _by_shape(wavs):
                for index, codes in zip(indices, self.model.encode(batch.to(self.device))[0], strict=True):
                    lanes[index].codes.append(codes)
        for lane in lanes:
            lane.window += 1

    def _run_front(self, lanes: Sequence[Lane], wavs: Sequence[Tensor], last: Sequence[bool]) -> list[Tensor]:
        """Frames [D, t] of each window by the convolutions before the LSTM, its context cut off."""
        found = [wavs[0]] * len(lanes)
        for indices, batch in _by_shape(wavs):
            batch = batch.to(self.device)
            if self.per_signal_scale:
                scales = [lanes[index].scale or 1.0 for index in indices]
                batch = batch / torch.tensor(scales, device=batch.device)[:, None, None]
            for index, frames in zip(indices, self._front(batch), strict=True):
                first = lanes[index].window * self.frames * self.hop
                context = (first - self.span(lanes[index].window)[0]) // self.hop
                found[index] = frames[:, context:] if last[index] else frames[:, context : context + self.frames]
        return found

    def _run_lstm(self, lanes: Sequence[Lane], frames: Sequence[Tensor]) -> list[Tensor]:
        """The LSTM over the frames of all lanes, each from its state on."""
        if self._lstm is None:
            return list(frames)
        # Zeros follow what is shorter than a window, which ends here: nothing goes on from its state. What is longer
        # ends here, too, and would put zeros after those that go on.
        found = list(frames)
        for longer in (False, True):
            if indices := [i for i, each in enumerate(frames) if (each.shape[1] > self.frames) is longer]:
                batch = nn.utils.rnn.pad_sequence([frames[i].t() for i in indices])
                out = self._continued(self._lstm, [lanes[i] for i in indices], batch)
                for place, i in enumerate(indices):
                    found[i] = out[: frames[i].shape[1], place].t()
        return found

    def _continued(self, layer: StreamableLSTM, lanes: Sequence[Lane], batch: Tensor) -> Tensor:
        """The LSTM layer over frames [t, B, D], from the states of the lanes, which it moves on."""
        zeros = batch.new_zeros(layer.lstm.num_layers, batch.shape[2])
        states = [lane.state or (zeros, zeros) for lane in lanes]
        start = (torch.stack([h for h, _ in states], dim=1), torch.stack([c for _, c in states], dim=1))
        out: Tensor
        out, (h, c) = layer.lstm(batch, start)
        for place, lane in enumerate(lanes):
            lane.state = (h[:, place].contiguous(), c[:, place].contiguous())
        return out + batch if layer.skip else out

    def _run_back(self, lanes: Sequence[Lane], frames: Sequence[Tensor], last: Sequence[bool]) -> None:
        """The convolutions after the LSTM, and the codes of all frames that they have seen enough for."""
        pairs = zip(lanes, frames, strict=True)
        held = [new if lane.kept is None else torch.cat([lane.kept, new], dim=1) for lane, new in pairs]
        for indices, batch in _by_shape(held):
            codes = self._quantizer.encode(self._back(batch))
            for index, each in zip(indices, codes, strict=True):
                lane, end = lanes[index], lanes[index].kept_from + batch.shape[2]
                until = end if last[index] else max(lane.emitted, end - self._back_right)
                lane.codes.append(each[:, lane.emitted - lane.kept_from : until - lane.kept_from])
                begin = max(0, until - self._back_left)
                lane.kept = held[index][:, begin - lane.kept_from :].contiguous()
                lane.kept_from, lane.emitted = begin, until


def reach(layers: nn.Module) -> tuple[int, int]:
    """How many samples before and after those of an output frame decide it, through convolutions and activations.

    Before, also what a mirrored end of the signal looks at.
    """
    left, right, _ = _reach(layers)
    return left, right


def _reach(layer: nn.Module) -> tuple[int, int, int]:
    """Reach on both sides, and stride."""
    if isinstance(layer, StreamableConv1d):
        right = 0 if layer.causal else layer.padding // 2
        # The padding after the end mirrors so many samples, and up to a stride more to fill the last window.
        return layer.padding + layer.stride - 1, right, layer.stride
    if isinstance(layer, SEANetResnetBlock):
        paths = [_reach(layer.block), _reach(layer.shortcut)]
        return max(path[0] for path in paths), max(path[1] for path in paths), paths[0][2]
    if isinstance(layer, nn.Sequential):
        left = right = 0
        jump = 1
        for inner in layer:
            inner_left, inner_right, stride = _reach(inner)
            left, right, jump = left + inner_left * jump, right + inner_right * jump, jump * stride
        return left, right, jump
    return 0, 0, 1


def continuable(model: Codec) -> bool:
    """Whether windows with context give the codes of one pass."""
    encoder = getattr(model, "encoder", None)
    return isinstance(encoder, SEANetEncoder) and not any(isinstance(one, nn.GroupNorm) for one in encoder.modules())


def _by_shape(tensors: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
    """Batches of equal shapes, with the places of their members."""
    groups = defaultdict[tuple[int, ...], list[int]](list)
    for index, tensor in enumerate(tensors):
        groups[tuple(tensor.shape)].append(index)
    return [(indices, torch.stack([tensors[index] for index in indices])) for indices in groups.values()]

"""Encoding and decoding of audio that comes in chunks: memory is bounded, whatever the length.

`encode` goes through windows (`audiotok.models.windows`); `decode` is its counterpart. Both carry the state of the
LSTM on and keep as many frames as the convolutions look back at, so that the result is that of one pass over all: of
causal models and of others, but for the rounding of kernels for other shapes.

Models that normalise over the whole of what they get (`time_group_norm`) cannot be continued. They take chunks of
`ALONE_S` seconds by themselves, each at its own volume if they renormalise; neighbours share 1 % and are cross-faded by
triangles. Source: Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023, section 3 (48 kHz).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audiotok.errors import ConfigError, DataError
from audiotok.models.windows import LONGEST_S, Codec, WindowEncoder, continuable, reach
from audiotok.modules.conv import StreamableConv1d, StreamableConvTranspose1d
from audiotok.modules.lstm import StreamableLSTM
from audiotok.modules.seanet import SEANetDecoder, SEANetResnetBlock

WINDOW_S = 1.0
ALONE_S = 1.0
OVERLAP = 0.01
Coded = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a codec cuts long audio.

    Args:
        hop: samples of a frame.
        window: samples of a chunk that is coded by itself; 0 if the codec is continued from chunk to chunk.
        step: samples from the start of one to that of the next.
    """

    hop: int
    window: int = 0
    step: int = 0

    def lengths(self, samples: int) -> list[int]:
        """Samples of each chunk of a signal."""
        if not self.window:
            return [samples]
        return [min(self.window, samples - start) for start in range(0, samples, self.step)]

    def frames(self, samples: int) -> list[int]:
        """Frames of each chunk of a signal."""
        return [math.ceil(length / self.hop) for length in self.lengths(samples)]


def layout_of(model: Codec) -> Layout:
    """How a codec cuts long audio."""
    hop = round(model.sample_rate / model.frame_rate)
    if _streamable(model):
        return Layout(hop)
    window = max(1, round(ALONE_S * model.frame_rate)) * hop
    return Layout(hop, window, max(1, int((1 - OVERLAP) * window)))


def volume(chunks: Iterable[Tensor]) -> Tensor:
    """Volume [B, 1] of a whole signal in chunks [B, C, T], by which models that renormalise divide."""
    total, samples = torch.zeros(1, 1, dtype=torch.float64), 0
    for chunk in chunks:
        total = total + chunk.double().mean(dim=1).pow(2).sum(dim=1, keepdim=True).cpu()
        samples += chunk.shape[2]
    return (total / max(samples, 1)).sqrt().float() + 1e-8


def encode_chunks(
    model: Codec, chunks: Iterable[Tensor], *, scale: Tensor | None = None, window_s: float = WINDOW_S
) -> Iterator[Coded]:
    """Encode a signal in chunks.

    Args:
        model: on its device, in evaluation mode.
        chunks: wav [B, C, t] one after the other, of any lengths.
        scale: volume [B, 1] of the whole signal, as `volume` gives it, for models that renormalise and can be
            continued; others find it themselves, or need none.
        window_s: how many seconds go through the encoder at once: memory and delay depend on it, codes do not.

    Yields:
        Codes [B, K, t'], and the scale or None, as the model's `encode` gives them.

    Raises:
        ConfigError: if the window is out of its range, or the scale is missing.
        DataError: if a chunk has another shape than the model takes, or there is no sample.
    """
    layout = layout_of(model)
    if layout.window:
        for wav, _ in _pieces(_checked(model, chunks), layout.window, layout.step):
            yield model.encode(wav.to(_device(model)))
        return
    # What the first frames look at, where the signal's beginning is mirrored, fits into the first window.
    parts: Any = model
    least = math.ceil(sum(reach(parts.encoder.model)) / layout.hop) + 1
    encoder = WindowEncoder(model, max(_frames(model, window_s), least) / model.frame_rate)
    if encoder.per_signal_scale and scale is None:
        raise ConfigError("this model divides by the volume of the whole signal: give scale, of `chunks.volume`.")
    yield from _windows(encoder, _checked(model, chunks), scale)


def _windows(encoder: WindowEncoder, chunks: Iterable[Tensor], scale: Tensor | None) -> Iterator[Coded]:
    """Codes of each window, by the lanes of an encoder."""
    lanes = list(map(encoder.begin, [None] if scale is None else scale.flatten().tolist()))
    held, begin, ended = None, 0, False
    source = iter(chunks)
    while not ended:
        start, count = encoder.span(lanes[0].window)
        # One sample more shows that the signal does not end with this window.
        while not ended and (held is None or begin + held.shape[2] <= start + count):
            chunk = next(source, None)
            ended = chunk is None
            if chunk is not None:
                held = chunk if held is None else torch.cat([held, chunk], dim=2)
        if held is None:
            raise DataError("there is no sample to encode; give one chunk at least.")
        if len(lanes) == 1:
            lanes += [encoder.begin() for _ in held[1:]]
        held, begin = held[..., start - begin :], start
        wavs = list(held if ended else held[..., :count])
        encoder.step(lanes, wavs, [ended] * len(lanes))
        codes = torch.stack([torch.cat(lane.codes, dim=1) for lane in lanes])
        for lane in lanes:
            lane.codes.clear()
        if codes.shape[2]:
            yield codes, None if scale is None else scale.to(codes.device)


def decode_chunks(
    model: Codec,
    chunks: Iterable[Tensor | Coded],
    *,
    scale: Tensor | None = None,
    window_s: float = WINDOW_S,
) -> Iterator[Tensor]:
    """Decode codes in chunks.

    Args:
        model: on its device, in evaluation mode.
        chunks: codes [B, K, t'] one after the other, or codes and scale as `encode_chunks` yields them. Of any
            lengths; but of models that cannot be continued each is one that `encode_chunks` has yielded.
        scale: volume [B, 1] of chunks that are codes alone.
        window_s: how many seconds go through the decoder at once: memory and delay depend on it.

    Yields:
        Audio [B, C, t]; together T' * hop samples, or for models that cannot be continued as many as their chunks
        span.

    Raises:
        ConfigError: if the window is out of its range, or the model takes no scale.
        DataError: if codes do not fit the model, or there are none.
    """
    pairs = (chunk if isinstance(chunk, tuple) else (chunk, scale) for chunk in chunks)
    layout = layout_of(model)
    yield from _cross_faded(model, pairs, layout) if layout.window else _continued(model, pairs, window_s)


def _continued(model: Codec, pairs: Iterable[Coded], window_s: float) -> Iterator[Tensor]:
    """Audio of codes, window by window."""
    decoder, found = WindowDecoder(model), None
    device, frames = _device(model), _frames(model, window_s)

    def codes_of() -> Iterator[Tensor]:
        nonlocal found
        for codes, scale in pairs:
            found = scale  # one of the whole signal
            yield codes

    for codes, last in _pieces(codes_of(), frames, frames):
        if found is not None and not decoder.renormalize:
            raise ConfigError("decode_chunks got a scale, but this model has renormalize=false; pass scale=None.")
        wav = decoder.step(codes.to(device), last)
        if wav is not None:
            yield wav if found is None else wav * found.to(wav).view(-1, 1, 1)


def _cross_faded(model: Codec, pairs: Iterable[Coded], layout: Layout) -> Iterator[Tensor]:
    """Audio of chunks that were coded by themselves."""
    ahead: tuple[Tensor, Tensor] | None = None  # samples that the next chunk adds to, and their weights
    for codes, scale in pairs:
        with torch.no_grad():
            wav = model.decode(codes.to(_device(model)), None if scale is None else scale.to(_device(model)))
        if wav.shape[2] > layout.window:
            most = layout.window // layout.hop
            raise DataError(
                f"a chunk of {codes.shape[2]} frames; this model decodes up to {most}, as they were encoded."
            )
        weight = _triangle(layout.window).to(wav)[: wav.shape[2]]
        wav = wav * weight
        if ahead is not None:
            shared = ahead[1].shape[0]
            more = max(0, shared - wav.shape[2])  # the last chunk may end before the one before it does
            wav, weight = nn.functional.pad(wav, (0, more)), nn.functional.pad(weight, (0, more))
            wav[..., :shared] += ahead[0]
            weight[:shared] += ahead[1]
        done = min(layout.step, wav.shape[2])
        yield wav[..., :done] / weight[:done]
        ahead = wav[..., done:], weight[done:]
    if ahead is None:
        raise DataError("there are no codes to decode; give one chunk at least.")
    if ahead[1].shape[0]:
        yield ahead[0] / ahead[1]


def _triangle(length: int) -> Tensor:
    """Weights [length] of a chunk's samples: a triangle that is above zero at both ends."""
    return 0.5 - (torch.arange(1, length + 1, dtype=torch.float64) / (length + 1) - 0.5).abs()


class WindowDecoder:
    """Decodes codes window by window, to the audio of one pass.

    Args:
        model: whose decoder can be continued.
    """

    def __init__(self, model: Codec) -> None:
        parts: Any = model
        decoder: SEANetDecoder = parts.decoder
        self.model, self.renormalize = model, bool(parts.renormalize)
        layers = list(decoder.model)
        at = next((i for i, layer in enumerate(layers) if isinstance(layer, StreamableLSTM)), 0)
        lstm = layers[at]
        self._lstm = lstm if isinstance(lstm, StreamableLSTM) else None
        first = nn.Sequential(*layers[:at])
        rest = nn.Sequential(*layers[at + (self._lstm is not None) :])
        self._front, self._back = _Convolutions(first, 1), _Convolutions(rest, decoder.hop_length)
        self._state: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def step(self, codes: Tensor, last: bool) -> Tensor | None:
        """Audio [B, C, t] that codes [B, K, t'] complete, None if they do not; to the end if they are the last."""
        frames = self._front.push(self.model.decode_latent(codes), last)
        if frames is None:
            return None
        if self._lstm is not None:
            held = frames.permute(2, 0, 1)
            out, self._state = self._lstm.lstm(held, self._state)
            frames = (out + held if self._lstm.skip else out).permute(1, 2, 0)
        return self._back.push(frames, last)


class _Convolutions:
    """Convolutions over a signal in pieces, to the output of one pass.

    Args:
        layers: that give `factor` samples a frame.
        factor: samples of a frame.
    """

    def __init__(self, layers: nn.Sequential, factor: int) -> None:
        self._layers, self._factor = layers, factor
        self._left, self._right = _frames_around(layers, factor)
        # Where the signal begins, its mirror image shows the first frames what comes later.
        self._start = self._left + self._right if len(layers) else 0
        self._kept: Tensor | None = None  # frames that are still looked at
        self._kept_from = self._done = 0  # place of the first of them; frames whose output is out

    def push(self, frames: Tensor, last: bool) -> Tensor | None:
        """Output [B, C, t * factor] of the frames that further ones [B, D, t] decide; None if there is none."""
        held = frames if self._kept is None else torch.cat([self._kept, frames], dim=2)
        end = self._kept_from + held.shape[2]
        until = end if last else max(self._done, end - self._right if end > self._start else 0)
        out: Tensor | None = None
        if until > self._done:
            first, stop = ((at - self._kept_from) * self._factor for at in (self._done, until))
            out = self._layers(held)[..., first:stop]
        begin = max(0, until - self._left)
        self._kept = held[..., begin - self._kept_from :].contiguous()
        self._kept_from, self._done = begin, until
        return out


def _frames_around(layers: nn.Sequential, factor: int) -> tuple[int, int]:
    """How many frames before and after a frame decide its samples."""
    first, stop = _needed(layers, 0, factor)
    return max(0, -first), max(0, stop - 1)


def _needed(layer: nn.Module, first: int, stop: int) -> tuple[int, int]:
    """Inputs of a layer, a range, that decide its outputs of a range."""
    if isinstance(layer, StreamableConv1d):  # of stride 1
        left, right = reach(layer)
        return first - left, stop + right
    if isinstance(layer, StreamableConvTranspose1d):
        conv = layer.convtr.convtr
        taps, stride = conv.kernel_size[0], conv.stride[0]
        return -((taps - 1 - first - layer.trim_left) // stride), (stop - 1 + layer.trim_left) // stride + 1
    if isinstance(layer, SEANetResnetBlock):
        paths = [_needed(layer.block, first, stop), _needed(layer.shortcut, first, stop)]
        return min(path[0] for path in paths), max(path[1] for path in paths)
    if isinstance(layer, nn.Sequential):
        for inner in reversed(layer):
            first, stop = _needed(inner, first, stop)
    return first, stop


def _frames(model: Codec, window_s: float) -> int:
    """Frames of a window, after a check of its length."""
    if not 1 / model.frame_rate <= window_s <= LONGEST_S:
        raise ConfigError(f"windows of {window_s} s; expected from {1 / model.frame_rate:.3g} s to {LONGEST_S}.")
    return round(window_s * model.frame_rate)


def _streamable(model: Codec) -> bool:
    """Whether both sides of a codec can be continued."""
    decoder = getattr(model, "decoder", None)
    if not continuable(model) or not isinstance(decoder, SEANetDecoder):
        return False
    return not any(isinstance(one, nn.GroupNorm) for one in decoder.modules())


def _pieces(chunks: Iterable[Tensor], length: int, step: int) -> Iterator[tuple[Tensor, bool]]:
    """Pieces [..., length] of a signal in chunks, each `step` after the one before; the last ones end with it."""
    held: Tensor | None = None
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], dim=2)
        while held.shape[2] > length:
            yield held[..., :length], False
            held = held[..., step:]
    if held is None or not held.shape[2]:
        raise DataError("the signal is empty; give one sample or one code at least.")
    while held.shape[2] > step:
        yield held[..., :length], False
        held = held[..., step:]
    yield held, True


def _checked(model: Codec, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The chunks of a wav, those without samples left out."""
    for wav in chunks:
        if wav.dim() != 3 or wav.shape[1] != model.channels:
            raise DataError(f"a chunk is {list(wav.shape)}; this model takes [B, {model.channels}, T].")
        if wav.shape[2]:
            yield wav


def _device(model: Codec) -> torch.device:
    *_, last = model.state_dict().values()  # of the quantiser, which both directions need
    device: torch.device = last.device
    return device

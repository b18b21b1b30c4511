"""The generate stage of a language model: what each head draws, as audio and codes, and its distance from music.

Clips are drawn from nothing and as continuations of held-out tracks, and decoded by the codec. Their distance is that
to held-out codes decoded by the same codec, so that what the codec itself loses does not count; of continuations, to
what really follows. Both heads draw with the same random numbers: the distance of the parallel head less that of the
chain head is what it costs in sound to draw the codebooks of a step side by side.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from audiotok.data import SegmentInfo
from audiotok.data.names import clip_name
from audiotok.data.tokens import TokenSet, TokenTrack
from audiotok.distributed import gather_objects, is_source, rank, world_size
from audiotok.errors import ConfigError, DataError
from audiotok.files import write_json
from audiotok.metrics.frechet import LogMelFrames, Moments, SetDistance, distance_of_sets
from audiotok.models.codec_lm import CodecLM
from audiotok.models.encodec import CompressionModel
from audiotok.models.lm import Sampling
from audiotok.solvers.samples import save_sample
from audiotok.solvers.settings import settings

logger = logging.getLogger(__name__)

REPORT = "generate.json"
_METRICS = {"fmd": "mel", "fcd": "codes"}  # distances, and the moments that they compare
_SUFFIX = {"parallel": "", "chain": "_chain"}  # of the name of a metric, by head
_CLIPS = 64  # of runs that were frozen without the key


@dataclass(frozen=True)
class Drawing:
    """How clips are drawn.

    Attributes:
        frames: of a clip, with those of its prompt.
        sampling: how codes are drawn from logits.
        guidance: see `LMModel.generate`.
        seed: of all clips; each derives its own from it and from its number.
    """

    frames: int
    sampling: Sampling
    guidance: float
    seed: int

    def __call__(
        self,
        lm: CodecLM,
        numbers: Sequence[int],
        *,
        head: str,
        prompt: Tensor | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> Tensor:
        """Codes [B, K, frames] of the clips of some numbers, which depend on nothing else of their batch.

        Args:
            lm: the language model, in evaluation mode.
            numbers: of the clips.
            head: which head draws.
            prompt: codes [B, K, less than frames] that they begin with.
            labels: of each; without effect on a model without labels.

        Raises:
            ConfigError, DataError: see `LMModel.generate`, `CodecLM.label_ids`.
        """
        return lm.generate(
            self.frames,
            num_samples=len(numbers),
            prompt=prompt,
            labels=lm.label_ids(labels) if labels is not None and lm.num_labels else None,
            guidance=self.guidance,
            sampling=self.sampling,
            head=head,
            generator=[_generator(self.seed, number) for number in numbers],
        )


def _generator(seed: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


@dataclass(frozen=True)
class _HeldOut:
    """Tracks of some token sets, each recording once."""

    tracks: list[tuple[TokenSet, int]]

    @staticmethod
    def of(sets: Sequence[TokenSet]) -> "_HeldOut":
        found = {track.path: (tokens, i) for tokens in reversed(sets) for i, track in enumerate(tokens.tracks)}
        return _HeldOut([found[path] for path in sorted(found)])

    def track(self, number: int) -> TokenTrack:
        tokens, index = self.tracks[number]
        return tokens.tracks[index]

    def codes(self, window: "_Window", frames: int) -> Tensor:
        """Codes [K, frames] from the start of a window on."""
        tokens, index = self.tracks[window.track]
        return tokens.codes(index, window.start, frames)


@dataclass(frozen=True)
class _Window:
    """A stretch of held-out codes."""

    track: int
    start: int


@dataclass(frozen=True)
class _Part:
    """Clips of one kind: `given` frames of each are a prompt; `written` are the numbers of those that become audio."""

    windows: list[_Window]
    given: int
    count: int
    written: frozenset[int]

    @property
    def kind(self) -> str:
        return "prompted" if self.given else "unprompted"


@dataclass(frozen=True)
class _Sample:
    """What is left of a clip in memory: the track that it belongs to, if any, and the moments of its frames."""

    track: int | None
    mel: Moments
    codes: Moments


@dataclass(frozen=True)
class _Stage:
    """What all parts share: models, held-out codes, how clips are drawn and where they are written."""

    lm: CodecLM
    codec: CompressionModel
    held_out: _HeldOut
    drawing: Drawing
    batch_size: int
    folder: Path
    epoch: int
    audio: DictConfig
    after_step: Callable[[], None]


@torch.no_grad()
def generate_clips(
    lm: CodecLM,
    codec: CompressionModel,
    tokens: Sequence[TokenSet],
    cfg: DictConfig,
    folder: Path,
    epoch: int,
    *,
    after_step: Callable[[], None],
) -> dict[str, float]:
    """Draw clips, write some of them below `folder/samples`, measure all; every rank must call this, all get the same.

    Returns `fmd` and `fcd` of clips from nothing, `fmd_prompted` and `fcd_prompted` of continuations, by the parallel
    head; the same with `_chain` by the chain head, and with `_gap` for the first less the second; of each `_err`, its
    standard error over recordings. What cannot be measured is left out, with the reason in the log. They also stand
    in `generate.json` of `folder`, with their settings.

    Args:
        lm: the language model, in evaluation mode.
        codec: of its codes, on the same device.
        tokens: held-out codes, of one split or more; a recording that several have counts once.
        cfg: the configuration, of which `generate` is read and, for the clips, `dataset.generate`.
        folder: of the experiment.
        epoch: of the weights, for names.
        after_step: to be called after each batch.

    Raises:
        ConfigError: for settings that cannot be used.
        DataError: if no track is as long as a clip, or one has a label that training has not seen.
    """
    data, of_lm = {**settings(cfg.dataset), **settings(cfg.dataset.generate)}, settings(cfg.generate.lm)
    seconds, prompt_s = data["segment_duration"], of_lm.get("prompt_duration", 0.0)
    drawing = Drawing(
        frames=max(1, round(seconds * codec.frame_rate)),
        sampling=Sampling(of_lm["temperature"], of_lm["top_k"], of_lm["top_p"]),
        guidance=of_lm.get("guidance", 1.0),
        seed=of_lm["seed"],
    )
    prompt = round(prompt_s * codec.frame_rate)
    if prompt >= drawing.frames:
        raise ConfigError(f"generate.lm.prompt_duration={prompt_s}: give less than the {seconds:g} s of a clip")
    batch_size = max(1, data["batch_size"] // world_size())
    held_out = _HeldOut.of(tokens)
    stage = _Stage(lm, codec, held_out, drawing, batch_size, folder, epoch, cfg.generate.audio, after_step)
    written = data["num_samples"]
    clips = max(of_lm.get("num_clips", _CLIPS), written)
    windows = _windows(held_out, drawing.frames, clips, codec.frame_rate)
    parts = [_Part(windows, 0, clips, _spread(clips, written))]
    if prompt:
        parts.append(_Part(windows, prompt, len(windows), _spread(len(windows), written)))
    metrics: dict[str, float] = {}
    for part in parts:
        reference = _samples(stage, part, None)
        metrics |= _distances(part, reference, {head: _samples(stage, part, head) for head in lm.heads})
    if is_source():
        shown = {**of_lm, "num_clips": clips, "segment_duration": seconds}
        write_json(folder / REPORT, {"epoch": epoch, "settings": shown, "metrics": metrics}, sync=False)
    return metrics


def check_held_out(tokens: Sequence[TokenSet], cfg: DictConfig, labels: Sequence[str]) -> None:
    """Check before training what the stage will ask of held-out tracks after it.

    Args:
        tokens: held-out codes.
        cfg: the configuration, of which `dataset` is read.
        labels: of the training data.

    Raises:
        DataError: if no track is as long as a clip, or one has a label that training has not seen.
    """
    held_out, seconds = _HeldOut.of(tokens), {**settings(cfg.dataset), **settings(cfg.dataset.generate)}
    frames = max(1, round(seconds["segment_duration"] * tokens[0].frame_rate))
    for number, room in enumerate(_rooms(held_out, frames, tokens[0].frame_rate)):
        track = held_out.track(number)
        if room and track.label is not None and track.label not in labels:
            known = ", ".join(labels[:20]) or "none"
            raise DataError(
                f"{held_out.tracks[number][0].folder}: {track.path} has label {track.label!r}, which is not among "
                f"those of training: {known}. Leave its tracks out of the manifest, or train with it."
            )


def _rooms(held_out: _HeldOut, frames: int, frame_rate: float) -> list[int]:
    """How many windows each track has; DataError if there is none."""
    lengths = [held_out.track(number).frames for number in range(len(held_out.tracks))]
    if max(lengths) < frames:
        raise DataError(
            f"{held_out.tracks[0][0].folder}: every track is shorter than the {frames / frame_rate:.3g} s of a "
            f"generated clip, the longest has {max(lengths) / frame_rate:.3g} s; lower "
            "dataset.generate.segment_duration"
        )
    return [length // frames for length in lengths]


def _windows(held_out: _HeldOut, frames: int, most: int, frame_rate: float) -> list[_Window]:
    """Windows of held-out codes that do not overlap, evenly spread; DataError if there is none."""
    rooms = _rooms(held_out, frames, frame_rate)
    every = [_Window(track, place * frames) for track, room in enumerate(rooms) for place in range(room)]
    if short := rooms.count(0):
        where = held_out.tracks[0][0].folder
        logger.warning("%s: left out %d of %d tracks: shorter than a clip", where, short, len(rooms))
    return [every[index] for index in sorted(_spread(len(every), most))]


def _spread(count: int, most: int) -> frozenset[int]:
    """At most so many of the first `count` numbers, evenly spread."""
    taken = min(count, most)
    return frozenset((2 * i + 1) * count // (2 * taken) for i in range(taken))


# --- Clips ---


def _samples(stage: _Stage, part: _Part, head: str | None) -> list[_Sample]:
    """The clips that a head draws, or without a head the held-out ones; of all processes."""
    count = len(part.windows) if head is None else part.count
    logger.info("%d clips, %s, %s", count, part.kind, "held out" if head is None else f"drawn by the {head} head")
    mel_frames = LogMelFrames(stage.codec.sample_rate)
    found: dict[int, _Sample] = {}
    for numbers in _batches(stage, count):
        # From nothing there may be more clips than windows, which then give their labels in turn.
        windows = [part.windows[number % len(part.windows)] for number in numbers]
        codes = _codes(stage, part, windows, numbers, head)
        wavs = stage.codec.decode(codes).float().cpu()
        begin = part.given * (wavs.shape[-1] // codes.shape[-1])
        vectors = stage.codec.decode_latent(codes[..., part.given :]).transpose(1, 2)
        for number, window, wav, latent in zip(numbers, windows, wavs, vectors, strict=True):
            track = None if head is not None and not part.given else window.track
            found[number] = _Sample(track, _moments(mel_frames, wav[:, begin:]), Moments.of(latent))
        if head is not None or part.given:
            _write(stage, part, head, list(zip(numbers, windows, wavs, codes, strict=True)))
    every: dict[int, _Sample] = {}
    for own in gather_objects(found):
        every |= own
    return [every[number] for number in sorted(every)]


def _batches(stage: _Stage, count: int) -> Iterator[list[int]]:
    """Numbers of the clips of this process, batch by batch; processes have as many batches, of which some are empty."""
    own = range(rank(), count, world_size())
    for first in range(0, -(-count // world_size()), stage.batch_size):
        numbers = list(own[first : first + stage.batch_size])
        if numbers:
            yield numbers
        stage.after_step()


def _codes(stage: _Stage, part: _Part, windows: Sequence[_Window], numbers: Sequence[int], head: str | None) -> Tensor:
    """Codes [B, K, T]: those of the windows, or what a head draws."""
    device = stage.lm.out_norm.weight.device

    def held_out(frames: int) -> Tensor:
        return torch.stack([stage.held_out.codes(window, frames) for window in windows]).to(device)

    if head is None:
        return held_out(stage.drawing.frames)
    prompt = held_out(part.given) if part.given else None
    labels = [stage.held_out.track(window.track).label for window in windows]
    return stage.drawing(stage.lm, numbers, head=head, prompt=prompt, labels=labels)


def _moments(mel_frames: LogMelFrames, wav: Tensor) -> Moments:
    try:
        return Moments.of(mel_frames(wav))
    except DataError as error:
        raise DataError(
            f"what is drawn of a clip is {error} ({mel_frames.n_fft} samples); raise dataset.generate.segment_duration "
            "or lower generate.lm.prompt_duration"
        ) from None


def _write(stage: _Stage, part: _Part, head: str | None, clips: list[tuple[int, _Window, Tensor, Tensor]]) -> None:
    """Write the chosen clips of a batch, with their codes [K, T] as `NAME.npy`; references beside where they are from.

    A continuation and what really follows have one name, as reports expect: there is a reference for each head.
    """
    folder = stage.folder / "samples" / ("reference" if head is None else f"epoch_{stage.epoch:04d}")
    for number, window, wav, codes in clips:
        if number not in part.written:
            continue
        for one in stage.lm.heads if head is None else (head,):
            info = _source(stage, window)
            name = f"{part.kind}_{one}-{clip_name(info) if part.given else f'{number:04d}'}"
            save_sample(
                folder / f"{name}.{stage.audio.format}", wav, stage.codec.sample_rate, strategy=stage.audio.strategy
            )
            np.save(folder / f"{name}.npy", codes.cpu().numpy().astype(np.uint16))
            if head is None:
                prompt_s = part.given / stage.codec.frame_rate
                source = {"path": str(info.path), "start_s": info.start_s, "prompt_s": prompt_s}
                write_json(folder / f"{name}.json", source, sync=False)


def _source(stage: _Stage, window: _Window) -> SegmentInfo:
    """Where the audio of a window is from."""
    path, rate = Path(stage.held_out.track(window.track).path), stage.codec.sample_rate
    frames = round(stage.drawing.frames / stage.codec.frame_rate * rate)
    track = "/".join(path.parts[-2:])  # album and title: a hash of the whole path would be another on each machine
    return SegmentInfo(path, window.start / stage.codec.frame_rate, frames, frames, rate, track)


# --- Distances ---


def _distances(part: _Part, reference: list[_Sample], drawn: dict[str, list[_Sample]]) -> dict[str, float]:
    """Distances of what each head has drawn, and their difference, with errors."""
    metrics: dict[str, float] = {}
    for name, of in _METRICS.items():
        base = f"{name}_prompted" if part.given else name
        try:
            found = {f"{base}{_SUFFIX[head]}": _distance(of, own, reference, part) for head, own in drawn.items()}
        except DataError as error:
            if is_source():
                logger.warning("%s is left out: %s", base, error)
            continue
        if len(found) == 2:
            found[f"{base}_gap"] = found[base] - found[f"{base}{_SUFFIX['chain']}"]
        for key, one in found.items():
            if math.isfinite(one.value):
                metrics |= {key: one.value, f"{key}_err": one.error}
    return metrics


def _distance(of: str, own: list[_Sample], reference: list[_Sample], part: _Part) -> SetDistance:
    generated, held_out = _recordings(of, own), _recordings(of, reference)
    return distance_of_sets(generated, held_out, paired=part.given > 0, relative=of == "codes")


def _recordings(of: str, samples: list[_Sample]) -> list[Moments]:
    """Moments of what is one independent draw: all clips of a track, or a clip from nothing."""
    groups: dict[tuple[int, int], list[Moments]] = {}
    for number, sample in enumerate(samples):
        key = (-1, number) if sample.track is None else (sample.track, 0)
        groups.setdefault(key, []).append(getattr(sample, of))
    return [functools.reduce(Moments.merge, groups[key]) for key in sorted(groups)]

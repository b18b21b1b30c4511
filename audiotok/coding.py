"""Audio files to token files and back, many in one call: mirrored folders, resumed, each complete or not there.

Audio is read, coded and written in windows (`audiotok.models.chunks`): memory does not depend on its length.
"""

import io
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from audiotok.data.audio import ENCODINGS, WRITE_BLOCK, AudioInfo, audio_info, read_at
from audiotok.errors import ConfigError, DataError
from audiotok.files import replacing
from audiotok.files_to_files import OutputError, Progress, Report, Step, find_files, plan_targets, run_files
from audiotok.interchange.atok import SUFFIX, Header, is_token_file, read_header, read_tokens, source_hash, write_tokens
from audiotok.models.chunks import Layout, decode_chunks, encode_chunks, layout_of, volume
from audiotok.models.encodec import CompressionModel
from audiotok.models.fingerprint import codec_hash

logger = logging.getLogger(__name__)

# Extensions that are looked for in folders; a file that is named may have any that libsndfile reads.
AUDIO = (*ENCODINGS, ".aif", ".aifc", ".aiff", ".au", ".caf", ".oga", ".rf64", ".snd", ".voc", ".w64")
_READ_S = 5.0  # seconds read at once
_COMMENT = re.compile(rb"audiotok [0-9a-f]{16} [0-9a-f]{32}")  # of a decoded file: codec, and token file


def encode_files(
    model: CompressionModel,
    sources: Sequence[Path],
    out: Path,
    *,
    codec: str,
    strict: bool = False,
    jobs: int = 1,
    release: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Report:
    """Encode audio files into token files: `calm/a.wav` below a source folder becomes `out/calm/a.wav.atok`.

    Args:
        model: the codec, on its device, with as many codebooks in use as are to be stored.
        sources: audio files, and folders of them.
        out: folder of the token files; made if it is missing.
        codec: name of the codec that the files hold for people.
        strict: whether another sample rate or number of channels than the codec's is an error of the file.
        jobs: files at once, in threads.
        release: give back the memory of the decoder (of `decode_files`, of the encoder), which the model then lacks.
        progress: called with the seconds of audio done and those to do.
        report: filled in as files are done.

    Raises:
        ConfigError: if the codec has no codes to store, or an option is out of its range.
        DataError: if there is no audio file, two would have one name, or the output cannot be written.
    """
    _check_codec(model, codec)
    report = Report() if report is None else report
    plan = plan_targets(find_files(sources, AUDIO), out, lambda name: name + SUFFIX)
    infos = dict[Path, AudioInfo]()
    for source in plan:
        try:
            if not os.path.isfile(source):
                raise DataError(f"{source}: no such file or folder. Check the path.")
            infos[source] = audio_info(source)
        except DataError as error:
            report.failed.append((source, str(error)))
    if not strict:
        _notice(infos, model)
    maker = _Encoder(model, codec, codec_hash(model), layout_of(model), strict)
    if release:
        _release(model, "decoder")
    lengths = {source: info.duration_s for source, info in infos.items()}
    run_files(maker.code, {source: plan[source] for source in infos}, lengths, jobs, progress, report)
    return report


def decode_files(
    model: CompressionModel,
    sources: Sequence[Path],
    out: Path,
    *,
    format: str = "wav",
    jobs: int = 1,
    release: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Report:
    """Decode token files: `calm/a.wav.atok` below a source folder becomes `out/calm/a.wav`, or with flac `a.wav.flac`.

    Audio is at the codec's rate, and as long as what was encoded. Arguments and errors as of `encode_files`.
    """
    if f".{format}" not in ENCODINGS:
        raise ConfigError(f"--format {format}: choose one of {', '.join(each[1:] for each in ENCODINGS)}.")
    report, end = Report() if report is None else report, f".{format}"
    _check_format(model, format)

    def name_of(name: str) -> str:
        stem = name.removesuffix(SUFFIX)
        return stem if stem.endswith(end) else stem + end

    plan = plan_targets(find_files(sources, (SUFFIX,)), out, name_of)
    lengths = dict[Path, float]()
    for source in plan:
        try:
            lengths[source] = read_header(source).duration_s
        except DataError as error:
            report.failed.append((source, str(error)))
    maker = _Decoder(model, codec_hash(model), layout_of(model), ENCODINGS[end])
    if release:
        _release(model, "encoder")
    run_files(maker.code, {source: plan[source] for source in lengths}, lengths, jobs, progress, report)
    return report


def token_files(sources: Sequence[Path]) -> list[Path]:
    """Token files among and below some paths; DataError if there are none."""
    return list(find_files(sources, (SUFFIX,)))


def codebooks_within(model: CompressionModel, kbps: float) -> int:
    """The most codebooks whose codes, at full entropy, take no more than this bandwidth; ConfigError if not one."""
    one = model.frame_rate * math.log2(model.cardinality) / 1000
    count = min(model.total_codebooks, int(kbps / one + 1e-6)) if math.isfinite(kbps) else 0
    if count < 1:
        most = model.total_codebooks
        raise ConfigError(f"--bandwidth {kbps:g}: one codebook takes {one:.3g} kb/s, all {most} {most * one:.3g}.")
    return count


def _release(model: CompressionModel, part: str) -> None:
    """Give back the memory of one part of a model."""
    module = getattr(model, part, None)
    if isinstance(module, nn.Module):
        module.to("meta")


@dataclass(frozen=True, slots=True)
class _Encoder:
    model: CompressionModel
    codec: str
    hash: str
    layout: Layout
    strict: bool

    def code(self, source: Path, target: Path, step: Step) -> int | None:
        """Bytes of the token file that was made; None if it was there."""
        info, digest, model = audio_info(source), source_hash(source), self.model
        rate, channels = model.sample_rate, model.channels
        if self.strict and (info.sample_rate, info.channels) != (rate, channels):
            raise DataError(
                f"{source}: {info.channels} × {info.sample_rate} Hz; the codec takes {channels} × {rate} Hz. "
                "Convert it, or leave out --strict."
            )
        if os.path.isfile(target):
            if self._is_done(target, digest):
                return None
            if not is_token_file(target):
                raise DataError(f"{target} is there, and no token file; it is kept. Move it, or give another --out.")
        scale = None
        if self.layout.window == 0 and getattr(model, "renormalize", False):
            scale = volume(self._chunks(source, info, lambda seconds: None))
        counter = [0]
        # One block: an array a window, kept among the large ones that come and go, would split the memory.
        codes, scales = bytearray(), list[float]()
        for each, one in encode_chunks(model, self._chunks(source, info, step, counter), scale=scale):
            codes += each[0].T.cpu().numpy().astype(np.uint16).tobytes()
            if one is not None:
                scales.append(float(one))
        if scale is not None:
            scales = scales[:1]
        whole = np.frombuffer(codes, np.uint16).reshape(-1, model.num_codebooks).T
        header = Header(
            self.codec, self.hash, digest, rate, channels, self.layout.hop, info.sample_rate, info.channels,
            counter[0], model.num_codebooks, model.cardinality, self.layout.window, self.layout.step,
            whole.shape[1], len(scales),
        )  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_tokens(target, header, whole, scales)

    def _is_done(self, target: Path, digest: str) -> bool:
        try:
            found = read_tokens(target).header
        except DataError:
            return False
        return (found.codec_hash, found.source_hash, found.n_q) == (self.hash, digest, self.model.num_codebooks)

    def _chunks(self, source: Path, info: AudioInfo, step: Step, counter: list[int] | None = None) -> Iterator[Tensor]:
        """The audio of a file [1, C, t] at the codec's rate and channels; counts its samples."""
        rate, at = self.model.sample_rate, 0
        grid = rate // math.gcd(rate, info.sample_rate)
        total, block = math.ceil(info.frames * rate / info.sample_rate), round(_READ_S * rate)
        while at < total:
            rest = total - at <= block
            options = {"sample_rate": rate, "channels": self.model.channels, "grid": grid}
            wav = read_at(source, at, None if rest else block, **options)
            at += wav.shape[1]
            if counter is not None:
                counter[0] = at
            yield wav[None]
            step(wav.shape[1] / rate)
            if rest or wav.shape[1] < block:
                return


@dataclass(frozen=True, slots=True)
class _Decoder:
    model: CompressionModel
    hash: str
    layout: Layout
    kind: tuple[str, str]

    def code(self, source: Path, target: Path, step: Step) -> int | None:
        """Bytes of the token file that was decoded; None if its audio was there."""
        tokens = read_tokens(source)
        header = tokens.header
        if header.codec_hash != self.hash:
            raise DataError(
                f"{source} is of another codec ({header.codec}, {header.codec_hash[:12]}) than --model "
                f"({self.hash[:12]}). Give the one that encoded it."
            )
        self._check(source, header)
        comment = f"audiotok {self.hash[:16]} {source_hash(source)}"
        if os.path.isfile(target):
            found = _comment(target)
            if found == comment and _is_whole(target, header):
                return None
            if source_hash(target) == header.source_hash:
                raise DataError(f"{target} is the file that {source} was encoded from; it is kept. Give another --out.")
            if not found:
                raise DataError(
                    f"{target} is there, and not made by decode; it is kept. Move it, or give another --out."
                )
        target.parent.mkdir(parents=True, exist_ok=True)
        left = header.samples
        with _writer(target, header.sample_rate, header.channels, self.kind, comment) as write:
            for wav in decode_chunks(self.model, self._pairs(tokens)):
                part = wav[0, :, :left].float().cpu()
                if not bool(torch.isfinite(part).all()):
                    raise DataError(f"{source}: the decoded audio holds NaN or infinity.")
                if part.shape[1]:
                    write(part.clamp(-1, 1).T.numpy())
                left -= part.shape[1]
                step(part.shape[1] / header.sample_rate)
        return tokens.size

    def _check(self, source: Path, header: Header) -> None:
        """DataError if a header is not one that this codec writes, whatever hash it claims."""
        model = self.model
        if (header.window, header.step, header.hop) != (self.layout.window, self.layout.step, self.layout.hop):
            raise DataError(f"{source}: its chunks are not those of this codec. Encode it again.")
        for name, found, expected in (
            ("sample_rate", header.sample_rate, model.sample_rate),
            ("channels", header.channels, model.channels),
            ("bins", header.bins, model.cardinality),
            ("n_q", header.n_q, min(header.n_q, model.total_codebooks)),
            ("volumes", bool(header.scales), bool(getattr(model, "renormalize", False))),
        ):
            if found != expected:
                raise DataError(f"{source}: {name} is {found:d}; this codec has {expected:d}. Encode it again.")

    def _pairs(self, tokens: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Codes [1, K, t] and scale, chunk by chunk."""
        header, scales = tokens.header, tokens.scales
        blocks = (torch.from_numpy(block.astype(np.int64))[None] for block in tokens.blocks())
        if not header.window:
            scale = torch.from_numpy(scales)[:, None] if len(scales) else None
            yield from ((block, scale) for block in blocks)
            return
        held = torch.zeros(1, header.n_q, 0, dtype=torch.int64)
        for index, count in enumerate(self.layout.frames(header.samples)):
            while held.shape[2] < count:
                held = torch.cat([held, next(blocks)], dim=2)
            yield held[..., :count], torch.tensor([[scales[index]]]) if len(scales) else None
            held = held[..., count:]


@contextmanager
def _writer(
    path: Path, rate: int, channels: int, kind: tuple[str, str], comment: str
) -> Iterator[Callable[[np.ndarray[Any, Any]], None]]:
    """Write an audio file part by part; it is complete, or not there."""
    container, subtype = kind
    with replacing(path) as draft:
        with _as_output(path):
            file = soundfile.SoundFile(os.fsencode(draft), "w", rate, channels, format=container, subtype=subtype)
            file.comment = comment

        def write(part: np.ndarray[Any, Any]) -> None:
            with _as_output(path):
                for start in range(0, len(part), WRITE_BLOCK):
                    file.write(part[start : start + WRITE_BLOCK])

        try:
            yield write
        finally:
            with _as_output(path):
                file.close()


@contextmanager
def _as_output(path: Path) -> Iterator[None]:
    """Errors of libsndfile, which opens or writes nothing on a full disk and on one that may not be written."""
    try:
        yield
    except (soundfile.SoundFileError, AssertionError, ValueError) as error:
        reason = str(getattr(error, "error_string", "") or error or "the disk is full").rstrip(".")
        raise OutputError(f"{path} cannot be written ({reason}). What is done is kept.") from error


def _comment(path: Path) -> str:
    """What decode has put into an audio file, which may be cut off; "" if it is of others."""
    try:
        with path.open("rb") as file:
            found = _COMMENT.search(file.read(1 << 16))
    except OSError:
        return ""
    return found[0].decode() if found else ""


def _is_whole(path: Path, header: Header) -> bool:
    """Whether an audio file has the last sample that a token file is decoded to; what lies before it is not read."""
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            file.seek(max(0, header.samples - 1))
            return bool(file.samplerate == header.sample_rate and len(file.read(1)) == min(1, header.samples))
    except (soundfile.SoundFileError, RuntimeError):
        return False


def _notice(infos: dict[Path, AudioInfo], model: CompressionModel) -> None:
    """Which files are resampled or mixed."""
    rates = Counter(info.sample_rate for info in infos.values() if info.sample_rate != model.sample_rate)
    for rate, count in sorted(rates.items()):
        logger.info(
            "resampled from %d to %d Hz: %d %s", rate, model.sample_rate, count, "file" if count == 1 else "files"
        )
    channels = Counter(info.channels for info in infos.values() if {info.channels, model.channels} == {1, 2})
    for found, count in channels.items():
        what = "mixed down to mono" if found == 2 else "mono taken for both channels"
        logger.info("%s: %d %s", what, count, "file" if count == 1 else "files")


def _check_format(model: CompressionModel, format: str) -> None:
    container, subtype = ENCODINGS[f".{format}"]
    kind = {"format": container, "subtype": subtype}
    try:
        soundfile.SoundFile(io.BytesIO(), "w", model.sample_rate, model.channels, **kind).close()
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
        where = f"{model.sample_rate} Hz, {model.channels} channel{'s' * (model.channels > 1)}"
        raise ConfigError(f"--format {format} cannot hold {where} ({reason}). Choose another.") from error


def _check_codec(model: CompressionModel, codec: str) -> None:
    if not 2 <= model.cardinality <= 1 << 16:
        raise ConfigError(f"{codec} has codes of {model.cardinality} values; a token file holds 2 to {1 << 16}.")
    if not getattr(getattr(model, "quantizer", None), "ready", True):
        raise ConfigError(f"{codec} is not trained: its codebooks are empty. Train it first.")

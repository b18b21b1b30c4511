"""Tracks to tokens: the codes of one pass over each file of any length, rate and format; going on after a kill."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiotok.data.audio import audio_info, convert_audio, read_audio
from audiotok.data.manifest import AudioMeta, write_manifest
from audiotok.data.tokens import TokenSet
from audiotok.errors import ConfigError, DataError
from audiotok.models import EncodecModel, get_compression_model
from audiotok.models.fingerprint import codec_hash
from audiotok.models.windows import WindowEncoder
from audiotok.tokenizing import Statistics, manifest_hash, tokenize, tokenize_part
from tests.codecs import RATE, config, small_codec
from tests.conftest import chords

FILES = [  # name, seconds, rate, channels
    ("calm/short.wav", 0.4, RATE, 1),
    ("calm/one.flac", 2.0, 16000, 2),
    ("wild/two.ogg", 3.37, 44100, 2),
    ("wild/three.mp3", 2.9, 22050, 1),
    ("four.wav", 5.001, 11025, 2),
    ("five.wav", 1.7, 9973, 1),  # Hz: no common divisor with 8000
    ("six.opus", 2.2, 48000, 2),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    metas = []
    for seed, (name, seconds, rate, channels) in enumerate(FILES):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        kind: dict[str, Any] = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
        soundfile.write(path, chords(seed, seconds, rate)[:, :channels].astype(np.float32), rate, **kind)
        info = audio_info(path)
        metas.append(AudioMeta(path, info.duration_s, info.sample_rate, info.channels))
    return write_manifest(folder / "music.jsonl", metas)


@pytest.fixture(scope="module")
def model() -> EncodecModel:
    return small_codec()


def in_one_pass(model: EncodecModel, path: Path) -> tuple[torch.Tensor, float | None]:
    wav, rate = read_audio(path)
    codes, scale = model.encode(convert_audio(wav, rate, model.sample_rate, model.channels)[None])
    return codes[0], None if scale is None else float(scale)


@pytest.mark.parametrize(
    "kind", [{}, {"causal": True}, {"renormalize": True, "channels": 2}, {"lstm": 0, "pad_mode": "constant"}]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_codes_of_files_are_those_of_one_pass(
    manifest: Path, kind: dict[str, Any], batch_size: int, tmp_path: Path
) -> None:
    """In float32: rounding may decide a code in a thousand; not resampling in parts is that exact, either."""
    model = small_codec(**kind)
    options: dict[str, Any] = {"batch_size": batch_size, "window_s": 0.5}
    tokens = tokenize(model, [manifest], tmp_path / "out", codec="mine", **options)
    assert tokens.codec_hash == codec_hash(model) and tokens.n_q == 2 and tokens.frame_rate == 100
    assert [Path(track.path).name for track in tokens.tracks] == [Path(name).name for name, *_ in FILES]
    other = total = 0
    for index, track in enumerate(tokens.tracks):
        one, scale = in_one_pass(model, Path(track.path))
        assert tokens.codes(index).shape == one.shape and abs(track.duration - audio_info(track.path).duration_s) < 1e-3
        assert (track.scale is None) == (scale is None) and (scale is None or abs(track.scale - scale) < 1e-4 * scale)  # type: ignore[operator]
        other += int((tokens.codes(index) != one).sum())
        total += one.numel()
    assert other <= total / 200


def test_a_kill_costs_no_track_that_is_done(
    manifest: Path, model: EncodecModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize(model, [manifest], tmp_path / "whole", codec="mine", batch_size=1)
    step, finished = WindowEncoder.step, list[bool]()

    def interrupted(encoder: WindowEncoder, lanes: Any, wavs: Any, last: Any) -> None:
        if len(finished) == 3:
            raise KeyboardInterrupt
        step(encoder, lanes, wavs, last)
        finished.extend(last)

    monkeypatch.setattr(WindowEncoder, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize(model, [manifest], tmp_path / "out", codec="mine", batch_size=1)
    monkeypatch.undo()
    assert not (tmp_path / "out/tokens.json").exists()
    stats = Statistics()
    tokens = tokenize(model, [manifest], tmp_path / "out", codec="mine", batch_size=1, statistics=stats)
    assert stats.tracks == len(FILES) - 3
    assert all(torch.equal(tokens.codes(index), whole.codes(index)) for index in range(len(FILES)))
    stats = Statistics()
    assert tokenize(model, [manifest], tmp_path / "out", codec="mine", statistics=stats).tracks == tokens.tracks
    assert stats.tracks == 0, "complete: nothing is done"


def test_too_little_memory_is_one_line(
    manifest: Path, model: EncodecModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(WindowEncoder, "step", full)
    with pytest.raises(ConfigError, match="2 tracks side by side exceed the memory of the device: lower the batch"):
        tokenize(model, [manifest], tmp_path / "out", codec="mine", batch_size=2)


def test_labels_are_folders_or_fields_of_the_manifest(manifest: Path, model: EncodecModel, tmp_path: Path) -> None:
    tokens = tokenize(model, [manifest], tmp_path / "folders", codec="mine", label="folder")
    assert tokens.labels == sorted({manifest.parent.name, "calm", "wild"})
    assert [track.label for track in tokens.tracks[1:3]] == ["calm", "wild"]
    lines = [json.loads(line) for line in manifest.read_text().splitlines()[:4]]
    for line, genre in zip(lines, ("rock", None, 7, ""), strict=True):
        line["genre"] = genre
    tagged = manifest.parent / "tagged.jsonl"
    tagged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokens = tokenize(model, [tagged], tmp_path / "tags", codec="mine", label="genre")
    assert [track.label for track in tokens.tracks] == ["rock", None, "7", None] and tokens.labels == ["7", "rock"]
    with pytest.raises(DataError, match=r"no line of .*tagged\.jsonl has the field 'mood'; --label names one"):
        tokenize(model, [tagged], tmp_path / "none", codec="mine", label="mood")
    lines[1]["genre"] = "half \ud83d"  # no text that a file can hold
    tagged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"line 2: genre='half \\ud83d' is not Unicode text"):
        tokenize(model, [tagged], tmp_path / "half", codec="mine", label="genre")
    lines[1]["genre"] = ["a"]
    tagged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"line 2: genre=\['a'\]; a label is a text or a whole number"):
        tokenize(model, [tagged], tmp_path / "list", codec="mine", label="genre")


def test_unreadable_tracks_are_named_and_the_rest_goes_on(
    manifest: Path, model: EncodecModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = manifest.read_text().splitlines()
    gone = json.dumps({"path": "gone.wav", "duration": 30.0, "sample_rate": RATE})
    mine = manifest.parent / "with_gone.jsonl"
    mine.write_text("\n".join([gone, *lines]) + "\n")
    stats = Statistics()
    tokens = tokenize(model, [mine], tmp_path / "out", codec="mine", statistics=stats)
    assert len(tokens.tracks) == len(FILES) and stats.failed == 1 and "gone.wav" not in tokens.tracks[0].path
    assert "left out 1 of 8 tracks" in caplog.text and "gone.wav: no such file" in caplog.text


def test_a_track_that_is_damaged_within_is_left_out_and_its_neighbours_are_not(
    manifest: Path, model: EncodecModel, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).standard_normal((8 * RATE, 1)).astype(np.float32) * 0.1
    noise[6 * RATE] = np.nan
    soundfile.write(manifest.parent / "nan.wav", noise, RATE, subtype="FLOAT")
    line = json.dumps({"path": "nan.wav", "duration": 8.0, "sample_rate": RATE})
    mine = manifest.parent / "with_nan.jsonl"
    mine.write_text(manifest.read_text() + line + "\n")
    tokens = tokenize(model, [mine], tmp_path / "out", codec="mine", window_s=0.5)
    whole = tokenize(model, [manifest], tmp_path / "whole", codec="mine", window_s=0.5)
    assert len(tokens.tracks) == len(FILES)
    for index in range(len(FILES)):  # side by side with others: rounding
        assert (tokens.codes(index) != whole.codes(index)).float().mean() < 0.005


def test_a_file_of_several_manifests_counts_once(manifest: Path, model: EncodecModel, tmp_path: Path) -> None:
    few = manifest.parent / "few.jsonl"
    few.write_text("\n".join(manifest.read_text().splitlines()[:2]) + "\n")
    assert len(tokenize(model, [few, manifest], tmp_path / "out", codec="mine").tracks) == len(FILES)
    assert manifest_hash(few) != manifest_hash(manifest)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"quantizer": "no_quant"}, {}, "no_quant' has no codes"),
        ({"bins": 65537}, {}, "mine has codes of 65537 values; a token set holds up to 65536"),
        ({}, {"part": (3, 2)}, "part 3 of 2"),
        ({}, {"workers": 0}, "workers=0"),
        ({}, {"batch_size": 0}, "batch size 0"),
        ({}, {"window_s": 0.0}, "windows of 0.0 s"),
    ],
)
def test_what_cannot_be_tokenised_is_refused_before_anything_is_written(
    manifest: Path, change: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    cfg = config(**change)
    cfg.rvq.kmeans_init = False
    with pytest.raises(ConfigError, match=message):
        tokenize(get_compression_model(cfg).eval(), [manifest], tmp_path / "out", codec="mine", **options)
    assert not (tmp_path / "out").exists()


def test_a_codec_without_codebooks_is_not_trained(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mine is not trained: its codebooks are empty"):
        tokenize(get_compression_model(config()).eval(), [manifest], tmp_path / "out", codec="mine")


def test_parts_have_about_as_much_and_all_of_it(manifest: Path, model: EncodecModel, tmp_path: Path) -> None:
    seen, found = list[float](), None
    for number in (1, 2, 3):
        assert found is None
        stats = Statistics()
        options: dict[str, Any] = {"part": (number, 3), "statistics": stats}
        found = tokenize_part(model, [manifest], tmp_path / "out", codec="mine", **options)
        seen.append(stats.audio_s)
    whole = tokenize(model, [manifest], tmp_path / "whole", codec="mine")
    assert found is not None and len(found.tracks) == len(FILES) and len(found.shards) == 3
    assert max(seen) - min(seen) < 2.5 and sum(seen) > 17
    for index in range(len(FILES)):
        assert (found.codes(index) != whole.codes(index)).float().mean() < 0.005


def test_memory_does_not_grow_with_a_track(model: EncodecModel, tmp_path: Path) -> None:
    """Of one track of two minutes no more than a window is held: samples that reach the encoder at once."""
    soundfile.write(tmp_path / "long.wav", np.zeros(120 * RATE, np.int16), RATE)
    manifest = write_manifest(tmp_path / "m.jsonl", [AudioMeta(tmp_path / "long.wav", 120.0, RATE, 1)])
    longest = 0
    step = WindowEncoder.step

    def watched(encoder: WindowEncoder, lanes: Any, wavs: Any, last: Any) -> None:
        nonlocal longest
        longest = max(longest, *(wav.untyped_storage().nbytes() for wav in wavs))
        step(encoder, lanes, wavs, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowEncoder, "step", watched)
        tokens = tokenize(model, [manifest], tmp_path / "out", codec="mine", window_s=5.0)
    assert tokens.tracks[0].frames == 12000
    assert longest < 2 * 5 * RATE * 4


def make_part(manifest: Path, out: Path, number: int) -> None:
    """One of three parts, in a process of its own."""
    torch.set_num_threads(1)
    options: dict[str, Any] = {"part": (number, 3), "window_s": 0.2, "batch_size": 1}
    tokenize_part(small_codec(), [manifest], out, codec="mine", **options)


def test_processes_side_by_side_make_one_set(manifest: Path, model: EncodecModel, tmp_path: Path) -> None:
    """Three of them, one killed in the middle; the same part again makes the set whole."""
    context = multiprocessing.get_context("fork")  # as torch's data workers
    out = tmp_path / "out"
    parts = [context.Process(target=make_part, args=(manifest, out, number)) for number in (1, 2, 3)]
    for part in parts:
        part.start()
    while not list(out.glob("making/*.jsonl")) and any(part.is_alive() for part in parts):
        time.sleep(0.01)
    parts[1].kill()
    for part in parts:
        part.join(120)
    assert [parts[0].exitcode, parts[2].exitcode] == [0, 0]
    again = context.Process(target=make_part, args=(manifest, out, 2))
    again.start()
    again.join(120)
    assert again.exitcode == 0
    tokens = TokenSet.open(out)
    assert len(tokens.tracks) == len(FILES) and not (out / "making").exists()
    for index, track in enumerate(tokens.tracks):
        assert (tokens.codes(index) != in_one_pass(model, Path(track.path))[0]).float().mean() < 0.01

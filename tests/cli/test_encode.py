"""`audiotok encode` and `audiotok decode`: what they make, what they leave alone, and what a bad file costs."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiotok import cli, coding, files_to_files
from audiotok.data.audio import read_segment
from audiotok.interchange.atok import read_tokens, write_tokens
from audiotok.models import CompressionModel
from audiotok.models.chunks import decode_chunks
from tests.codecs import RATE, save_codec
from tests.conftest import chords


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A codec, and music in folders: of its rate and shape, of another, and in two formats of one name."""
    save_codec(tmp_path / "codec.bin")
    save_codec(tmp_path / "other.bin", seed=1)
    for name in ("calm/a.wav", "calm/a.flac", "loud/b.aiff"):
        path = tmp_path / "music" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = RATE if name.endswith(".wav") else 22050
        soundfile.write(path, chords(len(name), 1.3, rate), rate)
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path / "outputs"))
    return tmp_path


def encode(folder: Path, *arguments: str, codec: str = "codec.bin", out: str = "tokens") -> int:
    sources = [each for each in arguments if not each.startswith("-")] or [str(folder / "music")]
    options = [each for each in arguments if each.startswith("-")]
    return cli.main(
        ["encode", *sources, "--model", str(folder / codec), "--out", str(folder / out), "--device=cpu", *options]
    )


def decode(folder: Path, *options: str, codec: str = "codec.bin", out: str = "back") -> int:
    files = [str(folder / "tokens"), "--model", str(folder / codec), "--out", str(folder / out)]
    return cli.main(["decode", *files, "--device=cpu", *options])


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_codes_and_audio_are_those_of_one_pass(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert encode(folder, "--jobs=2") == 0
    out, err = capsys.readouterr().out, caplog.text
    assert out.startswith("3 encoded (4s, ") and "mixed down to mono: 3 files" in err
    assert "resampled from 22050 to 8000 Hz: 2 files" in err
    assert names(folder / "tokens") == ["calm/a.flac.atok", "calm/a.wav.atok", "loud/b.aiff.atok"]
    assert decode(folder, "--jobs=2") == 0
    assert names(folder / "back") == ["calm/a.flac.wav", "calm/a.wav", "loud/b.aiff.wav"]
    model = CompressionModel.get_pretrained(folder / "codec.bin")
    for name, audio in (
        ("calm/a.wav", "calm/a.wav"),
        ("calm/a.flac", "calm/a.flac.wav"),
        ("loud/b.aiff", "loud/b.aiff.wav"),
    ):
        wav, _ = read_segment(folder / "music" / name, start_s=0, n_frames=None, sample_rate=RATE, channels=1)
        codes, _ = model.encode(wav[None])
        tokens = read_tokens(folder / "tokens" / f"{name}.atok")
        found = torch.from_numpy(tokens.codes().astype(np.int64))
        assert (found != codes[0]).float().mean() < 0.01, "but where two codes are equally near"
        assert tokens.header.samples == wav.shape[1] and tokens.header.source_rate in (RATE, 22050)
        heard, rate = soundfile.read(folder / "back" / audio, dtype="float32", always_2d=True)
        assert rate == RATE and heard.shape == (wav.shape[1], 1)
        once = model.decode(found[None])[0, :, : wav.shape[1]].clamp(-1, 1)
        assert np.abs(once.numpy() - heard.T).max() < 1e-4, "16 bits"


@pytest.mark.parametrize(
    "kind", [{"renormalize": True}, {"renormalize": True, "norm": "time_group_norm"}, {"channels": 2}]
)
def test_other_kinds_of_codec_come_back(folder: Path, kind: dict[str, object]) -> None:
    save_codec(folder / "kind.bin", **kind)
    assert encode(folder, codec="kind.bin") == 0 and decode(folder, "--format=flac", codec="kind.bin") == 0
    assert names(folder / "back") == ["calm/a.flac", "calm/a.wav.flac", "loud/b.aiff.flac"]
    header = read_tokens(folder / "tokens/calm/a.wav.atok").header
    assert header.scales == {"renormalize": 1}.get(next(iter(kind)), 0) * (2 if "norm" in kind else 1)
    assert soundfile.info(folder / "back/calm/a.flac").channels == kind.get("channels", 1)


def test_what_is_there_is_kept_and_what_has_changed_is_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(folder) == 0 and decode(folder) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert encode(folder) == 0 and decode(folder) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before
    assert capsys.readouterr().out.splitlines()[-2:] == ["0 encoded, 3 there already", "0 decoded, 3 there already"]
    soundfile.write(folder / "music/calm/a.wav", chords(9, 1.0, RATE), RATE)
    assert encode(folder) == 0 and decode(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 encoded") and lines[1].startswith("1 decoded")
    assert encode(folder, "--n-q=1") == 0 and capsys.readouterr().out.startswith("3 encoded")
    assert encode(folder, codec="other.bin") == 0 and capsys.readouterr().out.startswith("3 encoded")


def test_a_bad_file_does_not_stop_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    music = folder / "music"
    (music / "empty.wav").write_bytes(b"")
    soundfile.write(music / "none.wav", np.zeros((0, 1)), RATE)
    soundfile.write(music / "eight.wav", np.zeros((100, 8)), RATE)
    soundfile.write(music / "nan.wav", np.full((100, 1), np.nan), RATE, subtype="FLOAT")
    soundfile.write(music / "one.wav", np.zeros((1, 1)), RATE)
    soundfile.write(music / "silent.wav", np.zeros((900, 1)), RATE)
    content = (music / "calm/a.flac").read_bytes()
    (music / "cut.flac").write_bytes(content[: len(content) // 2])
    assert encode(folder) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    bad = ["cut", "eight", "empty", "nan", "none"]
    assert [next(name for name in bad if f"{name}." in line) for line in errors] == bad
    assert out.startswith("5 encoded") and out.strip().endswith("5 failed")
    assert decode(folder) == 0
    assert (
        soundfile.info(folder / "back/one.wav").frames == 1 and soundfile.info(folder / "back/silent.wav").frames == 900
    )


def test_a_header_that_is_not_of_the_codec_costs_its_file_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(folder) == 0
    tokens = read_tokens(folder / "tokens/calm/a.wav.atok")
    codes, header = tokens.codes(), tokens.header
    fakes: dict[str, dict[str, Any]] = {
        "channels": {"channels": 2},
        "sample_rate": {"sample_rate": 2 * RATE},
        "bins": {"bins": 60_000},
        "n_q": {"n_q": 100},
    }
    for name, changes in fakes.items():
        fake = np.zeros((changes.get("n_q", len(codes)), codes.shape[1]), np.uint16)
        fake[0, 0] = changes.get("bins", 1) - 1
        write_tokens(folder / f"tokens/0{name}.atok", replace(header, **changes), fake)
    write_tokens(folder / "tokens/0volumes.atok", replace(header, scales=1), codes, [1e30])
    capsys.readouterr()
    assert decode(folder) == 2
    out, err = capsys.readouterr()
    assert "3 decoded" in out and "5 failed" in out and len(names(folder / "back")) == 3
    for name in ("channels", "sample_rate", "bins", "n_q", "volumes"):
        assert f"0{name}.atok: {name} is " in err


def test_decoding_beside_the_originals_keeps_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = (folder / "music/calm/a.wav").read_bytes()
    assert encode(folder, out="music") == 0
    files = [str(folder / "music"), "--model", str(folder / "codec.bin"), "--out", str(folder / "music")]
    assert cli.main(["decode", *files, "--device=cpu"]) == 2
    assert "is the file that" in capsys.readouterr().err
    assert (folder / "music/calm/a.wav").read_bytes() == original
    assert (folder / "music/calm/a.flac.wav").exists()


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "opus", "mp3"])
def test_decoded_audio_is_made_again_only_if_it_is_not_whole(
    folder: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    assert encode(folder, str(folder / "music/calm/a.wav")) == 0 and decode(folder, f"--format={format}") == 0
    (made,) = (folder / "back").iterdir()
    whole = made.read_bytes()
    capsys.readouterr()
    assert decode(folder, f"--format={format}") == 0 and "1 there already" in capsys.readouterr().out
    made.write_bytes(whole[: len(whole) * 3 // 4])
    assert decode(folder, f"--format={format}") == 0 and capsys.readouterr().out.startswith("1 decoded")
    assert abs(made.stat().st_size - len(whole)) < 32, "but for the number of an ogg stream"


def test_files_of_others_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the names that are to be written; the rest is coded."""
    for name in ("tokens/calm/a.wav.atok", "back/calm/a.flac.wav", "back/loud/b.aiff.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    soundfile.write(folder / "back/calm/a.flac.wav", np.zeros(100), RATE)
    mine = (folder / "back/calm/a.flac.wav").read_bytes()
    assert encode(folder) == 2
    out, err = capsys.readouterr()
    assert "a.wav.atok is there, and no token file; it is kept" in err and "2 encoded" in out
    (folder / "tokens/calm/a.wav.atok").unlink()
    assert encode(folder) == 0 and decode(folder) == 2
    out, err = capsys.readouterr()
    assert err.count("is there, and not made by decode; it is kept") == 2 and "1 decoded" in out
    assert (folder / "back/calm/a.flac.wav").read_bytes() == mine
    assert (folder / "back/loud/b.aiff.wav").read_bytes() == b"mine"


def test_a_fault_of_the_codes_is_not_one_of_the_disk(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encode(folder) == 0

    def faulty(model: CompressionModel, pairs: Any) -> Any:
        for count, wav in enumerate(decode_chunks(model, pairs)):
            yield wav * np.nan if count else wav

    monkeypatch.setattr(coding, "decode_chunks", faulty)
    capsys.readouterr()
    assert decode(folder) == 2
    out, err = capsys.readouterr()
    assert err.count("the decoded audio holds NaN") == 3 and "cannot be written" not in err and "3 failed" in out
    assert not names(folder / "back")


def test_what_is_not_used_is_given_back(folder: Path) -> None:
    """The encoder decodes nothing, and the other way about."""
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        model = CompressionModel.get_pretrained(folder / "codec.bin")
        if part == "encoder":
            coding.encode_files(model, [folder / "music"], folder / "t", codec="c", release=True)
        else:
            coding.decode_files(model, [folder / "t"], folder / "b", release=True)
        assert all(one.is_meta for one in getattr(model, other).parameters())
        assert not any(one.is_meta for one in getattr(model, part).parameters())
    assert len(names(folder / "b")) == 3


def test_bad_token_files_and_other_codecs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode(folder) == 0
    path = folder / "tokens/calm/a.wav.atok"
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(content)
    capsys.readouterr()
    assert cli.main(["decode", "--info", str(folder / "tokens")]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and "1.300 s, 1 × 8000 Hz, 2 × 64 at 100 Hz" in out and "block 0" in err
    assert decode(folder) == 2
    assert "damaged: block 0" in capsys.readouterr().err and len(names(folder / "back")) == 2
    assert decode(folder, codec="other.bin", out="other") == 2
    assert "is of another codec" in capsys.readouterr().err and not names(folder / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-q=9"], "--n-q 9: "),
        (["--n-q=0"], "codec.bin has 2 codebooks"),
        (["--bandwidth=0.1"], "one codebook takes 0.6 kb/s, all 2 1.2"),
        (["--jobs=0"], "--jobs 0"),
        (["missing.wav"], "no such file"),
        (["--strict"], "Convert it, or leave out --strict"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert encode(folder, *arguments) == 2
    assert message in capsys.readouterr().err and not names(folder / "tokens")


def test_nothing_to_code_and_two_files_of_one_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "void").mkdir()
    assert encode(folder, str(folder / "void")) == 2 and "no file to code" in capsys.readouterr().err
    (folder / "more/calm").mkdir(parents=True)
    soundfile.write(folder / "more/calm/a.wav", chords(1, 0.2, RATE), RATE)
    assert encode(folder, str(folder / "music"), str(folder / "more")) == 2
    assert "would both become" in capsys.readouterr().err and not names(folder / "tokens")


def test_bandwidth_chooses_the_codebooks(folder: Path) -> None:
    assert encode(folder, "--bandwidth=0.7") == 0
    assert read_tokens(folder / "tokens/calm/a.wav.atok").header.n_q == 1


def test_ctrl_c_leaves_no_half_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(waiting: list[futures.Future[None]]) -> Iterator[futures.Future[None]]:
        yield next(futures.as_completed(waiting))
        raise KeyboardInterrupt

    monkeypatch.setattr(files_to_files, "as_completed", interrupted)
    assert encode(folder) == 130
    assert "interrupted" in capsys.readouterr().err
    found = names(folder / "tokens")
    assert found and all(name.endswith(".atok") for name in found)
    for name in found:
        read_tokens(folder / "tokens" / name)
    monkeypatch.undo()
    assert encode(folder) == 0 and len(names(folder / "tokens")) == 3


def test_a_signal_leaves_no_half_file(folder: Path) -> None:
    """Sent to a process when it has begun to write."""
    assert encode(folder, str(folder / "music/calm/a.wav")) == 0
    path, frames = folder / "tokens/a.wav.atok", 60_000
    header = replace(read_tokens(path).header, samples=frames * 80, frames=frames)
    write_tokens(path, header, np.random.default_rng(0).integers(0, 64, (2, frames)).astype(np.uint16))
    command = [sys.executable, "-B", "-m", "audiotok.cli", "decode", str(path), "--model", str(folder / "codec.bin")]
    options = ["--out", str(folder / "back"), "--device", "cpu"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (folder / "back").is_dir():
            time.sleep(0.01)
        while process.poll() is None and not any((folder / "back").iterdir()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130 and "interrupted; the same command goes on" in err and "Traceback" not in err
    assert not any((folder / "back").iterdir())


def test_an_output_that_is_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tokens").write_text("mine")
    assert encode(folder) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: --out {folder / 'tokens'} cannot be made")
    assert (folder / "tokens").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="a folder in which root makes no file either")
def test_an_output_that_may_not_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tokens").symlink_to("/sys/kernel")
    assert encode(folder) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "cannot be written" in errors[0] and "What is done is kept" in errors[0]


def test_a_folder_of_the_output_that_is_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tokens").mkdir()
    (folder / "tokens/calm").write_text("mine")
    assert encode(folder) == 2
    out, err = capsys.readouterr()
    assert err.count("cannot be written (") == 2 and out.startswith("1 encoded")


def test_names_at_the_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    music = folder / "music/calm/a.wav"
    for length in (251, 250):  # in bytes, of which a file system takes 255
        music = music.rename(music.with_name("é" * ((length - 4) // 2) + "e" * (length % 2) + ".wav"))
        code = encode(folder)
        out, err = capsys.readouterr()
        assert code == (2 if length == 251 else 0) and ("too long" in err) is (length == 251)
        assert out.startswith("2 encoded" if length == 251 else "1 encoded")
    assert decode(folder, "--format=flac") == 0, "a.wav.flac is no longer than a.wav.atok"


def test_a_full_disk_ends_the_call_and_keeps_what_is_done(folder: Path) -> None:
    """A limit on the size of files stands for the disk."""
    assert encode(folder) == 0

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, 1 << 13))

    command = [sys.executable, "-B", "-m", "audiotok.cli", "decode", str(folder / "tokens"), "--model"]
    command += [str(folder / "codec.bin"), "--out", str(folder / "back"), "--device", "cpu"]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr and not names(folder / "back")

"""`audiotok generate` with a tiny language model and codec in files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from audiotok.cli import main
from audiotok.data.audio import read_segment, write_audio
from audiotok.models.codec_lm import CodecLM, get_language_model
from audiotok.models.encodec import CompressionModel, get_compression_model
from audiotok.models.fingerprint import codec_hash
from audiotok.models.lm import Sampling
from audiotok.solvers.lm_generation import Drawing

RATE, HOP = 8000, 64


def save(path: Path, cfg: dict[str, Any], weights: dict[str, Any]) -> Path:
    state = {"xp.cfg": OmegaConf.to_yaml(OmegaConf.create(cfg)), "best_state": weights, "exported": True}
    torch.save(state, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Paths of a language model and its codec."""
    torch.manual_seed(0)
    size = {"ratios": [8, 8], "channels": 1, "dimension": 4, "n_filters": 2, "n_residual_layers": 1, "lstm": 0}
    rvq = {"n_q": 2, "bins": 8, "kmeans_init": False}
    encodec = {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": RATE, "channels": 1, "causal": False}
    cfg = {"compression_model": "encodec", "encodec": encodec, "seanet": size, "rvq": rvq}
    codec = get_compression_model(OmegaConf.create(cfg)).eval()
    codec_file = save(tmp_path / "codec.bin", cfg, codec.state_dict())
    codes = {"codec": str(codec_file), "codec_hash": codec_hash(codec), "n_q": 2, "bins": 8, "channels": 1}
    codes |= {"frame_rate": RATE / HOP, "sample_rate": RATE, "labels": ["calm", "loud"]}
    sizes = {"dim": 8, "num_heads": 2, "num_layers": 1, "depth_dim": 8, "depth_heads": 2, "depth_layers": 1}
    of_lm = {"codes": codes, "lm": {**sizes, "heads": ["parallel", "chain"]}}
    lm = get_language_model(OmegaConf.create(of_lm))
    return str(save(tmp_path / "lm.bin", of_lm, lm.state_dict())), str(codec_file)


def test_clips_are_those_of_the_model_and_go_on_from_a_file(files: tuple[str, str], tmp_path: Path) -> None:
    lm, out = files[0], tmp_path / "out"
    write_audio(tmp_path / "prompt.wav", 0.1 * torch.randn(1, 4 * RATE), RATE)
    options = ["--seconds", "0.5", "--clips", "3", "--batch-size", "2", "--seed", "5", "--top-k", "4"]
    prompt = ["--prompt", str(tmp_path / "prompt.wav"), "--prompt-seconds", "0.1"]
    assert main(["generate", lm, "--out", str(out), *options, *prompt, "--label", "loud", "--guidance", "2"]) == 0
    wav, rate = soundfile.read(out / "0001.wav")
    assert rate == RATE and len(wav) == 62 * HOP
    found = np.stack([np.load(out / f"000{number}.npy") for number in range(3)])
    model, codec = CodecLM.get_pretrained(lm), CompressionModel.get_pretrained(files[1])
    start, _ = read_segment(tmp_path / "prompt.wav", start_s=0, n_frames=800, sample_rate=RATE, channels=1)
    with torch.no_grad():
        given = codec.encode(start[None])[0][..., :12].expand(3, -1, -1)
    drawing = Drawing(62, Sampling(top_k=4), guidance=2.0, seed=5)
    wanted = drawing(model, range(3), head="chain", prompt=given, labels=["loud"] * 3)
    assert np.array_equal(found, wanted.numpy())
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label", "angry"], "label 'angry' is unknown to this language model: it knows calm, loud"),
        (["--guidance", "3"], "Guidance of 3.0 needs labels"),
        (["--clips", "0"], "--clips 0: give more than 0"),
        (["--temperature", "-1"], "temperature >= 0"),
        (["--temperature", "inf"], "finite temperature >= 0"),
        (["--label", "calm", "--guidance", "nan"], "Guidance of nan; give a finite number"),
        (["--seconds", "inf"], "--seconds inf: give at most 3600"),
        (["--seconds", "1e300"], "--seconds 1e+300: give at most 3600"),
        (["--prompt-seconds", "1"], "--prompt-seconds 1 does nothing without --prompt"),
        (["--prompt", "absent.wav"], "absent.wav"),
        (["--prompt", "absent.wav", "--prompt-seconds", "9"], "--prompt-seconds 9: give more than 0 and less than"),
        (["--codec", "demo"], "reads codes of codec"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], said: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", files[0], "--out", str(tmp_path / "out"), "--seconds", "1", *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and said in last
    assert not (tmp_path / "out").exists()


def test_a_codec_that_has_moved_is_given_by_name(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(files[1]).rename(tmp_path / "moved.bin")
    options = ["generate", files[0], "--out", str(tmp_path / "out"), "--seconds", "0.2", "--clips", "1"]
    assert main(options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: the codec of {files[0]} cannot be loaded: no checkpoint at {files[1]}")
    assert line.endswith("--codec names a copy of it")
    assert main([*options, "--codec", str(moved)]) == 0


def test_a_folder_that_cannot_be_written_to_is_one_line(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [files[0], "--seconds", "0.5", "--clips", "2", "--out"]
    assert main(["generate", *options, files[1]]) == 2
    assert f"--out {files[1]} is a file: give a folder." in capsys.readouterr().err
    (tmp_path / "taken/0001.npy").mkdir(parents=True)
    assert main(["generate", *options, str(tmp_path / "taken")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "taken cannot be written to: Is a directory" in last
    assert (tmp_path / "taken/0000.wav").exists()  # what was drawn before stays

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    assert main(["generate", *options, str(tmp_path / "out")]) == 130
    assert not capsys.readouterr().err

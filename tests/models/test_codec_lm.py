"""Language models from files of strangers: what they say of their codes and of themselves is checked first."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from audiotok.cli import main
from audiotok.errors import CheckpointError
from audiotok.models import CompressionModel
from audiotok.models.codec_lm import CodecLM, get_language_model
from tests.codecs import save_codec

CODES: dict[str, Any] = {
    "codec": "codec.bin",
    "codec_hash": "0" * 64,
    "n_q": 2,
    "bins": 8,
    "channels": 1,
    "frame_rate": 50.0,
    "sample_rate": 8000,
    "labels": ["calm", "loud"],
}
LM: dict[str, Any] = {
    "dim": 8,
    "num_heads": 2,
    "num_layers": 1,
    "heads": ["parallel", "chain"],
    "depth_dim": 8,
    "depth_heads": 2,
}


def save(path: Path, codes: dict[str, Any], lm: dict[str, Any]) -> Path:
    """A file with the weights of the sound model and any configuration."""
    weights = get_language_model(OmegaConf.create({"codes": CODES, "lm": LM})).state_dict()
    text = OmegaConf.to_yaml(OmegaConf.create({"codes": {**CODES, **codes}, "lm": {**LM, **lm}}))
    torch.save({"xp.cfg": text, "best_state": weights, "exported": True}, path)
    return path


HOSTILE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"n_q": 10**9}, {}, "section codes .* n_q=1000000000"),  # would take 16 GB for a pattern
    ({"n_q": 0}, {}, "n_q=0"),
    ({"n_q": "2"}, {}, "n_q='2'"),
    ({"bins": 10**30}, {}, "bins=10000"),
    ({"frame_rate": math.nan}, {}, "frame_rate=nan"),
    ({"frame_rate": 0}, {}, "frame_rate=0"),
    ({"sample_rate": -1}, {}, "sample_rate=-1"),
    ({"channels": None}, {}, "channels=None"),
    ({"codec": None}, {}, "codec=None"),
    ({"labels": "calm"}, {}, "labels='calm'"),
    ({"labels": ["calm", "calm"]}, {}, "labels holds one twice"),
    ({}, {"delays": [0, 10**10]}, r"section lm .* delays.1=10000000000"),
    ({}, {"delays": [0, 1.5]}, r"delays.1=1.5"),
    ({}, {"dropout": math.nan}, "dropout=nan"),
    ({}, {"label_dropout": "x"}, "label_dropout='x'"),
    ({}, {"num_heads": 0}, "num_heads=0"),
    ({}, {"num_layers": 10**9}, "num_layers=1000000000"),
    ({}, {"dim": 2**20}, "do not fit its own configuration"),
    ({}, {"strange": 1}, "strange"),
    ({}, {"n_q": 2}, "multiple values"),
]


@pytest.mark.parametrize(("codes", "lm", "message"), HOSTILE, ids=[message for _, _, message in HOSTILE])
def test_a_hostile_configuration_is_one_line(
    codes: dict[str, Any], lm: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "lm.bin", codes, lm)
    with pytest.raises(CheckpointError, match=message) as caught:
        CodecLM.get_pretrained(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    assert CodecLM.get_pretrained(save(tmp_path / "lm.bin", {}, {})).codes.labels == ["calm", "loud"]


def test_models_of_the_other_kind_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm, codec = save(tmp_path / "lm.bin", {}, {}), save_codec(tmp_path / "codec.bin")
    with pytest.raises(CheckpointError, match="it is not of a language model"):
        CodecLM.get_pretrained(codec)
    with pytest.raises(CheckpointError, match="it is of a language model, not of a codec"):
        CompressionModel.get_pretrained(lm)
    here = str(tmp_path)
    for command in (
        ["tokenize", str(lm), "absent.jsonl", "--out", f"{here}/out"],
        ["gap", str(lm), "--tokens", here],
        ["distance", here, here, "--codec", str(lm)],
        ["generate", str(codec), "--out", f"{here}/out"],
    ):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "of a language model" in line
    assert not (tmp_path / "out").exists()

"""Models from files: one file, every way to name it."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from audiotok.checkpoint import save_checkpoint
from audiotok.errors import CheckpointError
from audiotok.models import CompressionModel, get_compression_model
from audiotok.models.pretrained import load_pretrained
from audiotok.solvers import CompressionSolver

CONFIG = Path(__file__).parent.parent.parent / "config"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("config", ["solver=compression/debug"])
    torch.manual_seed(0)
    state = get_compression_model(cfg).state_dict()
    text = OmegaConf.to_yaml(cfg, resolve=True)
    save_checkpoint({"best_state": state, "xp.cfg": text, "exported": True}, tmp_path / "model.bin")
    return tmp_path / "model.bin"


def test_every_way_to_load_a_file_gives_the_same_model(exported: Path) -> None:
    ways = [
        CompressionModel.get_pretrained(str(exported)),
        CompressionModel.get_pretrained(f"//pretrained/{exported}"),
        CompressionSolver.model_from_checkpoint(exported),
        CompressionSolver.model_from_checkpoint(f"//pretrained/{exported}"),
        load_pretrained(exported, build=get_compression_model),
    ]
    wav = torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = [model(wav).x for model in ways]
    assert not any(model.training for model in ways)
    assert all(torch.equal(outputs[0], output) for output in outputs)


def test_a_file_that_cannot_be_a_model_is_refused(exported: Path, tmp_path: Path) -> None:
    state = torch.load(exported, weights_only=True)
    for change, message in (
        ({"xp.cfg": ""}, "lacks xp.cfg"),
        ({"xp.cfg": "- 1"}, "no mapping"),
        ({"best_state": [1]}, "configuration as text and the weights as a dict"),
        ({"best_state": {"encoder": torch.zeros(1)}}, "do not fit its own configuration"),
    ):
        save_checkpoint({**state, **change}, tmp_path / "bad.bin")
        with pytest.raises(CheckpointError, match=message):
            CompressionModel.get_pretrained(tmp_path / "bad.bin")

"""Files in the layouts of AudioCraft, made here as its programs make them."""

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from audiotok.errors import CheckpointError
from audiotok.models import CompressionModel, get_compression_model
from audiotok.models.pretrained import read_pretrained

CONFIG = Path(__file__).parent.parent.parent / "config"
SHAPES = {
    "mono": [],
    "causal": ["encodec.causal=true", "sample_rate=24000", "rvq.n_q=3"],
    "stereo": ["channels=2", "sample_rate=48000", "encodec.renormalize=true", "seanet.norm=time_group_norm"],
}


def made(shape: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """An unresolved configuration, with objects that composing leaves in it, and random weights."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("config", ["solver=compression/debug", *SHAPES[shape]])
    OmegaConf.set_struct(cfg, False)
    cfg.some_path = Path("/a/b")
    torch.manual_seed(0)
    weights = {name: value + 0.1 for name, value in get_compression_model(cfg).state_dict().items()}
    return cfg, weights


def write(kind: str, shape: str, folder: Path) -> Path:
    """A file as AudioCraft's training, its export and the first release of MusicGen have it."""
    cfg, weights = made(shape)
    path = folder / ("checkpoint.th" if kind == "training" else "compression_state_dict.bin")
    if kind == "training":
        averages = defaultdict(dict, {"model": weights})
        settings = {"lr": 1e-4, "betas": OmegaConf.create([0.5, 0.9]), "params": [0]}
        state = {"best_state": {"model": weights}, "fsdp_best_state": {}, "model": weights, "xp.cfg": cfg}
        state |= {"ema": {"state": averages, "count": 1.0}, "history": [{"train": {"l1": 1.0}}], "xp.sig": "0123abcd"}
        state |= {"optimizer": {"state": {}, "param_groups": [settings]}}
    else:
        cfg.encodec.renorm = True  # of old files
        state = {"best_state": weights, "xp.cfg": OmegaConf.to_yaml(cfg)}
        state |= {"version": "1.4.0", "exported": True} if kind == "exported" else {}
    torch.save(state, path)
    return path


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", ["training", "exported", "first release"])
def test_every_layout_gives_the_weights_that_were_saved(tmp_path: Path, kind: str, shape: str) -> None:
    path = write(kind, shape, tmp_path)
    cfg, weights = made(shape)
    for name in (path, str(tmp_path), f"//pretrained/{path}"):
        model = CompressionModel.get_pretrained(name)
        found = model.state_dict()
        assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
        assert (model.sample_rate, model.channels) == (cfg.sample_rate, cfg.channels)


def test_what_a_training_checkpoint_holds_as_objects_is_plain(tmp_path: Path) -> None:
    found = read_pretrained(write("training", "mono", tmp_path))
    assert found.cfg.some_path == "/a/b" and found.cfg.seanet.channels == 1
    assert found.state["optimizer"]["param_groups"][0]["betas"] == [0.5, 0.9]
    assert type(found.state["ema"]["state"]) is dict


class Runs:
    """Pickled, a call of a function that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


class Getattr:
    def __reduce__(self) -> Any:
        return getattr, (OmegaConf.create({}), "__class__")


@pytest.mark.parametrize("name", ["checkpoint.th", "compression_state_dict.bin", "pytorch_model.bin"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    pickle.loads(pickle.dumps(Runs(mark)))
    assert mark.exists()  # it is dangerous
    mark.unlink()
    (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
    for danger in (Runs(mark), {"xp.cfg": Runs(mark)}, {"best_state": {"a": Getattr()}, "xp.cfg": "a: 1"}):
        torch.save(danger, path)
        with pytest.raises(CheckpointError, match="other than tensors, numbers and text, so it was not loaded"):
            CompressionModel.get_pretrained(tmp_path)
        assert not mark.exists()


def test_objects_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    deep: Any = OmegaConf.create({"a": 1})
    for _ in range(30):
        node = OmegaConf.create({"a": 1, "b": 1})
        node.__dict__["_content"] = {"a": deep, "b": deep}  # 2 ** 30 values
        deep = node
    looped = OmegaConf.create({"a": 1})
    looped.__dict__["_content"] = {"a": looped}
    for bad in (deep, looped):
        torch.save({"best_state": {}, "xp.cfg": bad}, tmp_path / "bad.th")
        with pytest.raises(CheckpointError, match="objects of more than 100000 values, or nested"):
            CompressionModel.get_pretrained(tmp_path / "bad.th")


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        (
            "facebook/encodec_32khz",
            r"points to facebook/encodec_32khz and holds no weights; give facebook/encodec_32khz",
        ),
        ("dac_44khz", "points to 'dac_44khz', which is no EnCodec"),
        ("../elsewhere", "points to '../elsewhere', which is no EnCodec"),
        (7, "points to '7', which is no EnCodec"),
    ],
)
def test_a_pointer_fetches_nothing(
    tmp_path: Path, pointer: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.save({"pretrained": pointer, "exported": True, "version": "1.4.0"}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=message):
        CompressionModel.get_pretrained(tmp_path / "model.bin")
    if pointer == "facebook/encodec_32khz":  # a copy here is used
        (tmp_path / "facebook/encodec_32khz").mkdir(parents=True)
        write("exported", "mono", tmp_path / "facebook/encodec_32khz")
        assert CompressionModel.get_pretrained(tmp_path / "model.bin").channels == 1

"""Every place that takes a model takes every kind of it: folders of ours and of others, names of the hub."""

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from audiotok.checkpoint import own_models
from audiotok.errors import CheckpointError
from audiotok.interchange import huggingface
from audiotok.models import CompressionModel
from audiotok.models.pretrained import read_pretrained
from audiotok.solvers.lm_data import load_codec


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The model of the package as a folder of Hugging Face."""
    demo = read_pretrained("demo")
    huggingface.write_folder(demo.cfg, demo.weights, tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """The same as a folder of ours."""
    demo = read_pretrained("demo")
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file({name: value.float().clone() for name, value in demo.weights.items()}, folder / "model.safetensors")
    about = {"format": "audiotok", "version": 1, "audiotok": "0", "config": OmegaConf.to_container(demo.cfg)}
    (folder / "audiotok.json").write_text(json.dumps(about))
    return folder


def check_demo(model: CompressionModel) -> None:
    expected, found = CompressionModel.get_pretrained("demo").state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_folders_by_every_name(theirs: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (theirs, ours):
        for name in (folder, str(folder), f"//pretrained/{folder}", folder / "model.safetensors", folder.name):
            check_demo(CompressionModel.get_pretrained(name))
        check_demo(load_codec(f"//pretrained/{folder}", tmp_path, torch.device("cpu")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "onnx"}, "is of format 'onnx'"),
        ({"version": 2}, "is of version 2 of the format"),
        ({"config": None}, "lacks config"),
        ({"config": {"compression_model": "dac"}}, "describes no model of this version"),
    ],
)
def test_folders_of_ours_that_cannot_be_read(ours: Path, change: dict[str, Any], message: str) -> None:
    about = json.loads((ours / "audiotok.json").read_text())
    (ours / "audiotok.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(CheckpointError, match=message):
        CompressionModel.get_pretrained(ours)


def test_a_folder_reads_no_environment(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILTERS", "12")
    about = json.loads((ours / "audiotok.json").read_text())
    about["config"]["seanet"]["n_filters"] = "${oc.decode:${oc.env:FILTERS}}"
    (ours / "audiotok.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"n_filters='\$\{oc\."):
        CompressionModel.get_pretrained(ours)


def test_a_folder_with_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(CheckpointError, match=r"no checkpoint at \S+checkpoint\.th; give"):
        CompressionModel.get_pretrained(tmp_path)


# --- The hub, without a network ---


class NoEntryError(Exception):
    """In the place of `EntryNotFoundError`."""


class NoLocalEntryError(NoEntryError):
    """In the place of `LocalEntryNotFoundError`."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, bool]]:
    """A package huggingface_hub whose hub is the folder `hub`; what is requested of it."""
    requests: list[tuple[str, str, bool]] = []

    def download(*, repo_id: str, filename: str, local_files_only: bool) -> str:
        requests.append((repo_id, filename, local_files_only))
        if repo_id == "owner/down":
            raise NoLocalEntryError("cannot reach the hub.\nMore about it")
        file = tmp_path / "hub" / repo_id / filename
        if not file.is_file():
            raise NoEntryError(filename)
        return str(file)

    package, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    package.__dict__["hf_hub_download"] = download
    errors.__dict__.update(EntryNotFoundError=NoEntryError, LocalEntryNotFoundError=NoLocalEntryError)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.chdir(tmp_path)
    return requests


def test_a_name_of_the_hub_is_fetched(hub: list[tuple[str, str, bool]], theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "hub/owner").mkdir(parents=True)
    theirs.rename(tmp_path / "hub/owner/codec")
    for name in ("owner/codec", "//pretrained/owner/codec"):
        check_demo(CompressionModel.get_pretrained(name))
    assert set(hub) == {("owner/codec", "config.json", False), ("owner/codec", "model.safetensors", False)}


def test_the_codec_of_a_musicgen_is_fetched(hub: list[tuple[str, str, bool]], tmp_path: Path) -> None:
    folder = tmp_path / "hub/owner/musicgen"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "musicgen"}')
    (folder / "compression_state_dict.bin").write_bytes(own_models()["demo"].read_bytes())
    check_demo(CompressionModel.get_pretrained("owner/musicgen"))
    assert [name for _, name, _ in hub] == ["config.json", "compression_state_dict.bin"]


def test_a_folder_here_wins_and_nothing_else_is_fetched(
    hub: list[tuple[str, str, bool]], theirs: Path, tmp_path: Path
) -> None:
    (tmp_path / "owner").mkdir()
    theirs.rename(tmp_path / "owner/codec")
    check_demo(CompressionModel.get_pretrained("owner/codec"))
    for name in ("owner/other", Path("other/codec"), "outputs/model.th", "./a/b", "a/b/c", "demo2"):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            CompressionModel.get_pretrained(name)
    torch.save({"pretrained": "other/codec"}, tmp_path / "pointer.bin")
    with pytest.raises(CheckpointError, match="points to other/codec and holds no weights"):
        CompressionModel.get_pretrained("pointer.bin")
    assert hub and all(kept for _, _, kept in hub)


def test_what_cannot_be_fetched_is_one_line(hub: list[tuple[str, str, bool]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no codec owner/none on the hub: neither"):
        CompressionModel.get_pretrained("owner/none")
    with pytest.raises(CheckpointError, match=r"cannot be fetched from the hub \(cannot reach the hub\); give"):
        CompressionModel.get_pretrained("owner/down")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"no file or folder owner/codec here, .* pip install huggingface_hub"):
        CompressionModel.get_pretrained("owner/codec")


def test_a_pointer_is_followed_once(hub: list[tuple[str, str, bool]], theirs: Path, tmp_path: Path) -> None:
    names = {"one/self": "one/self", "one/there": "one/back", "one/back": "one/there", "one/two": "one/good"}
    for folder, target in {**names, "one/good": "owner/codec"}.items():
        (tmp_path / folder).mkdir(parents=True)
        torch.save({"pretrained": target}, tmp_path / folder / "compression_state_dict.bin")
    (tmp_path / "owner").mkdir()
    theirs.rename(tmp_path / "owner/codec")
    check_demo(CompressionModel.get_pretrained("one/good"))
    for folder in names:
        with pytest.raises(CheckpointError, match="which only points to another; give the path of a model"):
            CompressionModel.get_pretrained(folder)


@pytest.mark.parametrize("kind", ["eight bits", "beyond float32", "no names"])
def test_weights_that_are_no_weights_here(theirs: Path, kind: str) -> None:
    weights: dict[Any, torch.Tensor] = {**load_file(theirs / "model.safetensors")}
    name = "quantizer.layers.0.codebook.embed"
    if kind == "eight bits":
        weights[name], message = weights[name].to(torch.float8_e4m3fn), "of torch.float8_e4m3fn; weights of 16"
    elif kind == "beyond float32":
        weights[name], message = weights[name].double() + 1e300, "not finite"
    else:
        weights[1], message = torch.zeros(1), "weights without names"
    (theirs / "model.safetensors").unlink()
    torch.save(weights, theirs / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        CompressionModel.get_pretrained(theirs)


def test_weights_of_a_checkpoint_have_names(tmp_path: Path) -> None:
    torch.save({"best_state": {1: torch.tensor(math.nan)}, "xp.cfg": "a: 1"}, tmp_path / "odd.bin")
    with pytest.raises(CheckpointError, match="does not hold the weights as a dict of tensors"):
        CompressionModel.get_pretrained(tmp_path / "odd.bin")

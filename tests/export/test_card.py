"""The card of an exported model: what its run measured, and snippets that run."""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from audiotok.checkpoint import load_checkpoint, save_checkpoint
from audiotok.data.manifest import AudioMeta, write_manifest
from audiotok.export.formats import FORMATS, export_model
from audiotok.models import CompressionModel
from tests.codecs import config, save_codec

SIG = "0a1b2c3d"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an experiment of three epochs, the second the best and evaluated."""
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path / "outputs"))
    folder = tmp_path / "outputs/xps" / SIG
    folder.mkdir(parents=True)
    tracks = [AudioMeta(tmp_path / "music" / f"{n}.wav", 1800.0, 44100) for n in range(3)]
    source = {"train": str(write_manifest(tmp_path / "train.jsonl", tracks)), "valid": str(tmp_path / "gone.jsonl")}
    extra = {"datasource": source, "losses": {"l1": 0.1, "mel": 0, "mmd": 4}, "slurm": {"setup": ["hunter2"]}}
    extra |= {"optim": {"epochs": 3, "updates_per_epoch": 7}, "continue_from": f"//pretrained/{tmp_path}/early.bin"}
    cfg = OmegaConf.to_yaml(OmegaConf.merge(config(), extra))
    weights = load_checkpoint(save_codec(tmp_path / "small.bin"))["best_state"]
    save_checkpoint({"best_state": {"model": weights}, "history": [{}], "xp.cfg": cfg}, folder / "checkpoint.th")
    evaluate: dict[str, Any] = {"sisdr": 7.25, "sisdr_err": 0.5, "mi": 0.125, "mi_q0_q1": 0.3, "protocol": 5.0}
    history = [{"valid": {"msspec": value}} for value in (3.0, 1.0, 2.0)]
    history[1]["evaluate"] = evaluate
    (folder / "history.json").write_text(json.dumps(history))
    status = {"state": "COMPLETED", "commit": "abc1234", "started": 1.0, "ended": 301.0, "host": "secretnode"}
    (folder / "status.json").write_text(json.dumps(status))
    protocol = {"clips": 9, "seconds": 5.0, "recordings": 3, "sample_rate": 8000, "metrics": {"sisdr": "centred"}}
    (folder / "evaluate.json").write_text(json.dumps(protocol))
    delta = [["losses.mmd", 4], ["datasource.train", f"{tmp_path}/train.jsonl"], ["continue_from", "//sig/0f0f0f0f"]]
    frozen = {"delta": delta, "choices": {"dset": "audio/mine"}}
    (folder / "frozen.json").write_text(json.dumps(frozen))
    return folder


def test_the_card_of_an_experiment_holds_its_numbers(run: Path, tmp_path: Path) -> None:
    text = (export_model(SIG, "safetensors", tmp_path / "out") / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] is None and head["library_name"] == "audiotok" and "encodec" in head["tags"]
    for fact in (
        f"# {SIG}: EnCodec at 8 kHz",
        "2 codebooks of 64 codes, 100 frames a second: 1.2 kb/s",
        f"signature `{SIG}`, commit `abc1234`",
        "`losses.mmd=4`, `datasource.train=…/train.jsonl`, `continue_from=//sig/0f0f0f0f`",
        "**Continued from** `…/early.bin`",
        "3 of 3 epochs of 7 updates\n",
        "**Weights** of epoch 2, the best by valid.msspec",
        "l1 0.1, mmd 4\n",
        "`dset=audio/mine`",
        "| train | 3 | 1.5 | 44100 |",
        "| valid | unknown |",
        "Evaluate stage of epoch 2, with the best weights until then.\n",
        "9 clips of 5 s from 3 recording(s) at 8000 Hz; sisdr: centred",
        "| sisdr | 7.25 ± 0.5 | dB |",
    ):
        assert fact in text
    quality, dependence = text.split("## Quality")[1].split("## Dependence")
    assert "| mi |" not in quality and "| mi | 0.125 | bit |" in dependence.split("## Configuration")[0]
    for secret in ("hunter2", "secretnode", str(tmp_path)):
        assert secret not in text


@pytest.mark.parametrize("section", [3, [1], {"l1": "x", "epochs": {"a": 1}, "train": [1]}])
def test_sections_of_another_form_are_left_out(run: Path, tmp_path: Path, section: object) -> None:
    state = load_checkpoint(run / "checkpoint.th")
    odd = {name: section for name in ("losses", "optim", "datasource")}
    cfg = OmegaConf.to_yaml(OmegaConf.create({**OmegaConf.create(state["xp.cfg"]), **odd}))
    save_checkpoint({**state, "xp.cfg": cfg}, run / "checkpoint.th")
    text = (export_model(SIG, "safetensors", tmp_path / "out") / "README.md").read_text()
    assert f"signature `{SIG}`" in text and "**Losses** and their weights: \n" in text


def test_the_card_of_a_file_says_what_is_not_known(tmp_path: Path) -> None:
    path = save_codec(tmp_path / "small.bin")
    text = (export_model(path, "audiocraft", tmp_path / "out") / "README.md").read_text()
    assert "Made of `small.bin`" in text and "is not known here" in text
    assert "## Training" not in text and "## Quality" not in text and str(tmp_path) not in text
    own = (export_model("demo", "onnx", tmp_path / "demo") / "README.md").read_text()
    assert "A model that comes with audiotok" in own and "immich-memories-music" in own


@pytest.mark.parametrize("shape", [{}, {"channels": 2, "renormalize": True, "norm": "time_group_norm"}])
def test_each_of_the_four_ways_on_a_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    """AudioCraft's with our class under its name, as both have the same methods; with its own see docs/LOG.md."""
    stand_in = types.ModuleType("audiocraft.models")
    stand_in.__dict__["CompressionModel"] = CompressionModel
    monkeypatch.setitem(sys.modules, "audiocraft", types.ModuleType("audiocraft"))
    monkeypatch.setitem(sys.modules, "audiocraft.models", stand_in)
    path = save_codec(tmp_path / "small.bin", **shape)
    folders = {format: export_model(path, format, tmp_path / format) for format in FORMATS}
    for format, folder in folders.items():
        text = (folder / "README.md").read_text()
        ways = re.findall(r"^(\w+)[^\n]* \(([^)]*)\):\n\n```python\n(.*?)```", text, re.MULTILINE | re.DOTALL)
        assert [name for name, _, _ in ways] == ["AudioCraft", "Transformers", "audiotok", "onnxruntime"]
        for other, (_, where, code) in zip(FORMATS, ways, strict=True):
            assert where == ("this folder" if other == format else f"`audiotok export small --format {other}`")
            if format == "onnx":  # the code is the same on each of the four cards
                names: dict[str, Any] = {}
                exec(code.replace("FOLDER", str(folders[other])), names)
                assert names["wav"].shape == (1, shape.get("channels", 1), 8000)


def test_a_format_that_the_model_does_not_fit_is_named_on_the_card(tmp_path: Path) -> None:
    out = export_model(save_codec(tmp_path / "small.bin", lstm=0), "safetensors", tmp_path / "out")
    assert "not for this model: Transformers has no EnCodec of this kind; it takes seanet.lstm" in (
        out / "README.md"
    ).read_text().replace("\n", " ")

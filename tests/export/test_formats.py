"""`audiotok export`: folders that other programs load, to the same weights and codes."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoFeatureExtractor
from transformers import EncodecModel as TheirModel

from audiotok.checkpoint import load_checkpoint, save_checkpoint
from audiotok.cli import export, main
from audiotok.errors import AudiotokError, CheckpointError, ConfigError
from audiotok.export import formats
from audiotok.export.formats import FORMATS, export_model
from audiotok.models import CompressionModel
from audiotok.models.encodec import EncodecModel
from tests.codecs import RATE, config, save_codec
from tests.utils.test_export import DECODER, ENCODEC, RVQ, SEANET

SHAPES: dict[str, dict[str, Any]] = {
    "mono": {},
    "causal": {"causal": True, "pad_mode": "reflect", "true_skip": False},
    "stereo": {"channels": 2, "renormalize": True, "norm": "time_group_norm", "pad_mode": "reflect"},
}


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    return save_codec(tmp_path / "small.bin")


def noise(channels: int, length: int = 4001) -> Tensor:
    return torch.randn(2, channels, length, generator=torch.Generator().manual_seed(3)) * 0.3


def own(path: Path) -> EncodecModel:
    model = CompressionModel.get_pretrained(path)
    assert isinstance(model, EncodecModel)
    return model


def listed(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("shape", SHAPES)
def test_audiocraft_takes_every_key_and_the_weights_are_the_same(tmp_path: Path, shape: str) -> None:
    path = save_codec(tmp_path / "small.bin", **SHAPES[shape])
    out = export_model(path, "audiocraft", tmp_path / "out")
    file = load_checkpoint(out / "compression_state_dict.bin")
    assert set(file) == {"best_state", "xp.cfg", "version", "exported"}
    assert equal(file["best_state"], load_checkpoint(path)["best_state"])
    cfg = yaml.safe_load(file["xp.cfg"])
    assert set(cfg) == {"compression_model", "sample_rate", "channels", "encodec", "seanet", "rvq"}
    assert set(cfg["encodec"]) == ENCODEC and set(cfg["rvq"]) == RVQ
    assert set(cfg["seanet"]) == SEANET | {"encoder", "decoder"}
    assert set(cfg["seanet"]["encoder"]) <= SEANET and DECODER <= set(cfg["seanet"]["decoder"]) <= SEANET | DECODER


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_transformers_loads_the_folder_and_gives_the_same_codes(tmp_path: Path, shape: str) -> None:
    path = save_codec(tmp_path / "small.bin", **SHAPES[shape])
    out = export_model(path, "huggingface", tmp_path / "out")
    model, theirs = own(path), TheirModel.from_pretrained(out).eval()
    wav = noise(model.channels)
    extractor = AutoFeatureExtractor.from_pretrained(out)
    clips = [clip[0].numpy() if model.channels == 1 else clip.numpy() for clip in wav]
    inputs = extractor(raw_audio=clips, sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(inputs["input_values"], wav)
    bandwidth = json.loads((out / "config.json").read_text())["target_bandwidths"][-1]
    encoded = theirs.encode(inputs["input_values"], inputs["padding_mask"], bandwidth=bandwidth)
    codes, scale = model.encode(wav)
    # Both compute the same in the same order, so that ties fall alike but for the processor's ways: one in a hundred.
    assert encoded.audio_codes.shape == (1, *codes.shape)
    assert float((encoded.audio_codes[0] != codes).float().mean()) < 0.01
    decoded = theirs.decode(codes[None], [scale], inputs["padding_mask"]).audio_values
    torch.testing.assert_close(decoded, model.decode(codes, scale)[..., : wav.shape[-1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_safetensors_hold_our_weights_and_the_configuration(codec: Path, tmp_path: Path, half: bool) -> None:
    out = export_model(codec, "safetensors", tmp_path / "out", half=half)
    about = json.loads((out / "audiotok.json").read_text())
    assert about["format"] == "audiotok" and about["version"] == 1
    weights, file = load_file(out / "model.safetensors"), load_checkpoint(codec)
    if not half:
        assert equal(weights, file["best_state"])
    assert {value.dtype for value in weights.values()} == {torch.float16 if half else torch.float32}
    assert about["config"]["seanet"]["ratios"] == [5, 4, 4] and about["config"]["rvq"]["bins"] == 64


def test_half_is_half_the_size(codec: Path, tmp_path: Path) -> None:
    for format, file in [("audiocraft", "compression_state_dict.bin"), ("onnx", "encoder.onnx")]:
        whole, half = (export_model(codec, format, tmp_path / f"{format}{half}", half=half) for half in (False, True))
        sizes = [(folder / file).stat().st_size for folder in (whole, half)]
        assert sizes[1] < 0.8 * sizes[0]  # tiny as it is, much of the file is names
    with pytest.raises(ConfigError, match="half is not for huggingface"):
        export_model(codec, "huggingface", tmp_path / "h", half=True)


def test_an_export_is_a_source(codec: Path, tmp_path: Path) -> None:
    first = export_model(codec, "audiocraft", tmp_path / "first")
    second = export_model(first, "huggingface", tmp_path / "second")
    kept = export_model(second, "safetensors", tmp_path / "kept")
    third = export_model(kept, "audiocraft", tmp_path / "third")
    one, two = (load_checkpoint(folder / "compression_state_dict.bin") for folder in (first, third))
    assert equal(one["best_state"], two["best_state"])
    fourth = export_model(kept, "huggingface", tmp_path / "fourth")
    assert equal(load_file(second / "model.safetensors"), load_file(fourth / "model.safetensors"))
    assert (second / "config.json").read_text() == (fourth / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lstm": 0}, r"seanet\.lstm"),
        ({"bins": 48}, r"rvq\.bins"),
        ({"norm": "spectral_norm"}, r"seanet\.norm"),
        ({"disable_norm_outer_blocks": 1}, r"seanet\.disable_norm_outer_blocks"),
        ({"activation": "SiLU", "activation_params": {}}, r"seanet\.activation"),
        ({"decoder": {"final_activation": "Tanh"}}, r"seanet\.final_activation"),
    ],
)
def test_what_transformers_cannot_express_is_refused_by_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    path = save_codec(tmp_path / "small.bin", **changes)
    with pytest.raises(ConfigError, match=key):
        export_model(path, "huggingface", tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["small.bin"]


# --- The command ---


def test_the_command_writes_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path / "outputs"))
    exported = load_checkpoint(save_codec(tmp_path / "small.bin"))
    state = {"best_state": {"model": exported["best_state"]}, "history": [{}], "xp.cfg": exported["xp.cfg"]}
    save_checkpoint(state, tmp_path / "outputs/xps/0a1b2c3d/checkpoint.th")
    for source in ("0a1b2c3d", "//sig/0a1b2c3d", "outputs/xps/0a1b2c3d/checkpoint.th"):
        assert main(["export", source, "--format", "safetensors", "--force"]) == 0
        assert capsys.readouterr().out.startswith("exported/0a1b2c3d-safetensors: README.md (")
    assert main(["export", "small.bin", "--format", "onnx"]) == 0
    assert listed("exported") == ["0a1b2c3d-safetensors", "small-onnx"]
    names = ["README.md", "audiotok.json", "decoder.onnx", "encoder.onnx"]
    assert listed("exported/small-onnx") == names


def test_an_earlier_export_is_replaced_by_force_alone(
    codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["export", str(codec), "--out", str(out), "--format"]
    assert main([*command, "onnx"]) == 0
    (out / ".git").mkdir()
    assert main([*command, "safetensors"]) == 2
    assert "holds an export already" in capsys.readouterr().err and (out / "encoder.onnx").exists()
    assert main([*command, "safetensors", "--force"]) == 0
    assert listed(out) == [".git", "README.md", "audiotok.json", "model.safetensors"]
    (out / "notes.txt").write_text("mine")
    assert main([*command, "onnx", "--force"]) == 2
    assert "notes.txt, which is of no export" in capsys.readouterr().err and (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.bin", "--format", "onnx"], "no checkpoint at missing.bin"),
        (["0a1b2c3d", "--format", "onnx"], "no experiment 0a1b2c3d"),
        (["demo", "--format", "onnx", "--out", "text"], "text is a file; give a folder with --out"),
        (["demo", "--format", "onnx", "--out", "text/deep"], "cannot write text/deep: File exists"),
        (["text", "--format", "onnx"], "error: text "),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path / "outputs"))
    (tmp_path / "text").write_text("no model")
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_what_fails_half_way_leaves_nothing(codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cfg: object, model: object, folder: Path, half: bool) -> None:
        (folder / "encoder.onnx").write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(formats.FORMATS, "onnx", fail)
    with pytest.raises(AudiotokError, match=r"cannot write .*out: No space left on device"):
        export_model(codec, "onnx", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small.bin"]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("pair", [("huggingface", "safetensors"), ("onnx", "onnx"), ("safetensors", "huggingface")])
def test_a_replacement_that_ends_half_way_leaves_no_mix(
    codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str], killed: bool
) -> None:
    """Of two models, stopped before each move: by an error, and by a kill, after which nothing of the program runs."""
    sources = (codec, save_codec(tmp_path / "other.bin", seed=5))
    folders = [
        export_model(source, format, tmp_path / f"{source.stem}-{format}")
        for source, format in zip(sources, pair, strict=True)
    ]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    out, plain, left = tmp_path / "out", Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == -1 or (killed and left < 0):
            raise OSError(5, "Input/output error")
        return plain(self, target)

    def read() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    moves = len(files[0]) + len(files[1])
    for left in range(moves + 1):
        shutil.copytree(folders[0], out)
        (out / ".git").mkdir()
        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            patch.setattr(Path, "replace", replace)
            if killed:
                patch.setattr(Path, "unlink", lambda self, missing_ok: None)
            with formats._staged(out) as stage:
                shutil.copytree(folders[1], stage, dirs_exist_ok=True)
        last = left == 0
        if last:
            assert read() == files[1]
        elif killed:
            assert any(read().items() <= each.items() for each in files)
            kept = {path.name: path.read_bytes() for path in out.glob(".out.*.tmp/earlier/*")}
            assert {**read(), **kept}.items() >= files[0].items(), "nothing is lost"
        else:
            assert read() == files[0]
        assert [path.name for path in out.iterdir() if path.is_dir() and path.suffix != ".tmp"] == [".git"]
        assert killed or not list(out.glob(".*.tmp"))
        shutil.rmtree(out)
    assert last


def test_what_a_killed_export_left_is_named(codec: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder beside a new export, or within an earlier one whose files it may hold; it is never deleted."""
    new, there = tmp_path / ".out.0a1b2c3d.tmp", tmp_path / "out/.out.0a1b2c3d.tmp"
    new.mkdir()
    out = export_model(codec, "safetensors", tmp_path / "out")
    assert f"{new} is left by an export that was killed, or runs: delete it" in caplog.text
    (there / "earlier").mkdir(parents=True)
    (there / "earlier/audiotok.json").write_text("of before")
    export_model(codec, "safetensors", out, force=True)
    assert f"{there}/earlier holds the files of the export before; keep them or delete it" in caplog.text
    assert (there / "earlier/audiotok.json").read_text() == "of before"

    caplog.clear()
    with pytest.raises(OSError, match="output error"), formats._staged(out) as stage:
        (stage / "earlier").mkdir()
        (stage / "earlier/audiotok.json").write_text("what could not be put back")
        raise OSError(5, "Input/output error")
    assert f"{stage} is left: " in caplog.text and (stage / "earlier/audiotok.json").exists()


def test_a_folder_that_is_there_is_written_within(codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount, into which nothing can be moved, or have a parent that others alone may write."""
    places, plain = [], formats.FORMATS["safetensors"]

    def write(cfg: Any, model: EncodecModel, folder: Path, half: bool) -> None:
        places.append(folder.parent)
        plain(cfg, model, folder, half)

    monkeypatch.setitem(formats.FORMATS, "safetensors", write)
    out = tmp_path / "new/out"
    for force in (False, True):
        export_model(codec, "safetensors", out, force=force)
        assert listed(out) == ["README.md", "audiotok.json", "model.safetensors"]
    assert places == [out.parent, out]


def test_a_folder_in_the_way_of_a_file_is_found_before_anything_is_replaced(codec: Path, tmp_path: Path) -> None:
    out = export_model(codec, "safetensors", tmp_path / "out")
    (out / "encoder.onnx").mkdir()
    before = (out / "README.md").read_bytes()
    for format in ("onnx", "audiocraft"):
        with pytest.raises(ConfigError, match=r"holds encoder\.onnx, which is of no export"):
            export_model(codec, format, out, force=True)
    assert listed(out) == ["README.md", "audiotok.json", "encoder.onnx", "model.safetensors"]
    assert (out / "README.md").read_bytes() == before


@pytest.mark.parametrize("format", ["audiocraft", "huggingface", "safetensors"])
def test_a_folder_does_not_replace_itself(codec: Path, tmp_path: Path, format: str) -> None:
    out = export_model(codec, format, tmp_path / "out")
    (tmp_path / "link").symlink_to(out)
    for target in (out, tmp_path / "link"):
        with pytest.raises(ConfigError, match="is the folder that is exported"):
            export_model(out, "onnx", target, force=True)
    assert equal(own(out).state_dict(), own(codec).state_dict())


def test_an_unfinished_experiment_is_exported_with_a_warning(
    codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path / "outputs"))
    folder, exported = tmp_path / "outputs/xps/0a1b2c3d", load_checkpoint(codec)
    state = {"best_state": {"model": exported["best_state"]}, "history": [{}], "xp.cfg": exported["xp.cfg"]}
    save_checkpoint(state, folder / "checkpoint.th")
    (folder / "history.json").write_text('[{"valid": {"msspec": 1.0}}]')
    for name, warned in (("FAILED", True), ("COMPLETED", False)):
        (folder / "status.json").write_text(json.dumps({"state": name}))
        caplog.clear()
        export_model("0a1b2c3d", "safetensors", tmp_path / name)
        assert ("//sig/0a1b2c3d has not completed (state FAILED)" in caplog.text) is warned
    (folder / "status.json").unlink()  # what remains is as another program leaves it
    text = (export_model("0a1b2c3d", "safetensors", tmp_path / "other") / "README.md").read_text()
    assert "An experiment of audiotok" not in text and "is not known here" in text


@pytest.mark.parametrize(("section", "message"), [(3, "huggingface='3'"), ({"target_bandwidths": "x"}, "valid list")])
@pytest.mark.parametrize("format", ["huggingface", "safetensors"])
def test_a_section_of_another_form_is_refused(
    codec: Path, tmp_path: Path, format: str, section: object, message: str
) -> None:
    cfg = OmegaConf.merge(config(), {"huggingface": section})
    save_checkpoint({**load_checkpoint(codec), "xp.cfg": OmegaConf.to_yaml(cfg)}, tmp_path / "odd.bin")
    with pytest.raises(CheckpointError, match=message):
        export_model(tmp_path / "odd.bin", format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    exported = load_checkpoint(save_codec(tmp_path / "small.bin"))
    cfg = OmegaConf.merge(config(), {"lm": {"dim": 4}})
    save_checkpoint({**exported, "xp.cfg": OmegaConf.to_yaml(cfg)}, tmp_path / "lm.bin")
    with pytest.raises(CheckpointError, match="it is of a language model"):
        export_model(tmp_path / "lm.bin", "safetensors", tmp_path / "out")


def test_the_command_offers_every_format() -> None:
    assert tuple(FORMATS) == export._FORMATS

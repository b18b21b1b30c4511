"""ONNX graphs run by onnxruntime give the codes and the audio of the networks they were written from."""

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from audiotok.errors import AudiotokError, ConfigError
from audiotok.export.onnx import write_onnx
from audiotok.models import EncodecModel, get_compression_model
from audiotok.models.encodec import CompressionModel
from audiotok.quantization import ResidualVectorQuantizer

HOP = 6
SHAPES: dict[str, dict[str, Any]] = {
    "constant": {},
    "causal": {"encodec.causal": True, "seanet.causal": True, "seanet.decoder.trim_right_ratio": 0.5},
    "reflect": {"seanet.pad_mode": "reflect", "seanet.dilation_base": 3},
    "replicate": {"seanet.pad_mode": "replicate", "seanet.causal": True, "seanet.lstm": 0, "seanet.true_skip": False},
    "stereo": {
        **{"encodec.channels": 2, "seanet.channels": 2, "encodec.renormalize": True, "seanet.pad_mode": "reflect"},
        **{"seanet.norm": "time_group_norm", "seanet.norm_params": {"eps": 1e-4}},
    },
    "spectral": {
        **{"seanet.norm": "spectral_norm", "seanet.activation": "GELU", "seanet.activation_params": {}},
        "seanet.decoder.final_activation": "Tanh",
    },
}


def config(changes: dict[str, Any]) -> DictConfig:
    cfg = OmegaConf.create(
        {
            "compression_model": "encodec",
            "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 600, "channels": 1},
            "seanet": {"n_filters": 4, "dimension": 6, "ratios": [3, 2], "n_residual_layers": 2, "decoder": {}},
            "rvq": {"n_q": 3, "bins": 8},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def codec(changes: dict[str, Any]) -> EncodecModel:
    """A codec whose every tensor is drawn: biases and scales of norms as well."""
    model = get_compression_model(config(changes))
    assert isinstance(model, EncodecModel)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("bias") or "norm.weight" in name:
                value += 0.3 * torch.randn(value.shape, generator=generator)
            if name.endswith("embed"):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
        model.quantizer.eval()
        for _ in range(5):  # the largest singular values of spectral_norm are found in training mode
            model(torch.randn(1, model.channels, 60, generator=generator))
    return model.eval()


def sessions(folder: Path) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors that are raised anyway
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", options) for name in ("encoder", "decoder")
    )
    return encoder, decoder


def near_ties(model: CompressionModel, wav: Tensor, codes: Tensor) -> int:
    """How many frames of wav part from codes [B, K, T'], which must be as near as the nearest, but for rounding.

    From the codebook where a frame parts on, both go on from different residuals and no longer compare.
    """
    assert isinstance(model, EncodecModel) and isinstance(model.quantizer, ResidualVectorQuantizer)
    latent, _ = model.double().encode_latent(wav.double())
    residual, count = latent.transpose(1, 2), 0
    parted = torch.zeros(residual.shape[:2], dtype=torch.bool)
    for index, codebook in enumerate(model.quantizer.vq.codebooks(model.num_codebooks)):
        distances = (residual[:, :, None] - codebook.embed).pow(2).sum(-1)  # [B, T', bins]
        found = distances.gather(2, codes[:, index, :, None])[..., 0]
        worse = found - distances.min(dim=2).values
        scale = residual.pow(2).sum(-1) + codebook.embed.pow(2).sum(-1).max()
        assert bool((worse <= 1e-5 * scale)[~parted].all())
        here = (codes[:, index] != distances.argmin(dim=2)) & ~parted
        count, parted = count + int(here.sum()), parted | here
        residual = residual - codebook.embed[codes[:, index]]
    model.float()
    return count


@pytest.mark.parametrize("shape", [*SHAPES, "half"])
def test_any_length_and_batch_have_the_same_codes_and_audio(tmp_path: Path, shape: str) -> None:
    half = shape == "half"
    model = codec(SHAPES["stereo" if half else shape])
    if half:  # what the file holds, read as float32
        model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    write_onnx(model, tmp_path, half=half)
    encoder, decoder = sessions(tmp_path)
    generator = torch.Generator().manual_seed(0)
    ties = frames = 0
    for batch, length in [(1, 1), (3, 1), (2, 2), (3, HOP - 1), (1, HOP), (3, HOP + 1), (1, 200), (3, 601)]:
        wav = torch.randn(batch, model.channels, length, generator=generator)
        with torch.no_grad():
            codes, scale = model.encode(wav)
            audio = model.decode(codes, scale)
        made = encoder.run(None, {"wav": wav.numpy()})
        assert made[0].shape == tuple(codes.shape) and made[0].dtype == "int64"
        ties, frames = ties + near_ties(model, wav, torch.from_numpy(made[0])), frames + codes[:, 0].numel()
        given = {"codes": codes.numpy()}
        if scale is not None:
            torch.testing.assert_close(torch.from_numpy(made[1]), scale)
            given["scale"] = scale.numpy()
        decoded = torch.from_numpy(decoder.run(None, given)[0])
        assert decoded.shape == audio.shape
        torch.testing.assert_close(decoded, audio, rtol=1e-4, atol=1e-4 * float(audio.abs().max()))
    assert frames > 150 and ties <= 1


def test_only_codebooks_in_use_are_written_and_the_file_says_what_it_is(tmp_path: Path) -> None:
    model = codec({})
    model.set_num_codebooks(2)
    write_onnx(model, tmp_path / "new")
    about = json.loads((tmp_path / "new/audiotok.json").read_text())
    assert about["format"] == "onnx" and about["opset"] == 17 and about["n_q"] == 2 and about["bins"] == 8
    assert (about["sample_rate"], about["channels"], about["frame_rate"]) == (600, 1, 100.0)
    for name in ("encoder", "decoder"):
        file = onnx.load(tmp_path / f"new/{name}.onnx")
        onnx.checker.check_model(file, full_check=True)
        assert [opset.version for opset in file.opset_import] == [17]
    encoder, decoder = sessions(tmp_path / "new")
    wav = torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(0))
    codes = torch.from_numpy(encoder.run(None, {"wav": wav.numpy()})[0])
    assert codes.shape[1] == 2 and near_ties(model, wav, codes) == 0
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        decoder.run(None, {"codes": codes.numpy() + 8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encodec.quantizer": "no_quant"}, r"encodec\.quantizer=no_quant has no codes"),
        ({"seanet.activation": "Mish", "seanet.activation_params": {}}, r"seanet\.activation .* is Mish"),
    ],
)
def test_what_onnx_does_not_express_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    model = get_compression_model(config(changes))
    assert isinstance(model, EncodecModel)
    with pytest.raises(ConfigError, match=message):
        write_onnx(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_the_package_one_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(AudiotokError, match=r"package onnx, which is not installed: pip install 'audiotok\[onnx\]'"):
        write_onnx(codec({}), tmp_path)

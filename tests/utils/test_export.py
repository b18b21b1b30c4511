"""Exported files: what AudioCraft builds a codec from, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from audiotok.checkpoint import load_checkpoint, save_checkpoint
from audiotok.errors import CheckpointError
from audiotok.models import CompressionModel, get_compression_model
from audiotok.utils.export import export_encodec

CONFIG = Path(__file__).parent.parent.parent / "config"
# Arguments of AudioCraft 1.4's EncodecModel, SEANetEncoder, SEANetDecoder and ResidualVectorQuantizer. Its builder
# passes every key on, reads autoencoder and quantizer itself, and needs `encoder` and `decoder` within seanet.
SEANET = {
    *("channels", "dimension", "n_filters", "n_residual_layers", "ratios", "activation", "activation_params", "norm"),
    *("norm_params", "kernel_size", "last_kernel_size", "residual_kernel_size", "dilation_base", "causal", "pad_mode"),
    *("true_skip", "compress", "lstm", "disable_norm_outer_blocks"),
}
DECODER = {"final_activation", "final_activation_params", "trim_right_ratio"}
ENCODEC = {"autoencoder", "quantizer", "sample_rate", "channels", "causal", "renormalize"}
RVQ = {
    *("n_q", "q_dropout", "bins", "decay", "kmeans_init", "kmeans_iters", "threshold_ema_dead_code"),
    *("orthogonal_reg_weight", "orthogonal_reg_active_codes_only", "orthogonal_reg_max_codes"),
}
TINY = ["solver=compression/debug", "seanet.n_filters=2", "seanet.dimension=4", "rvq.bins=8"]


def trained(folder: Path, *overrides: str, change: dict[str, Any] | None = None) -> Path:
    """A checkpoint as training writes it, by its best state, with the whole configuration."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("config", [*TINY, *overrides])
    torch.manual_seed(0)
    weights = {name: value + 0.1 for name, value in get_compression_model(cfg).state_dict().items()}
    text = OmegaConf.to_yaml(OmegaConf.merge(cfg, change or {}), resolve=True)
    save_checkpoint({"best_state": {"model": weights}, "history": [{}], "xp.cfg": text}, folder / "checkpoint.th")
    return folder / "checkpoint.th"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["rvq.kmeans_start=plusplus", "rvq.commitment_weight=0.5"],
        ["channels=2", "encodec.renormalize=true", "seanet.norm_params=null"],
        ["encodec.causal=true", "seanet.decoder.trim_right_ratio=0.5", "seanet.decoder.final_activation=Tanh"],
        ["encodec.quantizer=no_quant", "losses.mmd=0"],
    ],
)
def test_the_configuration_is_what_audiocraft_takes(tmp_path: Path, overrides: list[str]) -> None:
    checkpoint = trained(tmp_path, *overrides)
    exported = load_checkpoint(export_encodec(checkpoint, tmp_path / "model.bin"))
    assert set(exported) == {"best_state", "xp.cfg", "version", "exported"} and exported["exported"] is True
    cfg = yaml.safe_load(exported["xp.cfg"])
    quantizer = cfg["encodec"]["quantizer"]
    assert set(cfg) == {"compression_model", "sample_rate", "channels", "encodec", "seanet", quantizer}
    assert set(cfg["encodec"]) == ENCODEC
    assert set(cfg["seanet"]) == SEANET | {"encoder", "decoder"}
    assert set(cfg["seanet"]["encoder"]) <= SEANET and DECODER <= set(cfg["seanet"]["decoder"]) <= SEANET | DECODER
    assert set(cfg[quantizer]) == (RVQ if quantizer == "rvq" else set())
    assert isinstance(cfg["seanet"]["norm_params"], dict) and isinstance(cfg["seanet"]["ratios"], list)
    ours, theirs = (CompressionModel.get_pretrained(path) for path in (checkpoint, tmp_path / "model.bin"))
    wav = torch.randn(2, cfg["channels"], 1600, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.encode(wav)[0], theirs.encode(wav)[0])
        assert torch.equal(ours(wav).x, theirs(wav).x)


def test_what_is_left_out_has_the_values_that_the_model_was_made_with(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, "seanet.lstm=2", "seanet.n_residual_layers=1")
    state = load_checkpoint(checkpoint)
    cfg = OmegaConf.create(state["xp.cfg"])
    defaults = ("norm", "pad_mode", "lstm", "n_residual_layers", "norm_params", "encoder")
    for key in defaults:  # AudioCraft's defaults of these are others
        del cfg.seanet[key]
    del cfg.encodec.causal, cfg.rvq.kmeans_iters
    save_checkpoint({**state, "xp.cfg": OmegaConf.to_yaml(cfg)}, checkpoint)
    made = yaml.safe_load(load_checkpoint(export_encodec(checkpoint, tmp_path / "model.bin"))["xp.cfg"])
    assert [made["seanet"][key] for key in defaults] == ["weight_norm", "constant", 2, 1, {}, {}]
    assert made["encodec"]["causal"] is False and made["rvq"]["kmeans_iters"] == 50


def test_nothing_of_the_machine_or_the_data_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    change = {"slurm": {"setup": ["export WANDB_API_KEY=hunter2"]}, "datasource": {"train": "/home/me/music"}}
    checkpoint = trained(tmp_path, "+label=${oc.env:TOKEN}", change=change)
    exported = export_encodec(checkpoint, tmp_path / "model.bin").read_bytes()
    for secret in (b"hunter2", b"/home/me", b"slurm", b"dora"):
        assert secret not in exported


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, everywhere: bool) -> None:
    checkpoint = trained(tmp_path)
    state = load_checkpoint(checkpoint)
    names = list(state["best_state"]["model"])
    for name in names if everywhere else names[3:4]:
        state["best_state"]["model"][name].view(-1)[0] = value
    save_checkpoint(state, checkpoint)
    shown = names[0] if everywhere else names[3]
    message = rf"checkpoint\.th has weights that are not finite \({shown}"
    with pytest.raises(CheckpointError, match=message):
        export_encodec(checkpoint, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=message):
        CompressionModel.get_pretrained(checkpoint)
    assert not (tmp_path / "m.bin").exists()


def test_weights_of_another_configuration_are_not_exported(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, change={"rvq": {"bins": 16}})
    with pytest.raises(CheckpointError, match=r"cluster_size is \[8\], expected \[16\], and 5 more"):
        export_encodec(checkpoint, tmp_path / "model.bin")


def test_half_the_size_is_float16_with_one_use_for_each_code(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    whole, half = (
        export_encodec(checkpoint, tmp_path / name, half=name == "half.bin") for name in ("m.bin", "half.bin")
    )
    assert half.stat().st_size < 0.8 * whole.stat().st_size  # tiny as it is, most of the file is names
    ours, theirs = (CompressionModel.get_pretrained(path).state_dict() for path in (whole, half))
    for name, value in theirs.items():
        assert value.dtype == torch.float32
        if name.endswith("cluster_size"):
            assert torch.equal(value, torch.ones_like(value))
        elif name.endswith("embed_avg"):
            embed = theirs[name.replace("embed_avg", "embed")]
            assert torch.equal(value, embed) and value.data_ptr() != embed.data_ptr()
        else:
            assert torch.equal(value, ours[name].half().float())
    assert load_checkpoint(whole)["xp.cfg"] == load_checkpoint(half)["xp.cfg"]


def test_what_float16_cannot_hold_is_not_exported_in_half(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    state = load_checkpoint(checkpoint)
    name = next(iter(state["best_state"]["model"]))
    state["best_state"]["model"][name] += 1e5
    save_checkpoint(state, checkpoint)
    with pytest.raises(CheckpointError, match="float16 cannot hold"):
        export_encodec(checkpoint, tmp_path / "model.bin", half=True)
    assert not (tmp_path / "model.bin").exists()
    export_encodec(checkpoint, tmp_path / "model.bin")

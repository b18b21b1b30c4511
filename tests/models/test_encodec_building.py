"""From configuration to codec: the right sizes, names of what is wrong, and a configuration left as it was."""

from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from audiotok.errors import ConfigError
from audiotok.models import CompressionModel, EncodecModel, get_compression_model
from audiotok.quantization import DummyQuantizer

CONFIG = """
sample_rate: 32000
channels: 1
device: cpu
solver: compression
dataset: {batch_size: 64}
compression_model: encodec
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: ${sample_rate}
  channels: ${channels}
  causal: false
  renormalize: false
seanet:
  dimension: 16
  channels: ${channels}
  causal: ${encodec.causal}
  n_filters: 2
  n_residual_layers: 1
  ratios: [8, 5, 4, 4]
  activation: ELU
  activation_params: {alpha: 1.}
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: constant
  true_skip: true
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}
  encoder: {}
rvq:
  n_q: 4
  q_dropout: false
  bins: 32
  decay: 0.99
  kmeans_init: true
  kmeans_iters: 50
  threshold_ema_dead_code: 2
  orthogonal_reg_weight: 0.0
  orthogonal_reg_active_codes_only: false
no_quant: {}
"""


def config(**overrides: Any) -> DictConfig:
    cfg = OmegaConf.create(CONFIG)
    for key, value in overrides.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    assert isinstance(cfg, DictConfig)
    return cfg


def build(**overrides: Any) -> CompressionModel:
    return get_compression_model(config(**overrides))


def test_sizes_follow_the_configuration_which_stays_as_it_was() -> None:
    cfg = config()
    OmegaConf.set_readonly(cfg, True)
    before = OmegaConf.to_yaml(cfg)
    model = get_compression_model(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert (model.sample_rate, model.channels, model.frame_rate) == (32000, 1, 50)
    assert (model.total_codebooks, model.cardinality) == (4, 32)
    assert model.encode(torch.zeros(1, 1, 1300))[0].shape == (1, 4, 3)


def test_state_names_are_those_of_the_files() -> None:
    state = build().state_dict()
    assert {
        "encoder.model.0.conv.conv.weight_g",
        "encoder.model.1.block.3.conv.conv.bias",
        "encoder.model.13.lstm.weight_ih_l0",
        "decoder.model.3.convtr.convtr.weight_v",
        "quantizer.vq.layers.3._codebook.embed_avg",
    } <= set(state)


def test_the_full_32_khz_configuration_has_56_9_million_parameters() -> None:
    with torch.device("meta"):
        model = build(seanet__dimension=128, seanet__n_filters=64, rvq__bins=2048)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 56.9


def test_one_side_may_differ_from_the_other() -> None:
    model = build(seanet__encoder__n_filters=4, seanet__decoder__final_activation="Tanh", seanet__decoder__lstm=0)
    state = model.state_dict()
    assert state["encoder.model.0.conv.conv.weight_v"].shape[0] == 4
    assert state["decoder.model.14.conv.conv.weight_v"].shape[1] == 2
    assert model(1e3 * torch.randn(1, 1, 700)).x.abs().max() <= 1


def test_training_values_reach_the_quantiser() -> None:
    stereo = build(channels=2, encodec__renormalize=True, rvq__commitment_weight=0.0, rvq__kmeans_init=False)
    assert isinstance(stereo, EncodecModel)
    assert stereo.renormalize
    assert stereo.train()(torch.randn(2, 2, 640)).penalty.detach() == 0.0
    assert build(encodec__causal=True)(torch.randn(1, 1, 10)).x.shape == (1, 1, 10)


def test_no_quantiser() -> None:
    model = build(encodec__quantizer="no_quant")
    assert isinstance(model, EncodecModel)
    assert isinstance(model.quantizer, DummyQuantizer)


def test_outdated_key_of_exported_files_is_accepted() -> None:
    assert build(encodec__renorm=False).sample_rate == 32000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"compression_model": "dac"}, r"compression_model='dac'; choose one of: encodec\."),
        ({"encodec__autoencoder": "wavenet"}, r"encodec.autoencoder='wavenet'; choose one of: seanet\."),
        ({"encodec__quantizer": "fsq"}, r"encodec.quantizer='fsq'; choose one of: rvq, no_quant\."),
        ({"encodec__casual": True}, r"encodec.casual=True is unknown; .*causal"),
        ({"seanet__filters": 3}, r"seanet.filters=3 is unknown; .*n_filters"),
        ({"seanet__encoder__trim_right_ratio": 1}, r"seanet.encoder.trim_right_ratio=1 is unknown"),
        ({"seanet__decoder__foo": 1}, r"seanet.decoder.foo=1 is unknown; .*trim_right_ratio"),
        ({"rvq__dimension": 3}, r"rvq.dimension=3 is unknown; .*n_q"),
        ({"rvq__n_q": 0}, r"rvq.n_q=0; give a whole number from 1 up"),
        ({"rvq__bins": 1}, r"rvq.bins=1; give a whole number from 2 up"),
        ({"seanet__norm": "layer_norm"}, r"norm='layer_norm'; choose one of: none, weight_norm"),
        ({"seanet__channels": 2}, r"encodec.channels=1, but seanet has channels=2"),
        ({"seanet__decoder__dimension": 8}, r"dimension 16, seanet.decoder 8"),
        ({"seanet__decoder__ratios": [8, 5, 4]}, r"hop_length 640, seanet.decoder 160"),
        ({"sample_rate": "???"}, r"encodec in the configuration: .*sample_rate"),
        ({"sample_rate": 0}, r"encodec.sample_rate=0; give a whole number"),
        ({"rvq": None}, r"rvq=None in the configuration; give a section"),
        ({"no_quant__n_q": 1, "encodec__quantizer": "no_quant"}, r"no_quant.n_q=1 is unknown; this section"),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**overrides)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ConfigError, match="compression_model=None"):
        get_compression_model(OmegaConf.create({}))


def test_fresh_weights_lie_on_the_cpu_whatever_the_device() -> None:
    assert {p.device.type for p in build(device="cuda").parameters()} == {"cpu"}

"""The disk that an experiment takes: counted as the built networks are, and as a run leaves it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from audiotok import train
from audiotok.experiments.disk import adversary_size, experiment_bytes, language_model_size, model_size
from audiotok.files import write_json
from audiotok.models import get_compression_model
from audiotok.models.codec_lm import get_language_model
from audiotok.solvers import builders

PRESETS = sorted(
    path.stem
    for path in (Path(__file__).parent.parent.parent / "config/solver/compression").glob("*.yaml")
    if path.stem != "default"
)
ALL = "adversarial.adversaries=[msstftd,mpd,msd]"


def counted(module: nn.Module) -> tuple[int, int]:
    """Trained values, and the others that a checkpoint holds."""
    parameters = sum(value.numel() for value in module.parameters())
    return parameters, sum(value.numel() for value in module.state_dict().values()) - parameters


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seanet.norm=none", "seanet.true_skip=false", "seanet.lstm=0", "channels=2", "msstftd.norm=none"],
        ["seanet.norm=time_group_norm", "encodec.causal=false", "seanet.n_residual_layers=3", "seanet.compress=2"],
        ["seanet.norm=spectral_norm", "seanet.ratios=[6,5,3]", "seanet.disable_norm_outer_blocks=2", "rvq.n_q=3"],
        ["encodec.quantizer=no_quant", "losses.mmd=0", "+seanet.encoder.n_filters=12", "+seanet.decoder.lstm=1"],
        ["+msstftd.sep_channels=true", "channels=2", "+msstftd.max_filters=40", "+msstftd.filters_scale=2"],
        ["+msstftd.kernel_size=[5,7]", "+msstftd.dilations=[1,2]", "msstftd.norm=spectral_norm"],
        ["msd.groups=null", "msd.max_filters=64", "msd.scale_norms=[none,weight_norm]", "mpd.n_layers=3"],
    ],
    ids=lambda overrides: " ".join(overrides) or "as it is",
)
def test_sizes_are_those_of_the_networks(preset: str, overrides: list[str]) -> None:
    xp = train.main.get_xp([f"solver=compression/{preset}", ALL, *overrides])
    values = xp.frozen_values()
    with torch.device("meta"):
        model = get_compression_model(xp.cfg)
        adversaries = builders.get_adversaries(xp.cfg, torch.device("meta"))
    assert tuple(model_size(values)) == counted(model)
    for name, loss in adversaries.items():
        assert tuple(adversary_size(name, values[name])) == counted(loss.adversary), name


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lm.heads=[parallel]", "lm.no_context=false", "lm.bias_attn=true", "lm.hidden_scale=2"],
        ["lm.no_context=true", "lm.bias_ff=true", "lm.bias_proj=true", "lm.positions=rope"],
    ],
)
@pytest.mark.parametrize(("n_q", "bins"), [(1, 16), (4, 1024)])
@pytest.mark.parametrize("preset", ["debug", "demo", "musicgen_small"])
def test_the_size_of_a_language_model_is_that_of_the_network(
    preset: str, overrides: list[str], n_q: int, bins: int
) -> None:
    xp = train.main.get_xp([f"solver=lm/{preset}", "compression_model_checkpoint=demo", *overrides])
    codes = {"codec": "", "codec_hash": "", "n_q": n_q, "bins": bins, "frame_rate": 50.0, "sample_rate": 32000}
    with torch.device("meta"):
        model = get_language_model(OmegaConf.create({"lm": xp.cfg.lm, "codes": {**codes, "channels": 1}}))
    assert tuple(language_model_size(xp.frozen_values()["lm"], n_q, bins)) == counted(model)


def test_the_codec_of_a_language_model_is_that_of_its_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(tmp_path))
    overrides = ["solver=lm/debug", "dset=audio/demo", "compression_model_checkpoint=//sig/0123abcd"]
    unknown = experiment_bytes(train.main.get_xp(overrides).frozen_values())
    cfg = {"rvq": {"n_q": 2, "bins": 16}, "sample_rate": 16000, "channels": 1}
    folder = tmp_path / "xps" / "0123abcd"
    folder.mkdir(parents=True)
    write_json(folder / "frozen.json", {"cfg": cfg})
    known = experiment_bytes(train.main.get_xp(overrides).frozen_values())
    assert unknown is not None and known is not None and 0 < known < unknown / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "more"),
    [
        (1, []),
        (3, ["checkpoint.save_every=1", "checkpoint.keep_last=2", "generate.every=1", "optim.updates_per_epoch=3"]),
        (2, ["checkpoint.save_every=1", "checkpoint.keep_every_states=[best_state]", "optim.ema.use=false"]),
    ],
)
def test_a_run_leaves_what_was_estimated(
    epochs: int, more: list[str], tmp_path: Path, debug_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.main.dora, "dir", tmp_path)
    size = ["seanet.n_filters=8", "rvq.bins=64", "adversarial.adversaries=[msstftd]", "msstftd.filters=8"]
    xp = train.main.get_xp([*debug_overrides, *size, f"optim.epochs={epochs}", "mmd.num_batches_mmd=2", *more])
    train.main.init_xp(xp)
    with xp.enter():
        train.get_solver(xp.cfg).run()
    files = [path for path in xp.folder.rglob("*") if path.suffix in (".th", ".wav")]
    found = sum(path.stat().st_size for path in files)
    assert experiment_bytes(xp.frozen_values()) == pytest.approx(found, rel=0.03)


def test_the_sweep_at_full_size_is_not_said_to_fit_on_a_laptop() -> None:
    size = experiment_bytes(train.main.get_xp(["solver=compression/encodec_mmd_32khz"]).frozen_values())
    assert size is not None and 5e9 < size < 20e9


@pytest.mark.parametrize(
    "cfg", [{}, {"compression_model": "other"}, {"compression_model": "encodec", "encodec": None}, {"seanet": 3}]
)
def test_what_is_not_known_has_no_size(cfg: dict[str, Any]) -> None:
    assert experiment_bytes(cfg) is None


@pytest.mark.parametrize("override", ["seanet.ratios=4", "rvq.n_q=x", "adversarial.adversaries=[x]"])
def test_a_value_that_cannot_be_is_left_to_the_run(override: str) -> None:
    cfg = train.main.get_xp(["solver=compression/debug", override]).frozen_values()
    assert experiment_bytes(cfg) is None

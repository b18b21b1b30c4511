"""The configuration: every preset composes and builds, every key is read, nothing depends on who runs it."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from dora.conf import DoraConfig
from dora.hydra import HydraMain
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from audiotok import train
from audiotok.launchers.profile import Profile
from audiotok.metrics import SIGNAL_METRICS
from audiotok.metrics.quality import SET_METRICS, SISDR
from audiotok.models import get_compression_model
from audiotok.results import METRICS
from audiotok.solvers import builders

ROOT = Path(__file__).parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "config/solver/compression").glob("*.yaml") if path.stem != "default")
PROFILES = sorted(path.stem for path in (ROOT / "config/cluster").glob("*.yaml"))


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return compose("config", list(overrides))


def keys(section: Any, path: str = "") -> list[str]:
    if not isinstance(section, dict) or not section:
        return [path]
    return [leaf for key, value in section.items() for leaf in keys(value, f"{path}.{key}".lstrip("."))]


def names_in_code() -> set[str]:
    """Every identifier, keyword and string constant of the library."""
    found: set[str] = set()
    for path in (ROOT / "audiotok").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for attribute in ("id", "attr", "arg", "value"):
                value = getattr(node, attribute, None)
                if isinstance(value, str):
                    found.add(value)
    return found


def test_there_are_presets() -> None:
    assert {
        "encodec_mmd_32khz",
        "encodec_mmd_share_32khz",
        "encodec_musicgen_mmd_32khz",
        "encodec_musicgen_32khz",
    } <= set(PRESETS)
    assert {"encodec_base_24khz", "debug", "demo"} <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_builds_all_its_parts(preset: str) -> None:
    cfg = config(f"solver=compression/{preset}")
    before = OmegaConf.to_yaml(cfg)
    with torch.device("meta"):
        model = get_compression_model(cfg)
        builders.get_adversaries(cfg, torch.device("meta"))
    builders.get_signal_losses(cfg)
    builders.get_balancer(cfg)
    builders.get_macro_batch(cfg)
    assert OmegaConf.to_yaml(cfg) == before, "a builder changed the configuration"
    assert model.sample_rate == cfg.sample_rate and model.num_codebooks == cfg.rvq.n_q


def test_a_run_frozen_without_a_choice_of_variables_compares_codebooks() -> None:
    cfg = config("solver=compression/debug", "mmd.between=frames", "mmd.delay=false", "mmd.estimator=closed")
    assert builders.get_macro_batch(cfg).loss.between == "frames"
    del cfg.mmd.between
    loss = builders.get_macro_batch(cfg).loss
    assert (loss.between, loss.estimator) == ("codebooks", "closed")


def test_a_run_frozen_without_a_weighting_has_a_factor_as_its_weight() -> None:
    cfg = config("solver=compression/debug", "mmd.weighting=share")
    assert builders.get_macro_batch(cfg).weighting == "share"
    del cfg.mmd.weighting
    assert builders.get_macro_batch(cfg).weighting == "absolute"


def test_adversaries_are_on_their_device_when_ranks_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[torch.nn.Module] = []
    monkeypatch.setattr("flashy.distrib.broadcast_model", shared.append)
    builders.get_adversaries(config("solver=compression/demo"), torch.device("meta"))
    (adversary,) = shared
    assert all(tensor.is_meta for tensor in (*adversary.parameters(), *adversary.buffers()))


def test_the_sizes_are_those_of_the_paper() -> None:
    cfg = config("solver=compression/encodec_musicgen_mmd_32khz")
    with torch.device("meta"):
        model = get_compression_model(cfg)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(56.9, abs=0.1)
    assert model.frame_rate == 50 and model.cardinality == 2048 and model.num_codebooks == 4
    mmd = OmegaConf.to_container(cfg.mmd)
    assert isinstance(mmd, dict)
    released = {
        "estimator": "clips",
        "stream": "residual",
        "sigmas": [0.1, 1.0, 5.0, 10.0, 20.0, 50.0],
        "delay": True,
        "num_batches_mmd": 32,
        "start_epoch": 1,
        "ramp_epochs": 0,
    }
    assert {key: mmd[key] for key in released} == released
    assert cfg.losses.mmd == 1000.0
    assert cfg.optim.adam.betas == [0.5, 0.9] and cfg.optim.lr == 3e-4 and cfg.dataset.batch_size == 64


def test_every_key_is_read_by_the_library() -> None:
    theirs = {"dora": {f.name for f in fields(DoraConfig)}, "slurm": {f.name for f in fields(Profile)}}
    known = names_in_code()
    defaults = [f"{path.parent.name}/default" for path in (ROOT / "config/solver").glob("*/default.yaml")]
    assert "compression/default" in defaults
    paths: set[str] = set()
    for preset in ("compression/encodec_mmd_32khz", *defaults):
        container = OmegaConf.to_container(config(f"solver={preset}"))
        assert isinstance(container, dict)
        paths.update(keys(container))
    paths.remove("label")  # read by nobody on purpose: it only makes another signature
    for path in paths:
        section, *_, leaf = path.split(".") if "." in path else (path, path)
        if section in theirs:
            assert path.split(".")[1] in theirs[section], f"Dora does not know {path}"
        elif "activation_params" not in path:  # free keyword arguments of the activation
            assert leaf in known, f"nobody reads {path}"


def test_what_every_solver_reads_is_in_the_default_of_all() -> None:
    text = (ROOT / "audiotok/solvers/solver.py").read_text()
    paths = {path.removesuffix(".get") for path in re.findall(r"\bcfg\.([a-z_]+(?:\.[a-z_]+)*)", text)} - {"get"}
    paths |= {"evaluate.every", "generate.every"} | set(re.findall(r"\bcfg\.get\(\"([a-z_]+)\"", text))
    assert {"optim.epochs", "checkpoint.every_minutes", "schedule", "continue_from"} <= paths
    known = OmegaConf.to_container(config(), resolve=False)
    assert isinstance(known, dict) and known["solver"] is None
    for path in paths:
        section = known
        for name in path.split("."):
            assert name in section, f"{path} is read by every solver, but is not in config/solver/default.yaml"
            section = section[name]


def test_every_loss_and_metric_has_a_key_a_direction_and_a_row_in_the_docs() -> None:
    cfg = config("solver=compression/default")
    assert {*builders.SIGNAL_LOSSES, *builders.OTHER_LOSSES} == set(cfg.losses)
    assert {*SIGNAL_METRICS, *SET_METRICS} <= set(cfg.evaluate.metrics)
    docs = (ROOT / "docs/metrics.md").read_text()
    for name in {*builders.SIGNAL_LOSSES, *builders.OTHER_LOSSES, *SIGNAL_METRICS, *SET_METRICS}:
        assert name in METRICS, f"audiotok/results/metrics.py lacks {name}"
        assert f"`{name}`" in docs, f"docs/metrics.md lacks {name}"


def test_a_metric_added_since_a_run_was_frozen_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config("solver=compression/debug", "device=cpu")
    before = builders.get_evaluation_metrics(cfg)[0].keys()
    monkeypatch.setitem(SIGNAL_METRICS, "added", SISDR)
    assert builders.get_evaluation_metrics(cfg)[0].keys() == before
    with open_dict(cfg):
        cfg.evaluate.metrics.added = True
    assert builders.get_evaluation_metrics(cfg)[0].keys() == {*before, "added"}


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_hold_every_key_and_no_site(profile: str) -> None:
    slurm = config(f"cluster={profile}").slurm
    assert set(slurm) == {f.name for f in fields(Profile)} - {"cluster"}
    values = OmegaConf.to_container(slurm, resolve=True)
    assert isinstance(values, dict)
    Profile.from_mapping({str(key): value for key, value in values.items()}, cluster=profile)
    assert slurm.partition is None


def test_the_profile_does_not_change_the_signature() -> None:
    plain = train.main.get_xp(["solver=compression/demo"])
    extras = ("cluster=h100x8", "device=cpu", "num_threads=2", "logging.level=DEBUG", "dataset.num_workers=3")
    for extra in (*extras, "deterministic=true"):
        assert train.main.get_xp(["solver=compression/demo", extra]).sig == plain.sig, extra
    assert train.main.get_xp(["solver=compression/demo", "losses.mmd=11"]).sig != plain.sig


def test_signatures_are_those_of_dora() -> None:
    def main(cfg: DictConfig) -> None: ...

    main.__module__ = "audiotok.train"  # where Dora looks for the configuration from
    theirs = HydraMain(main, config_name="config", config_path="../config", version_base="1.3")
    for argv in (
        ["solver=compression/encodec_mmd_32khz", "mmd.sigmas=[1.0, 2.5]", "rvq.n_q=8"],
        ["solver=compression/demo", "mmd.sigmas=median", "label=null"],
        ["solver=compression/demo", "model=encodec/encodec_base_causal", "sample_rate=24000"],
        [],
    ):
        ours = train.main.get_xp(argv)
        upstream = theirs.get_xp(argv)
        assert (ours.sig, ours.delta) == (upstream.sig, upstream.delta)


def test_user_may_be_unset() -> None:
    code = "from audiotok import train; print(train.main.get_xp(['solver=compression/debug']).sig)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == train.main.get_xp(["solver=compression/debug"]).sig


def test_a_dataset_needs_no_limits(debug_overrides: list[str]) -> None:
    cfg = config(*debug_overrides)
    with open_dict(cfg):
        del cfg.datasource["max_sample_rate"], cfg.datasource["max_channels"]
    assert {"train", "valid"} <= builders.get_dataloaders(cfg).keys()

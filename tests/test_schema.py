"""The schema of the configuration: what runs is accepted, and each setting that cannot be used is named at once."""

import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from dora.conf import SubmitRules
from dora.grid import RunGridArgs
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from audiotok import train
from audiotok.adversarial.losses import ADVERSARIAL_LOSSES
from audiotok.data.audio import ENCODINGS, ClipStrategy
from audiotok.errors import ConfigError
from audiotok.experiments.overrides import leaves_of
from audiotok.explorers import CompressionExplorer
from audiotok.launchers.grid import plan_grid, run_grid
from audiotok.launchers.plan import plan_text
from audiotok.launchers.shepherd import GridShepherd
from audiotok.losses.mmd import BETWEEN, ESTIMATORS
from audiotok.losses.spectral import _WINDOWS
from audiotok.modules.conv import _PAD_MODES, NORMS
from audiotok.quantization import STREAM_KINDS
from audiotok.quantization.kmeans import STARTS
from audiotok.schema import SCHEMA, codec, common, losses, values
from audiotok.solvers import SOLVERS, builders
from audiotok.solvers.schedules import _FACTORS

ROOT = Path(__file__).parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "config/solver/compression").glob("*.yaml"))
DEBUG = "solver=compression/debug"


def config(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(cfg, dict)
    return {str(key): value for key, value in cfg.items()}


@pytest.fixture(scope="module")
def debug() -> dict[str, Any]:
    return config(DEBUG)


def changed(cfg: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(cfg)
    *above, leaf = key.split(".")
    section = found
    for name in above:
        section = section.setdefault(name, {})
    section[leaf] = value
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_accepted_and_all_their_keys_are_known(preset: str) -> None:
    cfg = config(f"solver=compression/{preset}")
    assert SCHEMA.faults(cfg, allow=lambda key: False) == []
    for path, value in leaves_of(cfg):
        if path[0] not in ("slurm", "dora") and value != {}:
            assert any(".".join(path[:end]) in SCHEMA.keys for end in range(1, len(path) + 1)), path


def test_what_every_solver_has_is_accepted_without_a_preset() -> None:
    assert SCHEMA.faults(config(), allow=lambda key: False) == []


HUGE = 10**400
WRONG: dict[str, list[Any]] = {
    "generate.audio.format": ["mp4", None, 3],
    "generate.audio.strategy": ["cut"],
    "metrics.mel_distance.level": [1.0, -100.0, "loud"],
    "metrics.pesq.band": ["full", None],
    "metrics.stoi.extended": ["yes"],
    "metrics.fcd.extrapolate": [1],
    "metrics.fmd.n_mels": [0, 1.5],
    "metrics.fmd.floor_level": [0.0],
    "metrics.mmd.sigmas": ["wide", [], [0.0], None],
    "metrics.mmd.num_permutations": [0, -1, 1.5, 10**9],
    "metrics.mmd.max_samples": [1, 3],
    "metrics.dependence.num_shuffles": [1, 0, 10**9],
    "metrics.dependence.shuffle": ["clip"],
    "metrics.dependence.groups": [0],
    "dataset.evaluate.num_samples": [0, -3, 2.5],
    "dataset.batch_size": [0, "four"],
    "dataset.num_workers": [-1],
    "dataset.segment_duration": [0, -1.0, "long"],
    "dataset.train.shuffle": ["yes", 1],
    "dataset.valid.batch_size": [0, 1.0],
    "dataset.min_segment_ratio": [0, 1.1],
    "dataset.max_bad_fraction": [-0.1, 2],
    "optim.lr": [-1, 0, "fast", True, float("inf"), float("nan"), None, HUGE],
    "optim.epochs": [0, -1, 1.5, "ten", True, None, HUGE],
    "optim.updates_per_epoch": [0, 2.5],
    "optim.max_norm": [-1, "big"],
    "optim.ema.decay": [1.5, 1, -0.1],
    "optim.ema.updates": [0],
    "optim.adam.betas": [[0.5], [0.5, 1.0], [-0.1, 0.9], 0.9, [0.5, 0.9, 0.9]],
    "optim.adam.weight_decay": [-1],
    "optim.optimizer": ["sgd"],
    "schedule.lr_scheduler": ["linear"],
    "schedule.cosine.lr_min_ratio": [-0.1, 2],
    "schedule.cosine.warmup": [-1, 0.5],
    "schedule.inverse_sqrt.warmup": [0],
    "schedule.step.step_size": [0],
    "checkpoint.every_minutes": [-1, "often"],
    "checkpoint.save_every": [-1, 1.5],
    "checkpoint.keep_last": [0, -1],
    "evaluate.every": ["abc", -1, 1.5],
    "evaluate.metrics.mmd": ["yes", 1],
    "seed": [-1, 1.5, "abc", True, None, HUGE],
    "num_threads": [0, -1, "many"],
    "device": ["gpu"],
    "execute_only": ["train"],
    "label": [["a"], {"a": 1}],
    "logging.level": ["LOUD"],
    "losses.mmd": [True, "abc", -1, None],
    "losses.l1": [-1, float("nan")],
    "mmd.delay": ["maybe", 1],
    "mmd.sigmas": [None, [], [1, -2], "wide", [1, "a"]],
    "mmd.estimator": ["unbaised"],
    "mmd.weighting": ["relative", None, 0.5],
    "mmd.between": ["clips", None],
    "mmd.start_epoch": [0, True],
    "adversarial.adversaries": [["gan"], "msd", None],
    "datasource.train": [["a", "b"], 3, ""],
    "rvq.n_q": [0, 2.0, True],
    "rvq.bins": [1],
    "rvq.decay": [1.0],
    "seanet.ratios": [[], [0], 4],
    "seanet.encoder.n_filters": [0],
    "seanet.norm": ["batch_norm"],
    "seanet.activation": ["elu"],
    "encodec.quantizer": ["vq"],
    "sample_rate": [0, 16000.0],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_value_that_cannot_be_used_is_named(key: str, debug: dict[str, Any]) -> None:
    for value in WRONG[key]:
        (line,) = SCHEMA.faults(changed(debug, key, value))
        assert line.startswith(f"{key}=") and ": give " in line and "\n" not in line and len(line) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", 1),
        ("losses.mmd", 2),
        ("mmd.sigmas", [1, 2.5]),
        ("mmd.sigmas", "median"),
        ("optim.max_norm", 0),
        ("checkpoint.save_every", 0),
        ("evaluate.every", None),
        ("num_threads", 3),
        ("label", "seven"),
        ("label", 7),
        ("logging.level", "debug"),
        ("optim.updates_per_epoch", None),
        ("dataset.valid.batch_size", 3),
        ("seanet.encoder.n_residual_layers", 2),
        ("seed", 0),
    ],
)
def test_a_value_that_can_be_used_is_accepted(key: str, value: Any, debug: dict[str, Any]) -> None:
    assert SCHEMA.faults(changed(debug, key, value)) == []


TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"rvq.n_q": 1}, "losses.mmd=1.0 with 1 codebook"),
    ({"encodec.quantizer": "no_quant"}, "losses.mmd=1.0 with 1 codebook"),
    ({"mmd.sigmas": [1.0, 2.0], "mmd.num_features": 1}, "mmd.num_features=1"),
    ({"losses.mmd": 1000.0, "mmd.weighting": "share"}, "losses.mmd=1000.0, mmd.weighting=share: give a share of"),
    ({"mmd.between": "frames"}, "mmd.between=frames, mmd.delay=true: only codebooks are delayed"),
    (
        {"mmd.between": "frames", "mmd.delay": False, "mmd.num_batches_mmd": 1, "dataset.valid.batch_size": 1},
        "with 1 clip in a batch of valid: clips are the samples; gather 2 or more",
    ),
    (
        {"encodec.causal": True, "encodec.renormalize": True},
        "encodec.causal=true, encodec.renormalize=true: give false",
    ),
    ({"losses.l1": 0.0}, "losses: the weights of adv, feat, l1, l2, mel, mrstft, msspec, sisnr are 0"),
    ({"generate.audio.format": "mp3", "channels": 3}, "generate.audio.format=mp3 of channels=3"),
    ({"dataset.evaluate.num_samples": 1}, "dataset.evaluate.num_samples=1"),
    ({"dataset.segment_duration": 0.08}, "has 2 frames: mmd.delay of 2 codebooks needs 3 or more"),
    ({"dataset.segment_duration": 0.02}, "has 320 samples: mel needs 385 or more"),
    ({"optim.updates_per_epoch": None, "dataset.train.num_samples": 3}, "dataset.train.num_samples=3 with 4"),
    (
        {"optim.updates_per_epoch": None, "dataset.train.num_samples": 11, "optim.accumulate": 3},
        "dataset.train.num_samples=11 with 4 in each of optim.accumulate=3 batches of an update",
    ),
    ({"schedule.lr_scheduler": "cosine", "schedule.cosine.warmup": 9}, "at most the 8 updates"),
    ({"mel.hop_length": 2048}, "give hops and windows of at most n_fft"),
    ({"mel.f_min": 8000}, "give less than the highest frequency, 8000 Hz"),
    ({"msspec.range_start": 11}, "give a start below the end"),
    ({"seanet.decoder.ratios": [2]}, "make them equal"),
    ({"seanet.compress": 3}, "give at most n_filters=2"),
    ({"seanet.decoder.trim_right_ratio": 0.5}, "causal=true"),
    ({"seanet.channels": 2}, "make them equal"),
    ({"encodec.sample_rate": 24000}, "encodec.sample_rate=24000, sample_rate=16000: make them equal"),
    ({"mel.sample_rate": 24000}, "make them equal"),
    ({"channels": 4}, "channels=4: the data has at most datasource.max_channels=2"),
    ({"adversarial.adversaries": ["msd", "msd"]}, "give each of them once"),
    ({"adversarial.adversaries": ["msd"], "msd.kernel_sizes": [4, 3]}, "give two odd numbers"),
    ({"adversarial.adversaries": ["msd"], "msd.groups": [4]}, "give 4 values"),
    ({"adversarial.adversaries": ["msd"], "msd.filters": 3}, "divides not both"),
    ({"adversarial.adversaries": ["msstftd"], "msstftd.n_ffts": [1024]}, "give as many of each"),
    ({"adversarial.adversaries": ["mpd"], "mpd.in_channels": 2}, "make them equal"),
    ({"sample_rate": 22050, "generate.audio.format": "opus"}, "a rate of [8000, 12000"),
    ({"datasource.valid": None}, "datasource.valid not set"),
]


@pytest.mark.parametrize(("values", "line"), TOGETHER)
def test_keys_that_do_not_go_together_are_named(values: dict[str, Any], line: str, debug: dict[str, Any]) -> None:
    cfg = debug
    for key, value in values.items():
        cfg = changed(cfg, key, value)
    found = SCHEMA.faults(cfg)
    assert any(line in one for one in found), found
    assert SCHEMA.faults(changed(debug, "rvq.n_q", 2)) == []


def test_all_faults_are_listed_in_one_line() -> None:
    xp = train.main.get_xp([DEBUG, "optim.lr=-1", "seed=abc", "losses.mmd=true"])
    assert [line.split("=")[0] for line in xp.checked.faults] == ["seed", "optim.lr", "losses.mmd"]


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("optim.lrr", 10, "optim.lr"),
        ("dataset.valid.num_sample", 3, "dataset.valid.num_samples"),
        ("losess", {"mmd": 1}, "losses"),
        ("seanet.encoder.n_filter", 3, "seanet.encoder.n_filters"),
    ],
)
def test_a_key_of_a_preset_that_nothing_reads_is_named(
    key: str, value: Any, nearest: str, debug: dict[str, Any]
) -> None:
    cfg = changed(debug, key, value)
    (line,) = SCHEMA.faults(cfg, allow=lambda name: False)
    assert line.startswith(f"{key}=") and f"nearest: {nearest}" in line
    assert SCHEMA.faults(cfg) == [], "an experiment that an earlier version froze must run"
    assert SCHEMA.faults(changed(debug, "my_own", 3), allow=lambda name: False) == []


def test_an_experiment_that_was_frozen_before_a_key_runs(debug: dict[str, Any]) -> None:
    for path, _ in leaves_of(debug):
        cfg = copy.deepcopy(debug)
        section = cfg
        for name in path[:-1]:
            section = section[name]
        if path != ("solver",):
            del section[path[-1]]
            assert not [line for line in SCHEMA.faults(cfg) if "not set" not in line and "equal" not in line], path


def test_a_kind_of_solver_of_a_user_has_keys_of_its_own() -> None:
    cfg = {**config(), "solver": "mine", "network": {"width": 3}}
    cfg["optim"] = {**cfg["optim"], "clip_value": 3}
    assert SCHEMA.faults(cfg, allow=lambda key: False) == []
    (line,) = SCHEMA.faults(changed(cfg, "optim.epochs", "ten"), allow=lambda key: False)
    assert line.startswith("optim.epochs=ten: give a whole number")


IDLE = [
    ("mmd.num_features=64", "mmd.estimator=unbiased"),
    ("schedule.cosine.warmup=2", "schedule.lr_scheduler=null"),
    ("msstftd.filters=4", "adversarial.adversaries=[]"),
    ("optim.ema.decay=0.5", ""),
    ("rvq.kmeans_iters=3", ""),
    ("dataset.train.num_samples=8", "optim.updates_per_epoch=4"),
    ("balancer.total_norm=2.0", "balancer.balance_grads=false"),
    ("checkpoint.keep_last=3", "checkpoint.save_every=null"),
    ("continue_with=all", "continue_from=null"),
]


@pytest.mark.parametrize(("override", "reason"), IDLE)
def test_an_override_that_does_nothing_is_named(override: str, reason: str) -> None:
    checked = train.main.get_xp([DEBUG, override]).checked
    assert list(checked.faults) == []
    assert list(checked.idle) == ([f"{override} does nothing here: {reason}"] if reason else [])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["mmd.estimator=clips"], "mmd.estimator=clips"),
        (["mmd.estimator=rff", "mmd.between=frames"], "mmd.between=frames, mmd.estimator=rff"),
        (["mmd.estimator=closed", "mmd.between=frames"], ""),
        (["mmd.estimator=unbiased"], ""),
        (["mmd.estimator=closed", "losses.mmd=1"], "losses.mmd=1.0"),
    ],
)
def test_the_cap_of_a_baseline_that_measures_all_samples_does_nothing(overrides: list[str], reason: str) -> None:
    given = [DEBUG, "losses.mmd=0", "mmd.delay=false", *overrides]
    idle = train.main.get_xp([*given, "mmd.max_samples=64"]).checked.idle
    assert [line for line in idle if "max_samples" in line] == (
        [f"mmd.max_samples=64 does nothing here: {reason}"] if reason else []
    )


def test_a_weight_of_no_adversary_is_refused() -> None:
    for name in ("adv", "feat"):
        (line,) = train.main.get_xp([DEBUG, f"losses.{name}=4"]).checked.faults
        assert line == f"losses.{name}=4.0 does nothing here: adversarial.adversaries=[]"
    assert not train.main.get_xp([DEBUG, "losses.adv=4", "adversarial.adversaries=[msd]"]).checked.faults
    assert not train.main.get_xp(["solver=compression/demo", "adversarial.adversaries=[]"]).checked.faults


def test_a_split_needs_no_plus() -> None:
    plain, plus = (train.main.get_xp([DEBUG, f"{sign}dataset.train.batch_size=2"]) for sign in ("", "+"))
    assert plain.sig == plus.sig and plain.cfg.dataset.train.batch_size == 2
    nested = train.main.get_xp([DEBUG, "dataset.train={batch_size: 2}"])
    assert nested.sig == plain.sig
    assert train.main.get_xp([DEBUG, "dataset.train.batch_size=0"]).checked.faults == [
        "dataset.train.batch_size=0: give a whole number, 1 or more"
    ]


@pytest.mark.parametrize("override", ["seed=" + "9" * 5000, "mmd.sigmas=[" + "9" * 5000 + "]"])
def test_an_integer_of_thousands_of_digits_is_one_line(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train.main.get_xp([DEBUG, override])
    assert "digits" in str(caught.value) and len(str(caught.value)) < 1000


def test_what_runs_is_checked_again(debug_overrides: list[str], tmp_path: Path) -> None:
    """A frozen experiment, and values that are given from Python."""
    xp = train.main.get_xp(debug_overrides)
    OmegaConf.update(xp.cfg, "metrics.mmd.num_permutations", 0)
    with pytest.raises(ConfigError, match=r"^metrics\.mmd\.num_permutations=0: give a whole number, from 1 to 100000$"):
        train.get_solver(xp.cfg)


def choices(kind: Any) -> Iterator[str]:
    """All texts among the choices of a type."""
    for one in get_args(kind):
        if isinstance(one, str):
            yield one
        else:
            yield from choices(one)


def hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


def test_choices_are_those_of_the_tables() -> None:
    assert tuple(choices(hints(losses.Mmd)["estimator"])) == ESTIMATORS
    assert tuple(choices(hints(losses.Mmd)["between"])) == BETWEEN
    assert tuple(choices(values.Stream)) == STREAM_KINDS
    assert tuple(choices(values.Norm)) == NORMS
    assert tuple(choices(values.Window)) == _WINDOWS
    assert tuple(choices(hints(codec.SeanetSide)["pad_mode"])) == _PAD_MODES
    assert tuple(choices(hints(codec.Rvq)["kmeans_start"])) == STARTS
    assert set(choices(hints(losses.Adversarial)["adversaries"])) == set(builders.ADVERSARIES)
    assert set(choices(hints(losses.Adversarial)["adv_loss"])) == set(ADVERSARIAL_LOSSES)
    assert set(choices(hints(common.Schedule)["lr_scheduler"])) == set(_FACTORS) <= set(hints(common.Schedule))
    assert {f".{name}" for name in choices(hints(common.GeneratedAudio)["format"])} == set(ENCODINGS)
    assert set(choices(hints(common.GeneratedAudio)["strategy"])) == set(choices(ClipStrategy))
    assert set(hints(losses.Losses)) == {*builders.SIGNAL_LOSSES, *builders.OTHER_LOSSES}
    assert set(SCHEMA._kinds) <= set(SOLVERS)
    assert all(issubclass(getattr(nn, name), nn.Module) for name in choices(values.Activation))


def test_rules_hold_for_whatever_is_missing(debug: dict[str, Any]) -> None:
    """No rule fails on a configuration of which whole sections are missing, two at a time."""
    names = [name for name, value in debug.items() if isinstance(value, dict) and name not in ("slurm", "dora")]
    for one, other in product(names, names):
        SCHEMA.faults({key: value for key, value in debug.items() if key not in (one, other)})


@CompressionExplorer
def wrong(launcher: Any) -> None:
    launcher.bind_(DEBUG)
    launcher({"losses.mmd": "abc"})
    launcher({"losses.mmd": 2.0, "mmd.num_features": 8})
    launcher({"losses.mmd": "abc", "optim.epochs": 0})


@CompressionExplorer
def idle(launcher: Any) -> None:
    launcher.bind_({"mmd.num_features": 8})
    for weight in (1.0, 2.0):
        launcher(DEBUG, {"losses.mmd": weight})


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(train.main.dora, "dir", tmp_path / "out")
    monkeypatch.setenv("AUDIOTOK_LAUNCHER", "local")
    return train.main


def test_a_grid_is_refused_before_anything_is_submitted(main: Any) -> None:
    profile = main.get_slurm_config()
    for command in (plan_grid, run_grid):
        with pytest.raises(ConfigError) as caught:
            command(main, wrong, "wrong", SubmitRules(), profile, RunGridArgs(monitor=False))
        first, second = str(caught.value).split("; ")
        one, other = (
            main.get_xp([DEBUG, *argv]) for argv in (["losses.mmd=abc"], ["losses.mmd=abc", "optim.epochs=0"])
        )
        names = [f"{xp.sig}/{main.get_name(xp)}" for xp in (one, other)]
        assert first == f"losses.mmd=abc: give a number, 0 or more ({', '.join(names)})"
        assert second == f"optim.epochs=0: give a whole number, from 1 to 1000000 ({names[1]})"
        assert not list((Path(main.dora.dir) / "xps").glob("*"))


def test_one_launch_is_refused(main: Any) -> None:
    shepherd = GridShepherd(main)
    sheep = shepherd.get_sheep_from_argv([DEBUG, "optim.lr=-1"])
    shepherd.maybe_submit_lazy(sheep, main.get_slurm_config(), SubmitRules())
    with pytest.raises(ConfigError, match=r"^optim\.lr=-1\.0: give a number above 0"):
        shepherd.commit()
    assert not sheep.xp.folder.exists()


def test_a_plan_names_overrides_that_do_nothing(main: Any) -> None:
    plan = plan_grid(main, idle, "idle", SubmitRules(), main.get_slurm_config(), RunGridArgs())
    line = "mmd.num_features=8 does nothing here: mmd.estimator=unbiased (all 2 experiments)"
    assert plan.idle == plan.as_json()["idle"] == [line]
    assert plan_text(plan).splitlines()[-1] == f"note: {line}"


def test_what_has_trained_resumes_as_it_was_frozen(main: Any) -> None:
    """Its settings are checked when it runs; those of today are not."""
    shepherd = GridShepherd(main)
    sheep = shepherd.get_sheep_from_argv([DEBUG, "losses.adv=4"])
    main.init_xp(sheep.xp)
    (sheep.xp.folder / "checkpoint.th").touch()
    shepherd.maybe_submit_lazy(sheep, main.get_slurm_config(), SubmitRules())
    assert main.get_xp(sheep.xp.argv).checked.faults and shepherd.check_requests() == []


@pytest.mark.parametrize("override", ["optim.lr=-1", "seed=abc", "num_threads=0", "optim.epochs=0"])
def test_a_run_by_hand_is_refused_before_it_has_a_folder(
    override: str, main: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_get_argv", lambda: [DEBUG, override])
    with pytest.raises(ConfigError, match=f"^{override.split('=')[0]}="):
        main()
    assert not (Path(main.dora.dir) / "xps").exists()


@pytest.mark.parametrize("value", ["a\nb", "a\\b", "\\", '"', "\t", "\x00", "é\\", "it's", float("inf"), -float("inf")])
def test_a_value_of_a_grid_reaches_the_experiment_as_it_is(value: Any) -> None:
    xp = train.main.get_xp([DEBUG, *train.main.value_to_argv({"label": value})])
    assert xp.cfg.label == value and dict(xp.delta)["label"] == value


@pytest.mark.parametrize(
    "choice", ["solver=[{}, [a]]", "solver=[]", "dset=[audio/demo, audio/default]", "solver={a: 1}"]
)
def test_one_preset_of_each_group(choice: str) -> None:
    with pytest.raises(ConfigError, match="choose one preset of each group"):
        train.main.get_xp([DEBUG, choice])

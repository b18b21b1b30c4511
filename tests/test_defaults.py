"""A default stands once: what the configuration sets has the same default, or none, where a class takes it."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from audiotok import adversarial, data, losses, metrics, models, modules, quantization
from audiotok.adversarial import discriminators
from audiotok.data import tokens
from audiotok.data.manifest import AudioMeta
from audiotok.metrics import frechet, perceptual, quality
from audiotok.models import codec_lm, lm, no_context
from audiotok.modules import transformer
from audiotok.modules.seanet import SEANetDecoderOptions, SEANetOptions
from audiotok.quantization import QuantizedResult
from audiotok.solvers.macro_batch import MMDWeight
from audiotok.solvers.watching import Watch
from audiotok.training import ADDITIONS

ROOMS = (adversarial, data, losses, metrics, models, modules, quantization)

# Sections of the configuration that hold the parameters of a class or function, by the parameters' own names.
SECTIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    losses.Balancer: ("balancer",),
    losses.MMDLoss: ("mmd",),
    losses.MRSTFTLoss: ("mrstft",),
    losses.MelSpectrogramL1Loss: ("mel",),
    losses.MultiScaleMelSpectrogramLoss: ("msspec",),
    losses.SISNRLoss: ("sisnr",),
    MMDWeight: ("mmd",),
    Watch: ("watch",),
    adversarial.AdversarialLoss: ("adversarial",),
    adversarial.FeatureMatchingLoss: (),  # its normalize is over maps, that of the configuration over discriminators
    discriminators.DiscriminatorSTFT: ("msstftd",),
    discriminators.MultiScaleSTFTDiscriminator: ("msstftd",),
    discriminators.PeriodDiscriminator: ("mpd",),
    discriminators.MultiPeriodDiscriminator: ("mpd",),
    discriminators.ScaleDiscriminator: ("msd",),
    discriminators.MultiScaleDiscriminator: ("msd",),
    discriminators.MultiDiscriminator: (),
    modules.NormConv1d: ("seanet",),
    modules.NormConv2d: ("seanet",),
    modules.NormConvTranspose1d: ("seanet",),
    modules.NormConvTranspose2d: ("seanet",),
    modules.StreamableConv1d: ("seanet",),
    modules.StreamableConvTranspose1d: ("seanet", "seanet.decoder"),
    modules.StreamableLSTM: ("seanet",),
    SEANetOptions: ("seanet",),
    SEANetDecoderOptions: ("seanet", "seanet.decoder"),
    models.EncodecModel: ("encodec",),
    quantization.EuclideanCodebook: ("rvq",),
    quantization.ResidualVectorQuantizer: ("rvq",),
    quantization.kmeans: ("rvq",),
    QuantizedResult: (),
    data.AudioDataset: ("dataset",),
    data.get_loader: ("dataset",),
    data.write_audio: ("generate.audio",),
    AudioMeta: (),
    metrics.dependence_metrics: ("metrics.dependence",),
    metrics.estimate_dependence: ("metrics.dependence",),
    metrics.group_codes: ("metrics.dependence",),
    metrics.mmd_permutation_test: ("metrics.mmd",),
    quality.MelDistance: ("metrics.mel_distance",),
    perceptual.PESQ: ("metrics.pesq",),
    perceptual.STOI: ("metrics.stoi",),
    frechet.FrechetCodecDistance: ("metrics.fcd",),
    frechet.FrechetMelDistance: ("metrics.fmd",),
    frechet.LogMelFrames: ("metrics.fmd",),
    tokens.TokenDataset: ("dataset",),
    codec_lm.CodecLM: ("lm",),
    codec_lm.CodeFormat: (),
    lm.ChainHead: ("lm",),
    lm.LMModel: ("lm",),
    lm.Sampling: ("generate.lm",),
    no_context.NoContextModel: (),  # its chain head is as wide as that of its model
    transformer.CausalAttention: (),  # biases are those of PyTorch; a language model gives its own
    transformer.Transformer: (),
    transformer.TransformerLayer: (),
}
# Keys that are called otherwise than the parameter.
KEYS: dict[tuple[Callable[..., Any], str], str] = {
    (losses.MMDLoss, "seed"): "features_seed",
    (modules.StreamableConv1d, "norm_kwargs"): "norm_params",
    (modules.StreamableConvTranspose1d, "norm_kwargs"): "norm_params",
    (modules.StreamableLSTM, "num_layers"): "lstm",
    (quantization.kmeans, "start"): "kmeans_start",
}


@pytest.fixture(scope="module")
def cfg() -> DictConfig:
    """Of a codec, with the sections that only a language model has."""
    with initialize_config_dir(str(Path(__file__).parent.parent / "config"), version_base="1.3"):
        language_model, codec = (compose("config", [f"solver={kind}/default"]) for kind in ("lm", "compression"))
    for one in (language_model, codec):
        OmegaConf.set_struct(one, False)
    merged = OmegaConf.merge(language_model, codec)
    assert isinstance(merged, DictConfig)
    return merged


def defaults(target: Callable[..., Any]) -> dict[str, Any]:
    """Parameters with a default, of a dataclass with those that a factory makes."""
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.default is not parameter.empty
    }
    for field in dataclasses.fields(target) if dataclasses.is_dataclass(target) else ():
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def plain(value: Any) -> Any:
    """A value as a configuration file writes it; an empty mapping and null both mean no arguments."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()} or None
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def classes() -> Iterator[type]:
    for room in ROOMS:
        for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            if info.name.endswith("triton_kernels"):
                continue  # needs Triton, and holds no class
            module = importlib.import_module(info.name)
            found = inspect.getmembers(module, inspect.isclass)
            yield from (kind for name, kind in found if kind.__module__ == info.name and not name.startswith("_"))


@pytest.mark.parametrize("target", SECTIONS, ids=lambda target: target.__name__)
def test_a_default_is_that_of_the_configuration(target: Callable[..., Any], cfg: DictConfig) -> None:
    configured: dict[str, Any] = {}
    for section in SECTIONS[target]:
        values = OmegaConf.to_container(OmegaConf.select(cfg, section), resolve=True)
        assert isinstance(values, dict)
        configured.update({str(key): value for key, value in values.items()})
    for name, default in defaults(target).items():
        key = KEYS.get((target, name), name)
        if key in configured:
            assert plain(default) == plain(configured[key]), f"{target.__name__}({name}) and {key}"


def test_every_class_with_defaults_is_compared() -> None:
    found = {kind for kind in classes() if "__init__" in vars(kind) and defaults(kind)}
    results = {"Conversion", "Converted", "PrepareReport", "Scan", "SegmentInfo", "TokenSet", "TokenTrack"}
    alone = {"FileEmbedding", "GapFit", "GapMeter", "Lane", "Layout"}  # of commands, which have options of their own
    assert {kind.__name__ for kind in found - SECTIONS.keys()} == results | alone


def test_renamed_keys_exist(cfg: DictConfig) -> None:
    for (target, name), key in KEYS.items():
        assert name in defaults(target)
        assert any(key in OmegaConf.select(cfg, section) for section in SECTIONS[target])


def test_arguments_that_no_file_sets_may_be_added_by_an_override(cfg: DictConfig) -> None:
    made_from: dict[str, tuple[Callable[..., Any], ...]] = {
        "balancer": (losses.Balancer,),
        "mel": (losses.MelSpectrogramL1Loss,),
        "msspec": (losses.MultiScaleMelSpectrogramLoss,),
        "mrstft": (losses.MRSTFTLoss,),
        "sisnr": (losses.SISNRLoss,),
        "msstftd": (discriminators.MultiScaleSTFTDiscriminator, discriminators.DiscriminatorSTFT),
        "mpd": (discriminators.MultiPeriodDiscriminator, discriminators.PeriodDiscriminator),
        "msd": (discriminators.MultiScaleDiscriminator, discriminators.ScaleDiscriminator),
    }
    of_one_scale = {"msstftd.n_fft", "msstftd.hop_length", "msstftd.win_length", "msd.norm"}
    arguments = {f"{name}.{key}" for name, targets in made_from.items() for one in targets for key in defaults(one)}
    free = {key for key in arguments - of_one_scale if OmegaConf.select(cfg, key, default=cfg) is cfg}
    ours = {key for key in ADDITIONS.free if key.split(".")[0] in made_from}
    assert free == {key for key in ours if OmegaConf.select(cfg, key, default=cfg) is cfg}

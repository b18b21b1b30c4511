"""From configuration to objects: optimiser, losses, adversaries, the MMD, loaders. The configuration is only read."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flashy
import torch
from omegaconf import DictConfig
from torch import nn

from audiotok.adversarial import AdversarialLoss, FeatureMatchingLoss
from audiotok.adversarial.discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
)
from audiotok.adversarial.losses import get_adv_criterion, get_fake_criterion, get_real_criterion
from audiotok.data import AudioDataset, AudioLoader, get_loader
from audiotok.data.dataset import Drawn
from audiotok.data.limits import require_open_files
from audiotok.errors import ConfigError
from audiotok.losses import (
    Balancer,
    L1Loss,
    L2Loss,
    MelSpectrogramL1Loss,
    MMDLoss,
    MRSTFTLoss,
    MultiScaleMelSpectrogramLoss,
    SISNRLoss,
)
from audiotok.metrics import SET_METRICS, SIGNAL_METRICS
from audiotok.metrics.quality import SetMetric, SignalMetric
from audiotok.solvers.macro_batch import MacroBatch
from audiotok.solvers.settings import settings
from audiotok.solvers.updates import Updates, accumulated

SIGNAL_LOSSES: dict[str, type[nn.Module]] = {
    "l1": L1Loss,
    "l2": L2Loss,
    "mel": MelSpectrogramL1Loss,
    "mrstft": MRSTFTLoss,
    "msspec": MultiScaleMelSpectrogramLoss,
    "sisnr": SISNRLoss,
}
ADVERSARIES: dict[str, type[nn.Module]] = {
    "msstftd": MultiScaleSTFTDiscriminator,
    "mpd": MultiPeriodDiscriminator,
    "msd": MultiScaleDiscriminator,
}
_BIASED = ("unbiased", "rff")  # estimators of the MMD whose bias falls as 1 / N
OTHER_LOSSES = ("adv", "feat", "mmd")  # weights in the same section, which need more than two signals
SPLITS = ("train", "valid", "evaluate", "generate")
HELD_OUT_SEED = 0  # every experiment is judged, and listened to, on the same clips, whatever its seed


def get_optimizer(params: Iterable[nn.Parameter], cfg: DictConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """Optimiser of the `optim` section; `fused` where `optim.fused` is null: several times faster, rounds otherwise."""
    kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    adam = settings(cfg.adam)
    options = {"lr": cfg.lr, "betas": tuple(adam["betas"]), "weight_decay": adam["weight_decay"]}
    if cfg.get("fused") is not None:
        fused = cfg.fused
    return kinds[cfg.optimizer](params, **options, fused=fused or None)  # not False: PyTorch's choice for this device


def get_updates(optimizer: torch.optim.Optimizer, cfg: DictConfig, **options: Any) -> Updates:
    """Updates of one optimiser; options as of `Updates`."""
    return Updates(optimizer, accumulate=accumulated(cfg), **options)


def get_signal_losses(cfg: DictConfig) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Losses to train with (weight above 0) and those only reported."""
    trained, reported = nn.ModuleDict(), nn.ModuleDict()
    for name, weight in settings(cfg.losses).items():
        if name in OTHER_LOSSES:
            continue
        if name not in SIGNAL_LOSSES:
            raise ConfigError(f"losses.{name}; choose among: {', '.join((*SIGNAL_LOSSES, *OTHER_LOSSES))}")
        (trained if weight > 0 else reported)[name] = SIGNAL_LOSSES[name](**settings(cfg.get(name)))
    return trained, reported


def get_adversaries(cfg: DictConfig, device: torch.device) -> dict[str, AdversarialLoss]:
    """Discriminators with their losses and optimisers, by name, on the device where they train."""
    adversarial = cfg.adversarial
    features = {"l1": nn.L1Loss, "l2": nn.MSELoss}
    losses: dict[str, AdversarialLoss] = {}
    for name in adversarial.adversaries:
        # There before `AdversarialLoss` broadcasts it: NCCL knows no tensors of the CPU.
        adversary = ADVERSARIES[name](**settings(cfg[name])).to(device)
        optimizer = get_optimizer(adversary.parameters(), cfg.optim)
        kind = adversarial.adv_loss
        criteria = get_adv_criterion(kind), get_real_criterion(kind), get_fake_criterion(kind)
        matching = FeatureMatchingLoss(features[adversarial.feat_loss]())
        losses[name] = AdversarialLoss(adversary, optimizer, *criteria, matching, adversarial.normalize)
    return losses


def get_balancer(cfg: DictConfig) -> Balancer:
    """Balancer over the trained signal losses and each adversary's two losses."""
    weights: dict[str, float] = {}
    for name, weight in settings(cfg.losses).items():
        if name in ("adv", "feat"):
            weights.update({f"{name}_{adversary}": weight for adversary in cfg.adversarial.adversaries})
        elif name not in OTHER_LOSSES and weight > 0:
            weights[name] = weight
    return Balancer(weights, **settings(cfg.balancer))


def get_macro_batch(cfg: DictConfig) -> MacroBatch:
    """The MMD step of training."""
    mmd = settings(cfg.mmd)
    features = {"num_features": mmd["num_features"], "seed": mmd["features_seed"]}
    between = mmd.get("between", "codebooks")  # a run that was frozen before lacks it
    estimator = mmd["estimator"]
    loss = MMDLoss(mmd["sigmas"], estimator, mmd["delay"], between=between, **features)
    weighting = mmd.get("weighting", "absolute")  # likewise
    options = cfg.seed, weighting, cfg.balancer.ema_decay
    max_samples = None if cfg.losses.mmd > 0 else mmd.get("max_samples")  # likewise
    # The values of these depend on the number of samples by construction (docs/mmd.md): all of them, but rarely.
    many = between != "codebooks" and estimator not in ("closed", "disjoint")  # a bias of hundreds of variables
    if max_samples is not None and (many or estimator in ("clips", "samples")):
        return MacroBatch(loss, mmd["stream"], mmd["num_batches_mmd"], *options, once=True)
    # The bias of shuffles grows with 1 / N, beyond the value itself; the closed form has the same mean without it.
    measure = MMDLoss(mmd["sigmas"], "closed", mmd["delay"], between=between) if estimator in _BIASED else None
    return MacroBatch(loss, mmd["stream"], mmd["num_batches_mmd"], *options, max_samples, measure)


def get_evaluation_metrics(cfg: DictConfig) -> tuple[dict[str, SignalMetric], dict[str, SetMetric]]:
    """Metrics of one clip, and of all clips together, that the evaluate stage reports, by name."""

    def made(kinds: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
        # A run that was frozen before a metric was added has no key for it. Two are losses, and have their sections.
        chosen = [name for name in kinds if cfg.evaluate.metrics.get(name)]
        sections = {name: settings(cfg.metrics.get(name, cfg.get(name))) for name in chosen}
        return {name: kinds[name](**{"sample_rate": cfg.sample_rate, **sections[name]}) for name in chosen}

    return made(SIGNAL_METRICS), made(SET_METRICS)


def get_dataloaders(cfg: DictConfig) -> dict[str, Any]:
    """Loaders of the splits that the configuration gives a manifest for (train and valid at least)."""
    source, data = cfg.datasource, settings(cfg.dataset)
    missing = [f"datasource.{split}" for split in SPLITS if not source[split]]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set; choose data such as dset=audio/demo (`audiotok data demo`), or name "
            "manifests made by `audiotok data prepare`"
        )
    of_split = {split: {**data, **data[split]} for split in SPLITS}
    require_open_files(sum(options["num_workers"] for options in of_split.values()))
    return {split: _split_loader(cfg, split, options) for split, options in of_split.items()}


def _split_loader(cfg: DictConfig, split: str, data: dict[str, Any]) -> Any:
    """Loader of one split; `data` is the dataset section with the split's own values over it."""
    dataset = AudioDataset.from_manifest(
        cfg.datasource[split],
        segment_s=data["segment_duration"],
        sample_rate=cfg.sample_rate,
        channels=cfg.channels,
        min_segment_ratio=data["min_segment_ratio"],
        max_bad_fraction=data["max_bad_fraction"],
        max_sample_rate=cfg.datasource.get("max_sample_rate"),
        max_channels=cfg.datasource.get("max_channels"),
        return_info=split in ("evaluate", "generate"),
        **draws_of(cfg, split, data),
    )
    return load_split(dataset, split, data)


def draws_of(cfg: DictConfig, split: str, data: dict[str, Any]) -> dict[str, Any]:
    """Which segments of a split a dataset draws, as its arguments.

    Raises:
        ConfigError: if a batch cannot be dealt out to the processes.
    """
    batch_size, world_size = data["batch_size"], flashy.distrib.world_size()
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"batch size {batch_size} of {split} over {world_size} processes; choose a multiple of {world_size}"
        )
    train, updates = split == "train", cfg.optim.updates_per_epoch
    whole = data["num_samples"]
    return {
        "num_samples": updates * accumulated(cfg) * batch_size if train and updates else whole,
        "shuffle": data["shuffle"],
        "seed": cfg.seed if train else HELD_OUT_SEED,
        "tile": split == "evaluate",
    }


def load_split(dataset: Drawn, split: str, data: dict[str, Any], **options: Any) -> AudioLoader:
    """Loader of the part of this process of a split's dataset; options as of `get_loader`."""
    world_size = flashy.distrib.world_size()
    return get_loader(
        dataset,
        batch_size=data["batch_size"] // world_size,
        num_workers=data["num_workers"],
        rank=flashy.distrib.rank(),
        world_size=world_size,
        drop_last=split == "train",
        **options,
    )

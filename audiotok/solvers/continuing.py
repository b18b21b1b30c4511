"""What an experiment takes of the source that `continue_from` names: weights, and with continue_with=all the rest.

The rest is what the source's training left beside its best weights: those of its last step, the optimiser's moments,
the discriminators with theirs, the balancer's averages and the average of the weights. Settings, such as the learning
rate, are those of the new experiment, which begins at its own first epoch.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from audiotok.errors import CheckpointError
from audiotok.integrity import misfit, not_finite
from audiotok.interchange.audiocraft import training_states
from audiotok.models.pretrained import Pretrained
from audiotok.modules.seanet import SEANetDecoderOptions
from audiotok.solvers.averages import State
from audiotok.solvers.restoring import explained

CONTINUED = ("optimizer", "adv_losses", "balancer", "ema")  # entries of a checkpoint that continue_with=all takes
_CODEBOOK = re.compile(r"quantizer\.vq\.layers\.(\d+)\._codebook\..+")
# Arguments of quantisers that make no weights; n_q is adapted.
_OF_TRAINING = ("n_q", "q_dropout", "decay", "kmeans_init", "kmeans_iters", "kmeans_start", "commitment_weight")


def count_codebooks(weights: Mapping[str, Any]) -> int:
    """Codebooks that weights hold."""
    return len({match[1] for name in weights if (match := _CODEBOOK.fullmatch(name))})


def fitted(weights: State, own: State, found: Pretrained, cfg: DictConfig) -> State:
    """Weights of a source for the model of this experiment, which may have another number of codebooks.

    Args:
        weights: of the source.
        own: state dict of the model; codebooks that the source lacks are taken from it, as they are before training.
        found: the source.
        cfg: configuration of this experiment.

    Raises:
        CheckpointError: naming the keys of the configuration that differ, if they do not fit; or if not all are finite.
    """
    count, most = count_codebooks(weights), count_codebooks(own)
    if count and most:
        kept = {name: value for name, value in weights.items() if _number(name) < most}
        weights = kept | {name: value for name, value in own.items() if _number(name) >= count}
    if names := not_finite(weights):
        raise CheckpointError(f"{found.path} has weights that are not finite ({names}); use another")
    if fault := misfit(weights, own):
        keys = differences(found.cfg, cfg)
        if not keys:
            advice = "give this experiment the model of that one"
            raise CheckpointError(f"the weights of {found.path} do not fit the model: {fault}; {advice}")
        theirs, here = (", ".join(f"{key}={pair[side]}" for key, pair in keys.items()) for side in (0, 1))
        raise CheckpointError(
            f"the weights of {found.path} do not fit the model: it has {theirs}, this experiment has {here}; make them "
            "equal"
        )
    return weights


def differences(cfg: DictConfig, own: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Keys of the model that two configurations have different values of, with both values."""
    ours, theirs = _of_model(own), _of_model(cfg)
    return {key: (theirs[key], ours[key]) for key in ours if key in theirs and theirs[key] != ours[key]}


def load_states(found: Pretrained, own: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Load what a source holds beside its weights into the states of a solver, in place.

    Args:
        found: the source.
        own: of `CONTINUED`, what has state_dict and load_state_dict, by name.

    Returns:
        names of what was loaded, and of what the source does not hold.

    Raises:
        CheckpointError: if an entry is of another form.
    """
    states = training_states(found.state)
    taken = [
        name for name in own if name in states and states[name] != {}
    ]  # of a training without discriminators theirs are empty
    for name in taken:
        _load(states[name], own[name], name, found.path)
    return taken, [name for name in own if name not in taken]


def _load(state: Any, own: Any, name: str, path: Path) -> None:
    now = own.state_dict()
    advice = f"cannot go on with the {name} of {path}"
    if name == "adv_losses" and (theirs := _first_parts(state)) != (ours := _first_parts(now)):
        raise CheckpointError(
            f"{advice}: it has {', '.join(theirs)}, this experiment {', '.join(ours) or 'none'}; set "
            "continue_with=weights, or adversarial.adversaries as there"
        )
    if fault := misfit(state, now, name, exact=name == "balancer"):
        raise CheckpointError(f"{advice}: {fault}; set continue_with=weights, or train with the same settings")
    try:
        with explained(path):
            own.load_state_dict(_with_own_settings(state, now))
    except CheckpointError as error:
        raise CheckpointError(f"{advice}: {error}; set continue_with=weights") from error


def _first_parts(state: Any) -> list[str]:
    """First parts of the dotted keys of a dict, sorted; of discriminators their names."""
    return sorted({str(key).partition(".")[0] for key in state}) if isinstance(state, dict) else []


def _with_own_settings(state: Any, own: Any) -> Any:
    """The state with the settings of all optimisers in it, such as learning rates, as they are in our own."""
    if not isinstance(state, Mapping) or not isinstance(own, Mapping):
        return state
    if {"state", "param_groups"} <= own.keys():
        return {"state": state["state"], "param_groups": own["param_groups"]}
    return {key: _with_own_settings(value, own.get(key)) for key, value in state.items()}


def _number(name: str) -> int:
    """Number of the codebook that a weight is of, -1 for others."""
    match = _CODEBOOK.fullmatch(name)
    return int(match[1]) if match else -1


def _of_model(cfg: DictConfig) -> dict[str, Any]:
    """Values of a configuration that a model is built from, by dotted key."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    found = {f"lm.{key}": value for key, value in (values.get("lm") or {}).items()}
    if not isinstance(values.get("seanet"), dict):
        return found
    usual = SEANetDecoderOptions()
    seanet = {each.name: getattr(usual, each.name) for each in fields(usual)} | values["seanet"]
    sides = {side: seanet.pop(side, None) or {} for side in ("encoder", "decoder")}
    seanet = {**seanet, **{name: sides["decoder"].pop(name) for name in list(sides["decoder"]) if name in seanet}}
    encodec = {"causal": False, "renormalize": False, **values.get("encodec", {})}
    sections = {"encodec": encodec, "seanet": seanet, "seanet.encoder": sides["encoder"]}
    sections["rvq"] = {key: value for key, value in (values.get("rvq") or {}).items() if key not in _OF_TRAINING}
    for section, content in sections.items():
        for key, value in content.items():
            params = {} if value is None and key.endswith("_params") else value
            found[f"{section}.{key}"] = list(params) if isinstance(params, tuple) else params
    return found

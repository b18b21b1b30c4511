"""Models from files: checkpoints, exported files and folders of ours, of AudioCraft and of Hugging Face."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from audiotok.checkpoint import LAST, PRETRAINED_PREFIX, load_checkpoint, own_models, resolve_checkpoint
from audiotok.config_text import read_text
from audiotok.errors import CheckpointError, first_line
from audiotok.integrity import misfit, not_finite
from audiotok.interchange import audiocraft, hub, huggingface
from audiotok.interchange import folder as own

Model = TypeVar("Model", bound=nn.Module)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_REGISTRATIONS = 50  # of modules, parameters and buffers, for each tensor of a network; ours have less than 10


@dataclass(frozen=True)
class Pretrained:
    """What a source holds of a trained model.

    Attributes:
        path: the file or folder.
        cfg: configuration of the model; of a checkpoint that of its experiment.
        weights: the best ones, under our names.
        state: everything that a checkpoint or an exported file holds; empty of a folder.
    """

    path: Path
    cfg: DictConfig
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]


def find_pretrained(name: str | Path, root: Path | None = None) -> Path:
    """File or folder of a model, which is fetched first if it is named as one of the hub, owner/name.

    Args:
        name: a model that comes with the package (demo), an exported file, a training checkpoint, a folder with either
            (`checkpoint.th`, `compression_state_dict.bin`) or with an EnCodec of Transformers or an export of ours,
            //sig/SIG, owner/name of the hub unless there is such a folder here, or any of these after //pretrained/.
            A `Path` is always a path.
        root: Dora's folder, for signatures; by default that of this process.

    Raises:
        CheckpointError: if there is no such model, or it cannot be fetched.
    """
    text = str(name).removeprefix(PRETRAINED_PREFIX)
    path = Path(text)
    if path.name in huggingface.WEIGHTS and (own.is_folder(path.parent) or huggingface.is_folder(path.parent)):
        path = path.parent
    by_path = isinstance(name, Path) or text not in own_models()
    if by_path and os.path.isdir(path) and not os.path.isfile(path / LAST):
        if own.is_folder(path) or huggingface.is_folder(path):
            return path
        if os.path.isfile(path / audiocraft.EXPORTED):
            return path / audiocraft.EXPORTED
    elif isinstance(name, str) and hub.is_name(text):
        return hub.fetch(text)
    return resolve_checkpoint(name, root)


def read_pretrained(name: str | Path, root: Path | None = None) -> Pretrained:
    """Read what a model's source holds; see `find_pretrained`. Nothing of it is executed; a pointer is followed once.

    Raises:
        CheckpointError: if there is no such source, it cannot be read safely, or its weights are not finite.
    """
    path = find_pretrained(name, root)
    found = _read(path)
    if found is None:
        target = find_pretrained(_pointed(load_checkpoint(path, foreign=True)[audiocraft.POINTER], path), root)
        found = _read(target)
        if found is None:
            raise CheckpointError(f"{path} points to {target}, which only points to another; give the path of a model")
    return found


def _read(path: Path) -> Pretrained | None:
    """What a file or folder holds; None if that is only the name of another."""
    if os.path.isdir(path):
        read = own.read_folder if own.is_folder(path) else huggingface.read_folder
        cfg, weights = read(path)
        return Pretrained(path, OmegaConf.create(cfg), _checked(weights, path), {})
    state = load_checkpoint(path, foreign=True)
    if audiocraft.POINTER in state:
        return None
    return Pretrained(path, configuration_of(state, path), best_weights_of(state, path), state)


def _pointed(name: Any, path: Path) -> Path:
    """Model that a file names instead of holding it: a folder here, or what was fetched from the hub before."""
    if not isinstance(name, str) or not hub.NAME.fullmatch(name):
        raise CheckpointError(f"{path} points to {str(name)[:80]!r}, which is no EnCodec that is read here")
    if os.path.isdir(name):
        return Path(name)
    try:
        return hub.fetch(name, kept_only=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} points to {name} and holds no weights; give {name} itself, which is fetched from the hub, or the "
            "path of a copy"
        ) from error


def load_pretrained(
    name: str | Path, device: torch.device | str = "cpu", *, build: Callable[[DictConfig], Model]
) -> Model:
    """Build the model that a source describes and fill in its best weights, ready for use (eval mode).

    Args:
        name: as `find_pretrained` reads it.
        device: where to put the model.
        build: makes a model of the source's configuration. A parameter, so that this module knows no kind of model.

    Raises:
        CheckpointError: as `read_pretrained`, and if the weights do not fit their configuration.
    """
    found = read_pretrained(name)
    check_weights(found.cfg, found.weights, found.path, build)
    with torch.device("meta"):  # without memory: the weights that were read become the network's
        model = build(found.cfg)
    model.load_state_dict(_apart(found.weights, model.state_dict()), assign=True)
    return model.to(device).eval()


def _apart(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the types of `own`, none of which shares memory with another or holds more of it than its values."""
    apart, seen = dict[str, torch.Tensor](), set[int]()
    for name, value in weights.items():
        typed = value.to(own[name].dtype).contiguous()
        shares = typed.untyped_storage().nbytes() != typed.nbytes or typed.data_ptr() in seen
        apart[name] = typed.clone() if shares else typed
        seen.add(apart[name].data_ptr())
    return apart


def best_weights_of(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Best weights in the state of a file.

    Raises:
        CheckpointError: naming `path`, if there are none.
    """
    best = state.get("best_state")
    # An exported file, ours or AudioCraft's, holds the weights alone; a checkpoint the best state of each module. The
    # first files of MusicGen lack the mark of exported ones.
    flat = isinstance(best, dict) and bool(best) and all(isinstance(value, torch.Tensor) for value in best.values())
    alone = state.get("exported") is True or flat
    weights = best if alone or not isinstance(best, dict) else best.get("model")
    unfinished = isinstance(best, dict) and not best and "progress" in state
    if unfinished and isinstance(state.get("history"), list) and not state["history"]:
        raise CheckpointError(f"{path} holds no best state: its first epoch is not finished; train on, then try again")
    if best is None or (isinstance(best, dict) and not best) or weights is None:
        lacking = "best_state" if "xp.cfg" in state else "best_state, xp.cfg"
        raise CheckpointError(
            f"{path} lacks {lacking}; give a checkpoint of a compression solver or a file made by "
            "audiotok.utils.export.export_encodec"
        )
    return _checked(weights, path)


def _checked(weights: Any, path: Path) -> dict[str, torch.Tensor]:
    """Weights that are tensors by name, and finite; CheckpointError naming `path` for others."""
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise CheckpointError(f"{path} does not hold the weights as a dict of tensors; was it written by a solver?")
    if odd := [name for name, value in weights.items() if value.is_floating_point() and value.dtype not in _FLOATS]:
        raise CheckpointError(f"{path} has {odd[0]} of {weights[odd[0]].dtype}; weights of 16, 32 or 64 bits are read")
    if names := not_finite(weights):
        raise CheckpointError(f"{path} has weights that are not finite ({names}): its training diverged; use another")
    return weights


def configuration_of(state: dict[str, Any], path: Path) -> DictConfig:
    """Configuration in the state of a file, which may be from elsewhere; see `read_text`.

    Raises:
        CheckpointError: naming `path`, if there is none or it cannot be read.
    """
    text = state.get("xp.cfg")
    if text is None or (isinstance(text, str) and not text):
        raise CheckpointError(f"{path} lacks xp.cfg; give a checkpoint of a solver or an exported file")
    if not isinstance(text, str):
        raise CheckpointError(f"{path} holds a {type(text).__name__} as xp.cfg, not the configuration as text")
    try:
        return read_text(text)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be used: {error}; was it written by a solver?") from error


def check_trained(name: str, root: Path | None = None) -> None:
    """Check that the experiment of a signature has trained to its end: until then its best state may become another.

    Args:
        name: as `load_pretrained` reads it; only of //sig/SIG anything is asked.
        root: Dora's folder, for signatures; by default that of this process.

    Raises:
        CheckpointError: if epochs are left, or there is no such checkpoint.
    """
    if not name.removeprefix(PRETRAINED_PREFIX).startswith("//sig/"):
        return
    path = resolve_checkpoint(name, root)
    state = load_checkpoint(path)
    done, cfg = state.get("history"), configuration_of(state, path)
    epochs = (cfg.get("optim") or {}).get("epochs")
    if isinstance(done, list) and isinstance(epochs, int) and len(done) < epochs:
        raise CheckpointError(
            f"{name} is not trained yet: {len(done)} of {epochs} epochs are done; wait for it, or copy {path} and give "
            "the copy"
        )


def check_weights(
    cfg: DictConfig, weights: dict[str, Any], path: Path, build: Callable[[DictConfig], nn.Module]
) -> None:
    """Check that weights fit the network of their configuration, whose size may be any, before it takes memory.

    Raises:
        CheckpointError: naming `path`, if they do not, or no network can be built.
    """
    try:
        with torch.device("meta"), _at_most(_REGISTRATIONS * (len(weights) + 10)):
            own = build(cfg).state_dict()
    except Exception as error:  # whatever a value of the wrong kind leads to: the configuration is the file's
        raise CheckpointError(f"{path} describes no model of this version: {first_line(error)}") from error
    if found := misfit(weights, own):
        raise CheckpointError(f"the weights of {path} do not fit its own configuration: {found}")


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Limit how many modules, parameters and buffers are made; RuntimeError beyond."""
    left = [count]

    def register(module: nn.Module, name: str, value: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("it has more layers than the file has weights")

    registrations = (
        register_module_buffer_registration_hook,
        register_module_module_registration_hook,
        register_module_parameter_registration_hook,
    )
    handles = [registration(register) for registration in registrations]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

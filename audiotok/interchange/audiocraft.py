"""Checkpoints of AudioCraft: what they hold as objects of OmegaConf, as plain data.

A training checkpoint holds its configuration (`xp.cfg`) and some settings of optimisers as OmegaConf's objects, which a
file can only make by naming their classes. None of these is made: inert stand-ins take their places, keep what the
file gives them, and are replaced by the values in it. An exported file holds text and needs none of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import yaml

EXPORTED = "compression_state_dict.bin"  # name of a codec's file in a folder, such as that of a MusicGen
POINTER = "pretrained"  # key of a file that holds the name of a model instead of its weights
_MAX_VALUES, _MAX_DEPTH = 100_000, 60  # of the objects of a file; a configuration has 500


class StandIn:
    """In the place of an object of a file: what it was made of and its state, and nothing that they do."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """In the place of a defaultdict, whose default is nothing that a file decides here."""
    return {}


_NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "PathNode", "InterpolationResultNode")
_CLASSES = (
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata", "pathlib.Path", "pathlib.PosixPath"),
    *(f"omegaconf.nodes.{name}" for name in _NODES),
    *("typing.Any", "typing.Union", "typing.Optional", "typing.Dict", "typing.List"),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("int", "float", "str", "bool")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("list", "dict", "tuple", "unicode")),
)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within it, `torch.load(weights_only=True)` reads OmegaConf's objects as stand-ins; all others stay refused."""
    names: list[Any] = [(StandIn, name) for name in _CLASSES]
    with torch.serialization.safe_globals([*names, (_plain_dict, "collections.defaultdict")]):
        yield


def plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """State of a file with plain values in the places of stand-ins, and the configuration as text; changes it in place.

    Raises:
        ValueError: if an object is none of OmegaConf's, or they hold far more values than a configuration does.
    """
    left = [_MAX_VALUES]
    if isinstance(state.get("xp.cfg"), StandIn):
        state["xp.cfg"] = yaml.safe_dump(_value(state["xp.cfg"], left), sort_keys=False)
    _replace(state, left, set(), 0)
    return state


def _replace(value: Any, left: list[int], seen: set[int], depth: int) -> Any:
    """The value without stand-ins; dicts and lists are changed in place, each once."""
    if isinstance(value, StandIn):
        return _value(value, left)
    if isinstance(value, dict | list | tuple) and depth < _MAX_DEPTH and id(value) not in seen:
        seen.add(id(value))
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        found = {key: _replace(item, left, seen, depth + 1) for key, item in items}
        if isinstance(value, tuple):
            return tuple(found.values()) if any(isinstance(item, StandIn) for item in value) else value
        for key, item in items:
            if found[key] is not item:
                value[key] = found[key]
    return value


def _value(node: Any, left: list[int], depth: int = 0) -> Any:
    """What a node of OmegaConf holds, as dicts, lists, numbers and text."""
    left[0] -= 1
    if left[0] < 0 or depth > _MAX_DEPTH:
        raise ValueError(f"objects of more than {_MAX_VALUES} values, or nested more than {_MAX_DEPTH} deep")
    if isinstance(node, StandIn):
        if node.args and all(isinstance(part, str) for part in node.args):  # of a path
            return "/".join(node.args).replace("//", "/")
        state = node.state if isinstance(node.state, dict) else {}
        names = [name for name in ("_content", "_val") if name in state]
        if len(names) != 1:
            raise ValueError("an object that is no value of a configuration")
        return _value(state[names[0]], left, depth + 1)
    if isinstance(node, dict):
        return {str(key): _value(item, left, depth + 1) for key, item in node.items()}
    if isinstance(node, list | tuple):
        return [_value(item, left, depth + 1) for item in node]
    if node is None or isinstance(node, str | bool | int | float):
        return node
    raise ValueError(f"a {type(node).__name__} in its configuration")


def training_states(state: dict[str, Any]) -> dict[str, Any]:
    """Entries of a checkpoint of training under our names: AudioCraft's discriminators and averages, ours as they are.

    AudioCraft keeps an adversary's optimiser among its weights, and an average for each of several modules. It keeps
    nothing of its balancer.
    """
    found = dict(state)
    adversaries, average = state.get("adv_losses"), state.get("ema")
    if isinstance(adversaries, dict):
        end = ".optimizer"
        found["adv_losses"] = {
            f"{key.removesuffix(end)}._extra_state" if key.endswith(end) else key: {"optimizer": value}
            if key.endswith(end)
            else value
            for key, value in adversaries.items()
        }
    if isinstance(average, dict) and isinstance(average.get("state"), dict) and "average" not in average:
        found["ema"] = {"average": average["state"].get("model"), "count": average.get("count")}
    return found

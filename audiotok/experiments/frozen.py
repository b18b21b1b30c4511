"""An experiment, and the configuration it was made with, kept beside it: `frozen.json`.

It is written when the experiment is first submitted or run: a job runs what was submitted, even if the YAML files are
edited while it waits. What has not trained a step is frozen anew when it is submitted or run again; what has trained
only on request (`Change`). The file before is kept as `frozen.N.json`. Fields: version, sig, argv, delta, choices
(config groups), cfg (see `Composition.freeze_values`) or cfg_yaml (where JSON cannot hold it), written (unix seconds).
What was changed since by `audiotok extend` stands in `amended.json` beside it and counts over it.

The file may come from elsewhere: of its interpolations that call a resolver, such as `${oc.env:NAME}`, only those
count that stand in the YAML files of the project that reads it; others are text.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dora.conf import DoraConfig
from dora.xp import XP, _get_sig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from audiotok.config_text import LOCAL_SECTIONS, Plain, inert, parse_yaml, reads_environment, value_at
from audiotok.errors import ConfigError
from audiotok.experiments.overrides import aligned, dotted, leaves_of, parse_override
from audiotok.experiments.schema import Checked
from audiotok.files import UnreadableError, parse_json, read_bytes, read_json, read_text, write_text
from audiotok.status import AMENDED_FILE, STATUS_FILE
from audiotok.status.amendments import amended_values, may_change
from audiotok.text import number_in

FROZEN_FILE = "frozen.json"
FROZEN_VARIABLE = "AUDIOTOK_FROZEN"  # path of the frozen configuration that this process is to run
RETRY_VARIABLE = "AUDIOTOK_RETRY"
_RETRY_MODES = ("", "force", "today")
_CHECKPOINTS = (".th", ".pt", ".pth", ".ckpt", ".safetensors")
_SHOWN = 5  # differences that a message lists
_VERSION = 1
_GONE = object()
_LOOKS = ("show", "execute_only")  # of one run, which only looks: the next by the signature trains


class Experiment(XP):
    """Dora's experiment, whose configuration is built on first use: a grid needs most for their signatures only.

    Args:
        dora: its folders and the rules of signatures.
        argv: its overrides.
        delta: what they change, with the keys that do not count.
        build: makes the configuration.
        values: makes its frozen form, see `Composition.frozen`.
        choices: the option of each config group.
        check: what is wrong with its configuration; None: it is checked when it runs.
        sig: signature; None: that of `delta`.
        is_frozen: whether it comes from a frozen file.
    """

    def __init__(
        self,
        dora: DoraConfig,
        argv: Sequence[str],
        delta: Sequence[Sequence[Any]],
        *,
        build: Callable[[], DictConfig],
        values: Callable[[], Plain],
        choices: Mapping[str, Any],
        check: Callable[[], Checked] | None = None,
        sig: str | None = None,
        is_frozen: bool = False,
    ) -> None:
        counted = [[key, value] for key, value in delta if not dora.is_excluded(key)]
        self._build, self._values, self._check = build, values, check
        self.choices, self.is_frozen = dict(choices), is_frozen
        super().__init__(dora=dora, cfg=None, argv=list(argv), sig=sig or _get_sig(counted))
        del self.cfg
        self.delta: Any = counted  # set here: Dora would import torch to look for tensors in it

    @cached_property
    def cfg(self) -> Any:
        """Configuration, as Hydra composes it."""
        return self._build()

    @cached_property
    def checked(self) -> Checked:
        """What is wrong with its configuration, and which of its overrides do nothing."""
        return Checked() if self._check is None else self._check()

    def frozen_values(self) -> Plain:
        """Return its frozen form, as `frozen.json` holds it; it is shared, so leave it as it is."""
        return self._values()

    def __getstate__(self) -> dict[str, Any]:
        # `_build`, `_values` and `_check` can be closures, which cannot be pickled: what they make is.
        made = {"cfg": self.cfg, "checked": self.checked, "_values": partial(dict, self._values())}
        return {**self.__dict__, **made, "_build": None, "_check": None}


@dataclass(frozen=True)
class Frozen:
    """Content of a frozen file."""

    sig: str
    argv: list[str]
    delta: list[list[Any]]
    cfg: Plain  # keys that do not count for the signature are as in the presets
    choices: dict[str, Any]
    written: float
    amended: Plain = field(default_factory=dict)  # values since, by dotted key; `cfg` is without them

    def amended_cfg(self) -> Plain:
        """The configuration with what was amended."""
        if not self.amended:
            return self.cfg
        cfg = copy.deepcopy(self.cfg)
        for key, value in self.amended.items():
            *above, last = key.split(".")
            section = cfg
            for part in above:
                section = section.setdefault(part, {})
            section[last] = value
        return cfg


@dataclass(frozen=True)
class Change:
    """How today's configuration differs from the frozen one of an experiment that has no live job."""

    lines: list[str]  # `key: frozen → today`
    kept: str = ""  # why the frozen one stays; "": the experiment is frozen anew

    @property
    def anew(self) -> bool:
        """Whether the experiment is frozen anew when it is submitted or run."""
        return not self.kept

    def __str__(self) -> str:
        more = len(self.lines) - _SHOWN
        shown = ", ".join(self.lines[:_SHOWN] + [f"and {more} more"] * (more > 0))
        return f"configuration changed since: {shown}; {self.kept or 'freezes anew'}"


def retry_mode(environ: Mapping[str, str]) -> str:
    """What AUDIOTOK_RETRY requests: "" nothing, `force` or `today`.

    Raises:
        ConfigError: if it is anything else.
    """
    mode = environ.get(RETRY_VARIABLE, "").strip()
    if mode not in _RETRY_MODES:
        meaning = "force (retry what would end so again) or today (take today's configuration for what has trained)"
        raise ConfigError(f"{RETRY_VARIABLE}={mode!r} in the environment; give {meaning}.")
    return mode


def has_trained(xp: XP) -> bool:
    """Whether an experiment has trained a step: an epoch in its history, a checkpoint, or progress in its status."""
    folder = Path(xp.folder)
    status = read_json(folder / STATUS_FILE) or {}
    if any((number_in(status, name) or 0) > 0 for name in ("epoch", "update")):
        return True
    try:
        if read_text(Path(xp.history), limit=2**10).strip() != "[]":
            return True
    except FileNotFoundError:
        pass
    except UnreadableError:  # longer than that, or damaged
        return True
    names = [path.name for path in folder.iterdir() if path.name[0] != "."]  # drafts begin with a dot
    return any(name.startswith("checkpoint") or name.endswith(_CHECKPOINTS) for name in names)


def lasting(argv: Sequence[str]) -> list[str]:
    """Overrides without those of a single run that only looks at an experiment."""
    return [argument for argument in argv if argument.lstrip("+").partition("=")[0] not in _LOOKS]


def freeze(xp: Experiment, *, anew: bool = False) -> Path:
    """Write `frozen.json` into the folder of an experiment if there is none; the folder must exist.

    Args:
        xp: the experiment.
        anew: also if there is one, which then becomes `frozen.N.json`.

    Raises:
        OSError: if it cannot be written.
    """
    path: Path = xp.folder / FROZEN_FILE
    if anew and path.exists():
        number = 1 + sum(1 for _ in path.parent.glob("frozen.*.json"))
        write_text(path.with_name(f"frozen.{number}.json"), read_bytes(path).decode(errors="replace"))
    if anew or not path.exists():
        values = xp.frozen_values()
        delta = [[key, _as_saved(key, value, values)] for key, value in xp.delta]
        content = {"version": _VERSION, "sig": xp.sig, "argv": lasting(xp.argv), "delta": delta, "choices": xp.choices}
        is_json = _is_json(values)
        content |= {"cfg": values} if is_json else {"cfg_yaml": OmegaConf.to_yaml(OmegaConf.create(values))}
        write_text(path, json.dumps({**content, "written": time.time()}))
    return path


def read_frozen(path: Path) -> Frozen:
    """Read a frozen file.

    Raises:
        ConfigError: if it is missing, unreadable, or of another version or experiment than its folder's.
    """
    remedy = "remove it, or start anew with --clear, to take today's configuration instead"
    try:
        content = parse_json(read_bytes(path))
    except FileNotFoundError:
        raise ConfigError(f"no frozen configuration at {path}; submit the experiment again") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        found = content.get("version") if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{path} has version {found!r}, this code reads {_VERSION}; {remedy}")
    if isinstance(content.get("cfg_yaml"), str):
        try:
            content["cfg"] = parse_yaml(content["cfg_yaml"])
        except ValueError as error:
            raise ConfigError(f"{path} cannot be read: {error}; {remedy}") from error
    kinds: dict[str, type | tuple[type, ...]] = {
        "sig": str, "argv": list, "delta": list, "cfg": dict, "choices": dict, "written": (int, float),
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise ConfigError(f"{path} lacks {name!r} or has something else there; {remedy}")
    if content["sig"] != path.resolve().parent.name:
        raise ConfigError(f"{path} is of experiment {content['sig']}, not of the folder it is in; {remedy}")
    return Frozen(**{name: content[name] for name in kinds}, amended=_read_amended(path.with_name(AMENDED_FILE)))


def _read_amended(path: Path) -> Plain:
    """What was amended of an experiment, by dotted key; ConfigError if the record is there and cannot be read."""
    remedy = "put a copy back that can be, or remove it to go on with the frozen configuration"
    try:
        content = parse_json(read_bytes(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {remedy}") from error
    values = amended_values(path.parent)
    if not isinstance(content, dict) or content.get("sig") != path.resolve().parent.name or not values:
        raise ConfigError(f"{path} holds no amendments of the experiment of its folder; {remedy}")
    if wrong := [key for key, value in values.items() if not may_change(key, value)]:
        raise ConfigError(f"{path} changes {', '.join(wrong)[:200]}, which may not change; {remedy}")
    return values


def thaw(
    frozen: Frozen,
    dora: DoraConfig,
    argv: Sequence[str],
    *,
    local: Mapping[str, Any] | None = None,
    trusted: Callable[[str], bool] = lambda text: False,
) -> Experiment:
    """Experiment of a frozen configuration, as run with these overrides, below `dora.dir`.

    Of the overrides only those count that do not change the signature, such as `device=cpu`: the rest is frozen.

    Args:
        frozen: content of the file.
        dora: see `Experiment`.
        argv: overrides.
        local: sections of the machine that it runs on, `slurm` and `dora`; those of the file do not count.
        trusted: whether an interpolation that calls a resolver is one of this project.

    Raises:
        ConfigError: if Hydra cannot read an override.
    """
    try:
        argv = [aligned(argument, frozen.cfg) for argument in argv]
    except HydraException as error:
        raise ConfigError(f"{' '.join(str(error).split())} (overrides: {' '.join(argv)})") from error

    def build() -> DictConfig:
        shared = {key: value for key, value in frozen.cfg.items() if key not in LOCAL_SECTIONS}
        cfg = OmegaConf.create({**inert(shared, trusted), **(local or {})})
        assert isinstance(cfg, DictConfig)
        # What was amended counts over what the experiment was submitted with, and what this run is given over both.
        first = [argument for argument in argv if argument in frozen.argv]
        given = [argument for argument in argv if argument not in first]
        groups = set(frozen.choices)
        amended = [(key, inert(value, trusted)) for key, value in frozen.amended.items()]
        for key, value in (*_loose_overrides(first, dora, groups), *amended, *_loose_overrides(given, dora, groups)):
            OmegaConf.update(cfg, key, value, force_add=True)
        if "dir" in (cfg.get("dora") or ()):
            cfg.dora.dir = str(dora.dir)
        OmegaConf.set_struct(cfg, True)
        return cfg

    made: dict[str, Any] = {"build": build, "values": frozen.amended_cfg, "choices": frozen.choices}
    return Experiment(dora, argv, frozen.delta, **made, sig=frozen.sig, is_frozen=True)


def find_frozen(path: Path, dora: DoraConfig) -> tuple[Frozen, DoraConfig]:
    """Read the frozen file of a job, even of moved outputs if either the path or `dora.dir` is up to date.

    Returns:
        The content, and the Dora configuration with the folder of outputs that the file lies in.

    Raises:
        ConfigError: as `read_frozen`.
    """
    path = path.absolute()
    moved = dora.dir / dora.xps / path.parent.name / path.name
    if not path.exists() and moved.exists():
        path = moved
    frozen = read_frozen(path)
    root = path.parent.parent.parent
    if path.parent.parent.name == dora.xps and root.resolve() != Path(dora.dir).resolve():
        dora = replace(dora, dir=root)
    return frozen, dora


def differences(frozen: Plain, now: Plain, dora: DoraConfig, *, loose: bool = False) -> list[str]:
    """Keys that differ between two frozen forms, as `losses.mmd: 2.0 → 3.0`.

    Only those that count for the signature; with `loose` all that training reads: all but the profile and Dora's own.
    """
    old, new = dict(leaves_of(frozen)), dict(leaves_of(now))
    lines = []
    for path in sorted({**old, **new}, key=dotted):
        value, other = old.get(path, _GONE), new.get(path, _GONE)
        same = value == other or repr(value) == repr(other)  # NaN is the same NaN here
        if not same and (path[0] not in LOCAL_SECTIONS if loose else not dora.is_excluded(dotted(path))):
            lines.append(f"{dotted(path)}: {_shown(value)} → {_shown(other)}")
    return lines


def _loose_overrides(argv: Sequence[str], dora: DoraConfig, groups: set[str]) -> list[tuple[str, Any]]:
    """Overrides of single keys that do not count for the signature."""
    found = []
    for override in map(parse_override, argv):
        key, value = override.key_or_group, override.value()
        if key in groups or override.package is not None or override.is_hydra_override():
            continue
        path = tuple(key.split("."))
        nested = leaves_of(value, path) if isinstance(value, dict) else [(path, value)]
        found += [(dotted(path), item) for path, item in nested if dora.is_excluded(dotted(path))]
    return found


def _as_saved(key: str, value: Any, values: Plain) -> Any:
    """Value of a delta as the file may hold it: the interpolation, where the frozen values have one for a secret."""
    text = value_at(values, tuple(key.split(".")))
    return text if isinstance(text, str) and reads_environment(text) else value


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | float | str)


def _shown(value: Any) -> str:
    return "(not there)" if value is _GONE else json.dumps(value, ensure_ascii=False, default=str)

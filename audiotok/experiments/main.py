"""Overrides to an experiment: Dora's Hydra entry point, made fast and clear about mistakes.

Dora's signature is a hash of what the overrides change with respect to the composed base. Here each choice of config
groups is composed once, and overrides of values are applied to plain containers (`Composition`); what those rules do
not cover is composed by Hydra and compared by Dora, as upstream. Signatures, deltas and names are the same, but that an
int given for a float is read as that float.
"""

import copy
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dora.hydra import HydraMain, _compare_config, _simplify_argv
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from audiotok.cluster import settle
from audiotok.errors import ConfigError
from audiotok.experiments.composition import Composition, plain_of
from audiotok.experiments.experiment import Experiment
from audiotok.experiments.overrides import aligned, as_override, delta_of_groups, parse_override


class ComposingMain(HydraMain):
    """What makes experiments of overrides, by the configuration as it is now; see `dora.hydra.HydraMain`."""

    _slow = False  # bases are composed once, so a process pool costs more than it saves

    def __init__(self, main: Callable[..., Any], config_name: str, config_path: str, **kwargs: Any) -> None:
        self._compositions: dict[tuple[str, ...], Composition] = {}
        # The profile of a cluster that is detected counts from the first composition on.
        settle(os.environ, (Path(main.__code__.co_filename).parent / config_path / "cluster").resolve())
        super().__init__(main, config_name=config_name, config_path=config_path, **kwargs)
        # Dora overlooks a group without options of its own, such as `model` above `model/encodec`: its choice counts as
        # the values that come of it.
        self._all_groups = frozenset(parent for group in self._config_groups for parent in _with_parents(group))

    def compose(self, argv: Sequence[str]) -> Experiment:
        """Experiment of a list of overrides by the configuration of today, whatever is frozen.

        Raises:
            ConfigError: if an override has no `=`, names a group or key that does not exist, or leaves a `???`.
        """
        for argument in argv:
            if argument.startswith("~"):
                raise ConfigError(
                    f"override {argument!r} removes a key; experiments have the same keys, so that they can be "
                    "compared; give it another value, such as null"
                )
            if "=" not in argument:
                raise ConfigError(f"override {argument!r} has no '='; write key=value, such as losses.mmd=10")
        try:
            return self._compose(_simplify_argv(argv))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{_first_sentence(error)} (overrides: {' '.join(argv)})") from error

    def value_to_argv(self, arg: Any) -> list[str]:
        """Overrides of what a grid gives its launcher: text, a dict, or a list of these."""
        if not isinstance(arg, dict):
            argv: list[str] = super().value_to_argv(arg)
            return argv
        return [f"{key}={value if key in self._config_groups else as_override(value)}" for key, value in arg.items()]

    def _compose(self, argv: Sequence[str]) -> Experiment:
        groups = tuple(argument for argument in argv if argument.partition("=")[0] in self._all_groups)
        composition = self._get_composition(groups)
        argv = [argument if argument in groups else aligned(argument, composition.resolved) for argument in argv]
        overrides = [parse_override(argument) for argument in argv if argument not in groups]
        chosen = delta_of_groups(groups, self._config_groups)
        values = composition.change(overrides)
        if values is None:
            return self._compose_slowly(composition, argv, chosen, overrides)
        _check_set(composition.missing - values.keys())
        return Experiment(
            self.dora,
            argv,
            chosen + composition.delta(values),
            build=partial(composition.build, overrides),
            values=partial(composition.frozen, values),
            choices=composition.choices,
        )

    def _compose_slowly(
        self,
        composition: Composition,
        argv: Sequence[str],
        chosen: list[tuple[str, Any]],
        overrides: Sequence[Override],
    ) -> Experiment:
        """Hydra's and Dora's own way, for overrides that take them to tell what they do."""
        try:
            has_groups = any(override.key_or_group in self._all_groups for override in overrides)  # +group=option
            cfg = None if has_groups else composition.apply(overrides)
            if cfg is None:
                cfg = self._get_config(list(argv))
            _check_set([key for key in OmegaConf.missing_keys(cfg) if "[" not in key])  # Dora takes lists as they are
            delta = chosen + [
                (key, _jsonable(value)) for key, value in self._get_delta(composition.reference.comparable, cfg)
            ]
            return Experiment(
                self.dora,
                argv,
                delta,
                build=partial(copy.deepcopy, cfg),
                values=lambda: composition.freeze_values(plain_of(cfg, resolve=True)),
                choices=composition.choices,
            )
        except ConfigError:
            raise
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{_first_sentence(error)}; an override may change a value or add a key, not make a value of a "
                f"section (overrides: {' '.join(argv)})"
            ) from error

    def _get_composition(self, groups: tuple[str, ...]) -> Composition:
        """The composition of a choice of config groups."""
        if groups not in self._compositions:
            with initialize_config_dir(str(self.full_config_path), job_name=self._job_name, **self.hydra_kwargs):
                cfg = compose(self.config_name, list(groups), return_hydra_config=True)
            choices = {str(group): option for group, option in cfg.hydra.runtime.choices.items()}
            with open_dict(cfg):
                del cfg["hydra"]
            counted = tuple(argument for argument in groups if argument.partition("=")[0] in self._config_groups)
            reference = None if counted == groups else self._get_composition(counted)
            ours = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
            self._compositions[groups] = Composition(cfg, ours, self.dora, reference)
        return self._compositions[groups]

    def _get_delta(self, init: DictConfig, other: DictConfig) -> list[tuple[str, Any]]:
        # Dora keeps the current path in a default argument, which stays wrong for good once a comparison has failed.
        return [(".".join(diff.path), diff.other_value) for diff in _compare_config(init, other, [])]


def _with_parents(group: str) -> list[str]:
    parts = group.split("/")
    return ["/".join(parts[: index + 1]) for index in range(len(parts))]


def _check_set(missing: Collection[str]) -> None:
    if missing:
        keys = sorted(missing)
        raise ConfigError(
            f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no value yet ('???' in the configuration); "
            f"give {'it' if len(keys) == 1 else 'them'}: {' '.join(f'{key}=VALUE' for key in keys)}"
        )


def _jsonable(value: Any) -> Any:
    """As `dora.utils.jsonable`, which imports torch."""
    if isinstance(value, BaseContainer):
        return OmegaConf.to_container(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is neither text, number, list nor section")


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines)[:400].rstrip(".;")

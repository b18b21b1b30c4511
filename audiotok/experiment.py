"""How an experiment gets its signature: Dora's Hydra entry point, made fast, clear about mistakes, and frozen.

Dora's signature is a hash of what the overrides change with respect to the composed base. Here each choice of config
groups is composed once, and overrides of values are applied to plain containers (`audiotok.composition`); what those
rules do not cover is composed by Hydra and compared by Dora, as upstream. Signatures, deltas and names are the same,
but that an int given for a float is read as that float.

The configuration is frozen when an experiment is submitted or first run (`audiotok.frozen`). A process with
AUDIOTOK_FROZEN=…/frozen.json in its environment runs exactly that one. In any process, a run of an experiment that is
frozen otherwise than today's configuration says so, and runs the frozen one.
"""

import copy
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dora.hydra import HydraMain, _compare_config, _simplify_argv
from dora.xp import XP, get_xp, is_xp
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from audiotok.cluster import settle
from audiotok.composition import Composition, Experiment, plain_of
from audiotok.errors import ConfigError
from audiotok.frozen import (
    FROZEN_FILE,
    FROZEN_VARIABLE,
    Frozen,
    differences,
    find_frozen,
    freeze,
    read_frozen,
    thaw,
    write_hydra_files,
    write_text,
)
from audiotok.overrides import aligned, as_override, delta_of_groups, parse_override

logger = logging.getLogger(__name__)

_SIG = re.compile(r"[0-9a-zA-Z_-]+")


class ExperimentMain(HydraMain):
    """Entry point of the experiments; see `dora.hydra.HydraMain`."""

    _slow = False  # bases are composed once, so a process pool costs more than it saves

    def __init__(self, main: Callable[..., Any], config_name: str, config_path: str, **kwargs: Any) -> None:
        self._compositions: dict[tuple[str, ...], Composition] = {}
        self._named: dict[tuple[str, ...], str] = {}  # overrides that were looked up by signature
        # The profile of a cluster that is detected counts from the first composition on.
        settle(os.environ, (Path(main.__code__.co_filename).parent / config_path / "cluster").resolve())
        super().__init__(main, config_name=config_name, config_path=config_path, **kwargs)
        # Dora overlooks a group without options of its own, such as `model` above `model/encodec`: its choice counts as
        # the values that come of it.
        self._all_groups = frozenset(parent for group in self._config_groups for parent in _with_parents(group))

    def get_xp(self, argv: Sequence[str]) -> Experiment:
        """Experiment of a list of overrides; in a job, the frozen one that it is to run.

        Raises:
            ConfigError: if an override has no `=`, names a group or key that does not exist, or leaves a `???`.
        """
        path = os.environ.get(FROZEN_VARIABLE)
        if path:
            frozen, self.dora = find_frozen(Path(path), self.dora)
            return thaw(frozen, self.dora, _simplify_argv(argv) or frozen.argv)
        for start, sig in self._named.items():
            if tuple(argv[: len(start)]) == start:
                return self._get_named_xp(sig, list(start), argv)
        return self.compose(argv)

    def compose(self, argv: Sequence[str]) -> Experiment:
        """Experiment of a list of overrides by the configuration of today, whatever is frozen.

        Raises:
            ConfigError: see `get_xp`.
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

    def get_xp_from_sig(self, sig: str) -> Experiment:
        """Experiment of a signature, with the configuration it was frozen with.

        Without a frozen file, as experiments of earlier versions have none, with that of today. The signature is the
        one asked for in either case, whatever the overrides would give today.

        Raises:
            ConfigError: if no experiment has it here.
        """
        argv = self._read_argv(sig)
        frozen = self._read_frozen(sig)
        if frozen is not None:
            return thaw(frozen, self.dora, argv)
        xp = self.compose(argv)
        if xp.sig != sig:
            logger.warning("%s was made by another version: its overrides now give %s", sig, xp.sig)
            xp.sig = sig
            xp.link.history_file = xp.history
        return xp

    def get_argv_from_sig(self, sig: str) -> list[str]:
        """Overrides that a signature stands for; `get_xp` of them is then that experiment, as it is frozen.

        Raises:
            ConfigError: if no experiment has it here.
        """
        argv = self._read_argv(sig)
        self._named[tuple(argv)] = sig
        return argv

    def init_xp(self, xp: XP) -> XP:
        """Make the folder of an experiment, with its overrides and its frozen configuration."""
        xp.folder.mkdir(parents=True, exist_ok=True)
        _write_argv(xp._argv_cache, xp.argv)
        freeze(xp)
        shared = xp._shared_argv_cache
        if shared is not None:
            for folder in (shared.parent.parent, shared.parent):
                folder.mkdir(mode=0o777, parents=True, exist_ok=True)
                _open_to_all(folder)
            _write_argv(shared, xp.argv)
            _open_to_all(shared)
        return xp

    def value_to_argv(self, arg: Any) -> list[str]:
        """Overrides of what a grid gives its launcher: text, a dict, or a list of these."""
        if not isinstance(arg, dict):
            argv: list[str] = super().value_to_argv(arg)
            return argv
        return [f"{key}={value if key in self._config_groups else as_override(value)}" for key, value in arg.items()]

    def __call__(self) -> Any:
        """Run the experiment of the command line."""
        argv = self._get_argv()
        if not self._is_active(argv):
            return self._main()
        xp = self.init_xp(self._prefer_frozen(self.get_xp(argv)))
        with xp.enter():
            return self._main()

    def _main(self) -> Any:
        if not is_xp():
            return super()._main()  # type: ignore[no-untyped-call]
        xp = get_xp()
        if isinstance(xp, Experiment) and xp.is_frozen:
            return self._run_frozen(xp)
        before = list(sys.argv)
        sys.argv[1:] = xp.argv  # with ints for floats written as floats
        try:
            return super()._main()  # type: ignore[no-untyped-call]
        finally:
            sys.argv[:] = before

    def _run_frozen(self, xp: Experiment) -> Any:
        """Run the training function with a frozen configuration: nothing is composed, so Hydra stays out of it.

        What it would leave is here too: `.hydra/` and a plain log. `hydra.*` settings have no effect, and there is no
        `HydraConfig`. The current folder stays.
        """
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
        if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0:
            write_hydra_files(xp, self._job_name, self.config_name)
            handlers.append(logging.FileHandler(xp.folder / f"{self._job_name}.log"))
        logging.basicConfig(
            level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s", handlers=handlers
        )
        return self.main(xp.cfg)

    def _prefer_frozen(self, xp: Experiment) -> Experiment:
        """The experiment as it is frozen, if that is not what it would be today."""
        if xp.is_frozen:
            if FROZEN_VARIABLE not in os.environ:
                logger.warning("%s: today's configuration gives another signature; running the frozen one", xp.sig)
            return xp
        frozen = self._read_frozen(xp.sig)
        lines = [] if frozen is None else differences(frozen.cfg, xp.frozen_values(), self.dora)
        if frozen is None or not lines:
            return xp
        logger.warning(
            "%s was frozen with other values; running those (--clear starts anew): %s", xp.sig, "; ".join(lines)
        )
        return thaw(frozen, self.dora, xp.argv)

    def _get_named_xp(self, sig: str, start: Sequence[str], argv: Sequence[str]) -> Experiment:
        """Experiment of overrides that begin with those of a signature (`dora info -f SIG`).

        If today's configuration no longer gives that signature, the frozen experiment, unless the overrides that
        follow make another one of it.
        """
        frozen = self._read_frozen(sig)
        if frozen is None:
            return self.compose(argv)
        try:
            xp = self.compose(argv)
            if xp.sig == sig or xp.sig != self.compose(start).sig:
                return xp
        except ConfigError:
            if list(argv) != list(start):
                raise
        return thaw(frozen, self.dora, _simplify_argv(argv))

    def _read_argv(self, sig: str) -> list[str]:
        xps = self.dora.dir / self.dora.xps
        shared = None if self.dora.shared is None else self.dora.shared / self.dora.xps
        if _SIG.fullmatch(sig) and ((xps / sig).is_dir() or (shared is not None and (shared / sig).is_dir())):
            try:
                argv = list(super().get_argv_from_sig(sig))
            except (RuntimeError, ValueError, OSError) as error:
                frozen = self._read_frozen(sig)
                if frozen is None:
                    raise ConfigError(f"the overrides of {xps / sig} cannot be read: {error}") from error
                return frozen.argv
            return argv
        raise ConfigError(
            f"no experiment with signature {sig!r} in {xps}; `dora grid NAME` lists them; set "
            "AUDIOTOK_OUTPUT_DIR if they are elsewhere"
        )

    def _read_frozen(self, sig: str) -> Frozen | None:
        path = self.dora.dir / self.dora.xps / sig / FROZEN_FILE
        if not path.exists():
            return None
        try:
            return read_frozen(path)
        except ConfigError as error:
            logger.warning("%s", error)
            return None

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


def experiment_main(
    config_name: str, config_path: str, **kwargs: Any
) -> Callable[[Callable[..., Any]], ExperimentMain]:
    """Decorator of the training function; the arguments are Hydra's."""

    def decorate(main: Callable[..., Any]) -> ExperimentMain:
        return ExperimentMain(main, config_name=config_name, config_path=config_path, **kwargs)

    return decorate


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


def _write_argv(path: Path, argv: Sequence[str]) -> None:
    text = json.dumps(list(argv))
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _open_to_all(path: Path) -> None:
    try:
        path.chmod(0o777)
    except PermissionError:
        logger.debug("%s belongs to somebody else", path)


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines)[:400].rstrip(".;")

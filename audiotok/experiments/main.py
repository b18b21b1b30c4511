"""Entry point of the experiments: composes them, freezes them, finds them again, runs them.

It is Dora's Hydra entry point, made fast and clear about mistakes. Signatures, deltas and names are Dora's, but that an
int given for a float is read as that float. What `Composition` does not cover Hydra composes and Dora compares.
"""

import contextlib
import copy
import importlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from dora.conf import DoraConfig
from dora.hydra import HydraMain, _compare_config, _simplify_argv
from dora.xp import XP
from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from audiotok.cluster import CLUSTER_VARIABLE, DEFAULT_CLUSTER, OUTPUT_VARIABLE, output_dir, place_of, settle
from audiotok.config_text import LOCAL_SECTIONS, Plain, reads_environment
from audiotok.errors import ConfigError, LaunchError
from audiotok.experiments.frozen import (
    FROZEN_FILE,
    FROZEN_VARIABLE,
    RETRY_VARIABLE,
    Change,
    Experiment,
    Frozen,
    differences,
    find_frozen,
    freeze,
    has_trained,
    lasting,
    read_frozen,
    retry_mode,
    thaw,
)
from audiotok.experiments.keys import Additions, check_keys, keys_set, option_advice
from audiotok.experiments.overrides import Composition, aligned, as_override, is_of_values, parse_override
from audiotok.experiments.run import alone, run_frozen
from audiotok.experiments.schema import Checked, Schema, refuse
from audiotok.files import UnreadableError, load_json, read_text, write_text
from audiotok.status import AMENDED_FILE, experiment_state

logger = logging.getLogger(__name__)

_SIG = re.compile(r"[0-9a-zA-Z_-]+")
_NOT_SET = re.compile(r"Environment variable '([^']*)' not found")
_UNREADABLE = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, RecursionError)


class ExperimentMain(HydraMain):
    """Entry point of the experiments; see `dora.hydra.HydraMain`.

    The configuration of an experiment is frozen when it is submitted or first run, and that is what runs from then on.
    A process with AUDIOTOK_FROZEN=…/frozen.json in its environment, such as a job, runs exactly that experiment.

    Args:
        main: the training function; its module is where `config_path` counts from.
        config_name, config_path: as Hydra has them.
        base: package whose folder `config` provides the files that `config_path` does not have; None: none.
        additions: keys that overrides may add; None: any, with `+`.
        schema: what the keys may hold; None: anything.
        kwargs: as `hydra.initialize_config_dir` has them.
    """

    def __init__(
        self,
        main: Callable[..., Any],
        config_name: str,
        config_path: str,
        base: str | None = None,
        additions: Additions | None = None,
        schema: Schema | None = None,
        **kwargs: Any,
    ) -> None:
        self._compositions: dict[tuple[str, ...], Composition] = {}
        self._requested: dict[tuple[str, ...], str] = {}  # overrides that were looked up by signature
        self._additions, self._schema = additions, schema
        self._base = None if base is None else Path(importlib.import_module(base).__path__[0], "config").resolve()
        own = (Path(main.__code__.co_filename).parent / config_path).resolve()
        # Before the first composition, which the profile of a detected cluster is part of.
        self._profiles = [folder / "cluster" for folder in (own, self._base) if folder is not None]
        settle(os.environ, *self._profiles)
        with _explained(*self._profiles):
            super().__init__(main, config_name=config_name, config_path=config_path, **kwargs)
        # Dora overlooks a group without options of its own, such as `model` above `model/encodec`: its choice counts as
        # the values that it sets.
        groups = map(PurePosixPath, self._config_groups)
        self._all_groups = frozenset(str(part) for group in groups for part in (group, *group.parents))

    def _get_dora(self) -> DoraConfig:
        if FROZEN_VARIABLE not in os.environ:  # a job has its values, and may lack variables of the login node
            output_dir({**os.environ, OUTPUT_VARIABLE: ""}, *self._profiles)
            OmegaConf.to_container(self._base_cfg.get("slurm") or OmegaConf.create(), resolve=True)
        return super()._get_dora()

    def __call__(self) -> Any:
        """Run the experiment of the command line."""
        xp = self.get_xp(self._get_argv())
        if not (xp.folder.is_dir() and has_trained(xp)):
            refuse(xp.checked.faults)
        elif FROZEN_VARIABLE not in os.environ:  # before anything is written: a mistake leaves its state as it is
            refuse(self._faults_of(self._to_run(xp).cfg))
        for line in xp.checked.idle:
            logger.warning("%s", line)
        with contextlib.ExitStack() as stack:
            if FROZEN_VARIABLE in os.environ:
                self.init_xp(xp)
            else:
                try:
                    xp.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(alone(xp))
                    xp = self._freeze_to_run(xp)
                except OSError as error:
                    advice = "make room or correct it, and try again"
                    raise LaunchError(f"cannot write {self.dora.dir} ({error}); {advice}.") from error
            stack.enter_context(xp.enter())
            return run_frozen(xp, self.main, self._job_name, self.config_name)

    def _to_run(self, xp: Experiment) -> Experiment:
        """What a run by hand takes of an experiment that has trained."""
        today = xp.is_frozen or retry_mode(os.environ) == "today"
        frozen = None if today else self._read_frozen(xp.sig)
        return xp if frozen is None else self._thaw(frozen, xp.argv)

    def _freeze_to_run(self, xp: Experiment) -> Experiment:
        """Freeze an experiment that is run by hand, anew if it may be; returns what runs."""
        if xp.is_frozen:
            logger.warning("%s: today's configuration gives another signature; running the frozen one", xp.sig)
            self.init_xp(xp)
            return xp
        verdict = experiment_state(xp.folder)
        change = self.change(xp)
        if change is not None and change.anew and verdict is not None and verdict.state.live:
            change = replace(change, kept=f"it is {verdict.state}, so the frozen one runs")
        if change is not None:
            logger.warning("%s: %s", xp.sig, change)
        self.init_xp(xp)
        if change is not None and change.anew:
            if int(os.environ.get("RANK") or 0) == 0:
                freeze(xp, anew=True)
            return xp  # of several processes one writes, and the others may be ahead of it
        path = Path(xp.folder) / FROZEN_FILE
        if path.with_name(AMENDED_FILE).exists():  # not without it: a record that cannot be read stops the run
            return self._thaw(read_frozen(path), xp.argv)
        frozen = self._read_frozen(xp.sig)
        return xp if frozen is None else self._thaw(frozen, xp.argv)

    def get_xp(self, argv: Sequence[str]) -> Experiment:
        """Experiment of a list of overrides; in a job, the frozen one that it is to run.

        Raises:
            ConfigError: see `compose`.
        """
        if path := os.environ.get(FROZEN_VARIABLE):
            frozen, self.dora = find_frozen(Path(path), self.dora)
            return self._thaw(frozen, _simplify_argv(argv) or frozen.argv)
        for start, sig in self._requested.items():
            if tuple(argv[: len(start)]) == start:
                return self._get_requested_xp(sig, list(start), argv)
        return self.compose(argv)

    def get_xp_from_sig(self, sig: str) -> Experiment:
        """Experiment of a signature, with the configuration it was frozen with, else that of today.

        It keeps this signature even if its overrides give another one today.

        Raises:
            ConfigError: if no experiment has it here.
        """
        argv = self._read_argv(sig)
        frozen = self._read_frozen(sig)
        if frozen is not None:
            return self._thaw(frozen, argv)
        xp = self.compose(argv)
        if xp.sig != sig:
            logger.warning("%s was made by another version: its overrides now give %s", sig, xp.sig)
            xp.sig = sig
            xp.link.history_file = xp.history
        return xp

    def get_argv_from_sig(self, sig: str) -> list[str]:
        """Overrides of a signature; `get_xp` of them is then that experiment, as it is frozen.

        Raises:
            ConfigError: if no experiment has it here.
        """
        argv = self._read_argv(sig)
        self._requested[tuple(argv)] = sig
        return argv

    def compose(self, argv: Sequence[str]) -> Experiment:
        """Experiment of a list of overrides by the configuration of today, even if it is frozen.

        Raises:
            ConfigError: if an override has no `=`, names a group or key that does not exist, or leaves a `???`.
        """
        for argument in argv:
            if argument.startswith("~"):
                advice = "experiments have the same keys, so that they can be compared; give it another value"
                raise ConfigError(f"override {argument!r} removes a key; {advice}, such as null")
            if "=" not in argument.lstrip("="):
                raise ConfigError(f"override {argument!r} has no '='; write key=value, such as losses.mmd=10")
            if reads_environment(argument):
                advice = "it would decide the signature and be saved with the experiment; write its value, or put it"
                raise ConfigError(f"override {argument!r} reads the environment; {advice} into a YAML file")
        try:
            return self._compose(_simplify_argv(argv))
        except ConfigCompositionException as error:
            advice = option_advice(error, argv, self._options())
            raise ConfigError(advice or f"{_first_sentence(error)} (overrides: {' '.join(argv)})") from error
        except ConfigError:
            raise
        except (*_UNREADABLE, ValueError) as error:  # the latter for integers of thousands of digits
            raise ConfigError(f"{_first_sentence(error)} (overrides: {' '.join(argv)[:400]})") from error

    def drift(self, xp: XP) -> list[str]:
        """How the configuration of today differs from the frozen one, a line each; none without a frozen file."""
        path = xp.folder / FROZEN_FILE
        if not path.exists():
            return []
        try:
            frozen = read_frozen(path)
            now = self.compose(frozen.argv)
        except ConfigError as error:
            return [f"its configuration cannot be composed any more: {error}"]
        lines = [] if now.sig == frozen.sig else [f"its overrides now give the signature {now.sig}, not {frozen.sig}"]
        return lines + differences(frozen.cfg, now.frozen_values(), xp.dora)

    def change(self, xp: XP) -> Change | None:
        """How the configuration of today, which `xp` was composed with, differs from the frozen one.

        Returns:
            What differs and what a launch does about it; None if nothing does, or if nothing is frozen.

        Raises:
            ConfigError: if AUDIOTOK_RETRY holds an unknown word.
        """
        path = xp.folder / FROZEN_FILE
        if not isinstance(xp, Experiment) or xp.is_frozen or not path.exists():
            return None
        try:
            lines = differences(read_frozen(path).cfg, xp.frozen_values(), xp.dora, loose=True)
        except ConfigError as error:
            lines = [str(error)]
        if not lines:
            return None
        if retry_mode(os.environ) == "today" or not has_trained(xp):
            return Change(lines)
        return Change(lines, f"it has trained, so it keeps the frozen one; {RETRY_VARIABLE}=today takes today's")

    @property
    def keys(self) -> frozenset[str]:
        """Keys that the schema names; none without one."""
        return frozenset() if self._schema is None else self._schema.keys

    def faults(self, frozen: Frozen) -> list[str]:
        """What the schema refuses in a frozen configuration with what was amended, a line each."""
        return self._faults_of(self._thaw(frozen, frozen.argv).cfg)

    def init_xp(self, xp: Any) -> Any:
        """Make the folder of an experiment, with its overrides and its frozen configuration."""
        xp.folder.mkdir(parents=True, exist_ok=True)
        argv = lasting(xp.argv)
        _write_argv(xp._argv_cache, argv)
        freeze(xp)
        shared = xp._shared_argv_cache
        if shared is not None:
            try:
                shared.parent.mkdir(parents=True, exist_ok=True)
                _write_argv(shared, argv)
            except PermissionError as error:  # it belongs to another user, whose umask keeps others out
                logger.warning("%s; others will not find experiment %s there: share it by umask 002", error, xp.sig)
        return xp

    def value_to_argv(self, arg: Any) -> list[str]:
        """Overrides of what a grid gives its launcher: text, a dict, or a list of these."""
        if not isinstance(arg, dict):
            return list(super().value_to_argv(arg))
        return [f"{key}={value if key in self._config_groups else as_override(value)}" for key, value in arg.items()]

    def _faults_of(self, cfg: DictConfig) -> list[str]:
        if self._schema is None:
            return []
        values: Any = OmegaConf.to_container(cfg, resolve=True)
        return self._schema.faults(values)

    def _compose(self, argv: Sequence[str]) -> Experiment:
        groups = tuple(argument for argument in argv if argument.partition("=")[0] in self._all_groups)
        composition = self._get_composition(groups)
        argv = [
            argument if argument in groups else self._completed(argument, composition.resolved) for argument in argv
        ]
        overrides = [parse_override(argument) for argument in argv if argument not in groups]
        options = [argument.partition("=")[::2] for argument in groups]
        chosen = [(group, option) for group, option in options if group in self._config_groups]
        values = composition.change(overrides)
        if values is None:
            check_keys(overrides, composition.resolved, composition.choices, self._additions)
            return self._compose_slowly(composition, argv, chosen, overrides)
        _check_set(composition.missing - values.keys())
        delta = chosen + composition.delta(values)
        build, frozen = partial(composition.apply, overrides), partial(composition.frozen, values)
        check = partial(self._check, partial(composition.values, values), composition, overrides)
        return Experiment(self.dora, argv, delta, build=build, values=frozen, choices=composition.choices, check=check)

    def _compose_slowly(
        self, composition: Composition, argv: Sequence[str], delta: list[tuple[str, Any]], overrides: Sequence[Override]
    ) -> Experiment:
        """Hydra's and Dora's own way, for overrides whose effect only they know."""
        try:
            has_groups = any(override.key_or_group in self._all_groups for override in overrides)  # +group=option
            is_simple = not has_groups and all(map(is_of_values, overrides))
            cfg = composition.apply(overrides) if is_simple else self._get_config(argv)
            _check_set([key for key in OmegaConf.missing_keys(cfg) if "[" not in key])  # Dora takes lists as they are
            # A list of our own: Dora keeps the path in a default argument, which a comparison that fails leaves wrong.
            for one in _compare_config(composition.reference.comparable, cfg, []):
                value = one.other_value
                is_container = isinstance(value, BaseContainer)
                delta.append((".".join(one.path), OmegaConf.to_container(value) if is_container else value))
            build, values = partial(copy.deepcopy, cfg), partial(composition.freeze_values, cfg)
            check = partial(self._check, partial(OmegaConf.to_container, cfg, resolve=True), composition, overrides)
            return Experiment(
                self.dora, argv, delta, build=build, values=values, choices=composition.choices, check=check
            )
        except ConfigError:
            raise
        except (AssertionError, TypeError, ValueError) as error:
            advice = "an override may change a value or add a key, not make a value of a section"
            raise ConfigError(f"{_first_sentence(error)}; {advice} (overrides: {' '.join(argv)})") from error

    def _completed(self, argument: str, base: Plain) -> str:
        """An override as Hydra needs it: floats where the base has them, and + before a key that may be added."""
        if self._additions is not None:
            argument = self._additions.completed(argument, parse_override(argument), base)
        return aligned(argument, base)

    def _check(self, values: Callable[[], Any], composition: Composition, overrides: Sequence[Override]) -> Checked:
        """What is wrong with a configuration that overrides make of a composition."""
        if self._schema is None:
            return Checked()
        of_values = [one for one in overrides if is_of_values(one)]
        keys = [key for one in of_values for key in keys_set(one.key_or_group, one.value(), composition.resolved)]
        additions = self._additions or Additions(free=("*",))
        return self._schema.checked(values(), keys, partial(additions.allow, cfg=composition.resolved))

    def _get_composition(self, groups: tuple[str, ...]) -> Composition:
        """The composition of a choice of config groups."""
        if groups not in self._compositions:
            if any(argument.partition("=")[2].lstrip().startswith(("[", "{")) for argument in groups):
                # Hydra takes a list: none of its presets or several, over each other, and a traceback for [{}].
                raise ConfigError(f"choose one preset of each group (overrides: {' '.join(groups)})")
            with self._hydra():
                cfg = compose(self.config_name, list(groups), return_hydra_config=True)
            choices = {str(group): option for group, option in cfg.hydra.runtime.choices.items()}
            with open_dict(cfg):
                del cfg["hydra"]
            counted = tuple(argument for argument in groups if argument.partition("=")[0] in self._config_groups)
            reference = None if counted == groups else self._get_composition(counted)
            choices = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
            self._compositions[groups] = Composition(cfg, choices, self.dora, reference)
        return self._compositions[groups]

    def _hydra(self) -> initialize_config_dir:
        """Context of Hydra with our configuration."""
        context = initialize_config_dir(str(self.full_config_path), job_name=self._job_name, **self.hydra_kwargs)
        if self._base is not None:
            # Not as `hydra.searchpath` in the YAML: Hydra does not list the groups found by that, and Dora would give
            # other signatures.
            loader: Any = GlobalHydra.instance().config_loader()
            loader.get_search_path().append("base", str(self._base), anchor="main")  # right after our own
            loader.repository = ConfigRepository(loader.get_search_path())
        return context

    def _get_config_groups(self) -> list[str]:
        """The groups with options of their own. Hydra's method lists the same, but takes a fifth of a start of Dora."""
        with self._hydra():
            loader: Any = GlobalHydra.instance().config_loader()
            names = loader.repository.get_group_options

            def below(parent: str) -> Iterator[str]:
                for name in names(parent, ObjectType.GROUP):
                    group = f"{parent}/{name}" if parent else name
                    if names(group, ObjectType.CONFIG):
                        yield group
                    yield from below(group)

            return list(below(""))

    def _options(self) -> dict[str, list[str]]:
        """Options of each config group, those of groups within it by their path."""
        with self._hydra():
            loader: Any = GlobalHydra.instance().config_loader()
            own = {group: list(loader.get_group_options(group)) for group in self._config_groups}
        found: dict[str, list[str]] = {}
        for group, names in own.items():
            for above in (group, *map(str, PurePosixPath(group).parents)):
                inner = group.removeprefix(f"{above}/") + "/" if above != group else ""
                found.setdefault(above, []).extend(f"{inner}{name}" for name in names)
        return found

    def _get_config(self, overrides: Sequence[str] = ()) -> DictConfig:
        with self._hydra():
            return compose(self.config_name, list(overrides))

    def _get_requested_xp(self, sig: str, start: Sequence[str], argv: Sequence[str]) -> Experiment:
        """Experiment of overrides that begin with those of a signature (`dora info -f SIG`).

        It is the frozen one if today's configuration gives another signature, unless the overrides after them do.
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
        return self._thaw(frozen, _simplify_argv(argv))

    def _thaw(self, frozen: Frozen, argv: Sequence[str]) -> Experiment:
        sections = {name: self._base_cfg.get(name) for name in LOCAL_SECTIONS}
        local = {name: OmegaConf.to_container(section) for name, section in sections.items() if section is not None}
        return thaw(frozen, self.dora, argv, local=local, trusted=lambda text: any(text in one for one in self._yaml))

    @cached_property
    def _yaml(self) -> list[str]:
        """Texts of all files of the configuration."""
        folders = [Path(self.full_config_path), *([self._base] if self._base else [])]
        paths = [path for folder in folders for path in sorted(folder.rglob("*.yaml"))]
        return [path.read_text(encoding="utf-8", errors="replace") for path in paths]

    def _read_argv(self, sig: str) -> list[str]:
        xps = self.dora.dir / self.dora.xps
        shared = None if self.dora.shared is None else self.dora.shared / self.dora.xps
        if _SIG.fullmatch(sig) and ((xps / sig).is_dir() or (shared is not None and (shared / sig).is_dir())):
            own = xps / sig / ".argv.json"
            try:
                argv = load_json(own if shared is None or own.exists() else shared / sig / ".argv.json", list)
                if all(type(argument) is str for argument in argv):
                    return list(argv)
                found = "they are not all text"
            except FileNotFoundError:
                found = "there is no .argv.json"
            except (OSError, UnreadableError) as error:
                found = str(error)
            frozen = self._read_frozen(sig)
            if frozen is None:
                raise ConfigError(f"the overrides of {xps / sig} cannot be read: {found}")
            return frozen.argv
        advice = "`dora grid NAME` lists them; set AUDIOTOK_OUTPUT_DIR if they are elsewhere"
        raise ConfigError(f"no experiment with signature {sig!r} in {xps}; {advice}")

    def _read_frozen(self, sig: str) -> Frozen | None:
        path = self.dora.dir / self.dora.xps / sig / FROZEN_FILE
        if not path.exists():
            return None
        try:
            return read_frozen(path)
        except ConfigError as error:
            logger.warning("%s", error)
            return None


def experiment_main(config_name: str, config_path: str, **kwargs: Any) -> Callable[..., ExperimentMain]:
    """Decorator of the training function; see `ExperimentMain`."""
    return partial(ExperimentMain, config_name=config_name, config_path=config_path, **kwargs)


@contextlib.contextmanager
def _explained(*profiles: Path) -> Iterator[None]:
    """Make one line of what Hydra finds wrong with files of the configuration, with the place of a profile's key."""
    try:
        yield
    except ConfigError:
        raise
    except (*_UNREADABLE, ValueError) as error:
        section, _, key = (getattr(error, "full_key", None) or "").partition(".")
        found = (_first_sentence(error) or _first_sentence(error.__cause__ or error)).partition("; full_key: ")[0]
        if match := _NOT_SET.search(found):
            advice = f"set it, or give a default, such as ${{oc.env:{match[1]},DEFAULT}}"
            found = f"{match[1]} is not set in the environment; {advice}"
        if section != "slurm":
            raise ConfigError(f"the configuration cannot be composed: {found}.") from error
        name = os.environ.get(CLUSTER_VARIABLE) or DEFAULT_CLUSTER
        raise ConfigError(f"slurm.{key} in {place_of(name, re.split(r'[.[]', key)[0], *profiles)}: {found}.") from error


def _check_set(missing: Collection[str]) -> None:
    if missing:
        keys = sorted(missing)
        have, them = ("has", "it") if len(keys) == 1 else ("have", "them")
        advice = f"give {them}: {' '.join(f'{key}=VALUE' for key in keys)}"
        raise ConfigError(f"{', '.join(keys)} {have} no value yet ('???' in the configuration); {advice}")


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines)[:400].rstrip(".;")


def _write_argv(path: Path, argv: Sequence[str]) -> None:
    text = json.dumps(list(argv))
    with contextlib.suppress(FileNotFoundError, UnreadableError):
        if read_text(path) == text:
            return
    write_text(path, text)

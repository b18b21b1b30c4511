"""Changes the few keys that may change of an experiment that has trained, and keeps a dated record: `amended.json`.

The record lies beside `frozen.json`, which stays as it is: a run takes its frozen configuration with the amendments
over it. Which keys may change stands in MAY_CHANGE of `audiotok.status.amendments`: the length of the training, and
what changes nothing that a training step computes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from audiotok.config_text import value_at
from audiotok.errors import ConfigError
from audiotok.experiments.frozen import FROZEN_FILE, Frozen, has_trained, read_frozen
from audiotok.experiments.overrides import aligned, is_of_values, leaves_of, parse_override
from audiotok.files import load_json, write_json
from audiotok.status import AMENDED_FILE, State, experiment_state, read_status
from audiotok.status.amendments import EPOCHS, MAY_CHANGE, amendment_text, may_change, read_amendments
from audiotok.text import nearest_first, number_in

if TYPE_CHECKING:
    from dora.xp import XP

    from audiotok.experiments.main import ExperimentMain

_VERSION = 1


@dataclass(frozen=True)
class Extension:
    """What `extend` would write, or has written."""

    sig: str
    folder: Path
    frozen: Frozen  # as it was before
    done: int  # epochs
    keys: Mapping[str, tuple[Any, Any]]  # values before and since, by key

    @property
    def epochs(self) -> tuple[int, int] | None:
        """Epochs in all, before and since; None if they stay."""
        return self.keys.get(EPOCHS)

    def __str__(self) -> str:
        return amendment_text({"keys": self.keys})

    def write(self, user: str) -> None:
        """Append it to the record, in one step; to be called under the submission lock.

        Raises:
            OSError: if the disk refuses; the record is then as before.
        """
        keys = {key: list(pair) for key, pair in self.keys.items()}
        one = {"time": time.time(), "user": user, "epochs_done": self.done, "keys": keys}
        content = {"version": _VERSION, "sig": self.sig, "amendments": [*read_amendments(self.folder), one]}
        write_json(self.folder / AMENDED_FILE, content)


def plan_extension(main: "ExperimentMain", sig: str, argv: Sequence[str]) -> Extension | None:
    """Check what overrides would change of an experiment; nothing is written.

    Args:
        main: the entry point of its project.
        sig: its signature.
        argv: overrides of single keys, such as `optim.epochs=300`.

    Returns:
        The change; None if the experiment has these values already.

    Raises:
        ConfigError: if there is no such experiment, it has not trained yet, or a key or a value may not be.
    """
    xp = main.get_xp_from_sig(sig)
    folder = Path(xp.folder)
    frozen = read_frozen(folder / FROZEN_FILE)
    if not has_trained(xp):
        advice = f"give {' '.join(argv)} to a new experiment"
        raise ConfigError(f"{sig} has not trained a step yet, so there is nothing to extend; {advice}")
    done = epochs_done(xp)
    values = dict(_checked(main, sig, frozen, argument) for argument in argv)
    plain = OmegaConf.to_container(xp.cfg, resolve=False)  # with what it was submitted with, and what was amended
    before = {key: value_at(plain, tuple(key.split("."))) for key in values}
    keys = {key: (before[key], value) for key, value in values.items() if value != before[key]}
    if EPOCHS in keys:
        _check_epochs(sig, before[EPOCHS], values[EPOCHS], done, folder)
    after = replace(frozen, amended={**frozen.amended, **values})
    if found := [line for line in main.faults(after) if line not in main.faults(frozen)]:
        raise ConfigError(f"{sig}: {'; '.join(found)}")
    return Extension(sig, folder, frozen, done, keys) if keys else None


def epochs_done(xp: "XP") -> int:
    """Epochs in the history of an experiment, or those that its trainer counted where that cannot be read."""
    try:
        return len(load_json(Path(xp.history), list))
    except (OSError, ValueError):
        return int(number_in(read_status(xp.folder) or {}, "epoch") or 0)


def _checked(main: "ExperimentMain", sig: str, frozen: Frozen, argument: str) -> tuple[str, Any]:
    """Key and value of an override that may be."""
    try:
        override = parse_override(aligned(argument, frozen.cfg))
    except HydraException as error:
        raise ConfigError(f"{' '.join(str(error).split())} (override {argument!r})") from error
    key, value = override.key_or_group, override.value()
    if not is_of_values(override) or override.type is not OverrideType.CHANGE or isinstance(value, dict):
        raise ConfigError(f"override {argument!r} is not of a single key; write key=value, such as {EPOCHS}=300")
    if "${" in str(value):
        raise ConfigError(f"override {argument!r} refers to something else; write its value, such as {EPOCHS}=300")
    keys = {".".join(map(str, path)) for path, _ in leaves_of(frozen.cfg)} | main.keys
    if key not in keys:
        near = ", ".join(nearest_first(key, keys)[:3])
        raise ConfigError(f"override {argument!r}: {sig} has no key {key!r}; nearest: {near}")
    if not may_change(key):
        why = _way_out(main, sig, argument, key)
        raise ConfigError(f"{key} may not change of an experiment that has trained: {why}")
    return key, value


def _way_out(main: "ExperimentMain", sig: str, argument: str, key: str) -> str:
    if main.dora.is_excluded(key):
        return f"it is of a run, not of the experiment; give it to the run: dora run -f {sig} {argument}"
    known = ", ".join(MAY_CHANGE)
    return (
        f"what has been trained so far was computed with its value. What may change: {known}. For another value start "
        f"a new experiment from these weights: {argument} continue_from=//sig/{sig}"
    )


def _check_epochs(sig: str, before: int, epochs: Any, done: int, folder: Path) -> None:
    """Refuse epochs that leave nothing to do; but the number that it has completed with may be set again.

    Fewer than before are refused while a job may run, too: it keeps those before, and may have passed the new end.
    """
    if type(epochs) is not int:
        raise ConfigError(f"{EPOCHS}={epochs}: give a whole number of epochs above the {done} that {sig} has done")
    verdict = experiment_state(folder)
    completed = verdict is not None and verdict.state in (State.COMPLETED, State.EXTENDED)
    if epochs < done or (epochs == done and not completed):
        raise ConfigError(f"{EPOCHS}={epochs}: {sig} has done {done} epochs; give more than that")
    if verdict is not None and verdict.state.live and epochs < before:
        found = f"{sig} is {verdict.state}, and its job trains {before}"
        raise ConfigError(f"{EPOCHS}={epochs}: {found}; give more than that, or cancel it first")

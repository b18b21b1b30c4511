"""Dora's experiment, whose configuration is built late: most are only asked for their signature."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dora.conf import DoraConfig
from dora.xp import XP, _get_sig
from omegaconf import DictConfig

from audiotok.experiments.plain import Plain


class Experiment(XP):
    """Dora's experiment; its configuration is only built when somebody asks for it.

    Args:
        dora: where and under what rules it lives.
        argv: its overrides.
        delta: what they change, still with the keys that do not count.
        build: makes the configuration.
        values: makes its frozen form, see `Composition.frozen`.
        choices: the option of each config group.
        sig: signature; None: that of `delta`.
        is_frozen: it comes from a frozen file rather than from the configuration as it is now.
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
        sig: str | None = None,
        is_frozen: bool = False,
    ) -> None:
        counted = [[key, value] for key, value in delta if not dora.is_excluded(key)]
        self._build, self._values = build, values
        self._cfg: DictConfig | None = None
        self.choices, self.is_frozen = dict(choices), is_frozen
        super().__init__(dora=dora, cfg=None, argv=list(argv), sig=sig or _get_sig(counted))
        self.delta: Any = counted  # set here: Dora would import torch to look for tensors in it

    @property
    def cfg(self) -> Any:
        """Configuration, as Hydra composes it."""
        if self._cfg is None:
            self._cfg = self._build()
        return self._cfg

    @cfg.setter
    def cfg(self, value: Any) -> None:
        self._cfg = value

    def frozen_values(self) -> Plain:
        """Return its frozen form, as `frozen.json` holds it; it is shared, so leave it as it is."""
        return self._values()

    def __getstate__(self) -> dict[str, Any]:
        cfg, values = self.cfg, self._values()
        return {**self.__dict__, "_build": Constant(cfg), "_values": Constant(values)}


@dataclass(frozen=True)
class Constant:
    """Function without arguments that returns a constant; unlike a lambda, it can be pickled."""

    value: Any

    def __call__(self) -> Any:
        """The constant."""
        return self.value

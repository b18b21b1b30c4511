"""How an experiment gets its signature: Dora's Hydra entry point, made faster and clearer about mistakes.

Dora's signature is a hash of what the overrides change with respect to the composed base, so it is Dora's own code that
computes it here; this class only composes each base once and turns a bad override into one line.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from dora.hydra import HydraMain
from dora.xp import XP
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from audiotok.errors import ConfigError

_SIG = re.compile(r"[0-9a-zA-Z_-]+")


class ExperimentMain(HydraMain):
    """Entry point of the experiments; see `dora.hydra.HydraMain`."""

    _slow = False  # bases are composed once, so a process pool costs more than it saves

    def __init__(self, main: Callable[..., Any], config_name: str, config_path: str, **kwargs: Any) -> None:
        self._bases: dict[tuple[str, ...], tuple[DictConfig, list[tuple[str, str]]]] = {}
        super().__init__(main, config_name=config_name, config_path=config_path, **kwargs)

    def get_xp(self, argv: Sequence[str]) -> XP:
        """Experiment of a list of overrides.

        Raises:
            ConfigError: if an override has no `=`, or names a group or key that does not exist.
        """
        for argument in argv:
            if "=" not in argument:
                raise ConfigError(f"override {argument!r} has no '='; write key=value, such as losses.mmd=10")
        try:
            xp: XP = super().get_xp(argv)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{_first_sentence(error)} (overrides: {' '.join(argv)})") from error
        return xp

    def get_argv_from_sig(self, sig: str) -> Sequence[str]:
        """Overrides that a signature stands for.

        Raises:
            ConfigError: if no experiment has it here.
        """
        xps = self.dora.dir / self.dora.xps
        if not _SIG.fullmatch(sig) or not (xps / sig).is_dir():
            raise ConfigError(
                f"no experiment with signature {sig!r} in {xps}; `dora grid NAME` lists them; set "
                "AUDIOTOK_OUTPUT_DIR if they are elsewhere"
            )
        argv: Sequence[str] = super().get_argv_from_sig(sig)
        return argv

    def _get_base_config(self, overrides: Sequence[str] = ()) -> tuple[DictConfig, list[tuple[str, str]]]:
        groups = tuple(o for o in overrides if o.split("=", 1)[0] in self._config_groups)
        if groups not in self._bases:
            self._bases[groups] = super()._get_base_config(list(groups))
        base, delta = self._bases[groups]
        return base, list(delta)


def experiment_main(
    config_name: str, config_path: str, **kwargs: Any
) -> Callable[[Callable[..., Any]], ExperimentMain]:
    """Decorator of the training function; the arguments are Hydra's."""

    def decorate(main: Callable[..., Any]) -> ExperimentMain:
        return ExperimentMain(main, config_name=config_name, config_path=config_path, **kwargs)

    return decorate


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines)[:400].rstrip(".;")

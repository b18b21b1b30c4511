"""Run an experiment with its frozen configuration, without Hydra.

So `hydra.*` settings have no effect, there is no `HydraConfig`, and the current folder stays. The log and the `.hydra/`
files are written here, for tools that read them.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dora.xp import XP
from hydra import __version__ as hydra_version
from omegaconf import OmegaConf

from audiotok.experiments.overrides import escaped
from audiotok.files import write_text


def run_frozen(xp: XP, main: Callable[..., Any], job_name: str, config_name: str) -> Any:
    """Call the training function with the configuration of an experiment, whose folder must exist.

    Args:
        xp: the experiment.
        main: the training function, whose result is returned.
        job_name: as Hydra has it; names the log.
        config_name: as Hydra has it.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0:
        _write_hydra_files(xp, job_name, config_name)
        handlers.append(logging.FileHandler(xp.folder / f"{job_name}.log"))
    form = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's
    logging.basicConfig(level=logging.INFO, format=form, handlers=handlers)
    return main(xp.cfg)


def _write_hydra_files(xp: XP, job_name: str, config_name: str) -> None:
    folder = xp.folder / ".hydra"
    folder.mkdir(exist_ok=True)
    runtime = {"version": hydra_version, "cwd": str(Path.cwd()), "output_dir": str(xp.folder)}
    hydra = {
        "overrides": {"hydra": [], "task": list(xp.argv)},
        "job": {"name": job_name, "config_name": config_name},
        "runtime": {**runtime, "choices": getattr(xp, "choices", {})},
    }
    write_text(folder / "config.yaml", OmegaConf.to_yaml(xp.cfg))
    write_text(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(escaped(list(xp.argv)))))
    write_text(folder / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": escaped(hydra)})))

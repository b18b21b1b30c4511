"""Entry point of every experiment: `dora run solver=compression/demo`, and from Python the solver of a signature.

Nothing heavy is imported here: `dora grid` and `dora info` go through this file, and need neither torch nor a GPU. That
is why solvers are imported where they are built.
"""

import logging
import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from dora import XP
from dora.git_save import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from audiotok.errors import AudiotokError, ConfigError, DivergedError
from audiotok.experiment import experiment_main
from audiotok.status import StatusWriter
from launchers.hooks import install

if TYPE_CHECKING:
    from audiotok.solvers import StandardSolver

logger = logging.getLogger(__name__)


def get_solver(cfg: DictConfig) -> "StandardSolver":
    """Solver of a resolved configuration; to be called inside the experiment.

    Raises:
        ConfigError: if a value of the configuration cannot be used.
        DataError: if a manifest or its audio cannot be used.
    """
    from audiotok import solvers

    cfg = deepcopy(cfg)
    OmegaConf.resolve(cfg)
    for split in ("train", "valid", "evaluate", "generate"):
        if cfg.datasource[split]:
            cfg.datasource[split] = str(to_absolute_path(cfg.datasource[split]))
    return solvers.get_solver(cfg)


def get_solver_from_xp(
    xp: XP, override_cfg: Mapping[str, Any] | None = None, restore: bool = True, load_best: bool = True
) -> "StandardSolver":
    """Solver of an experiment, with its data, model and weights, to play with in a notebook.

    Args:
        xp: the experiment, such as `main.get_xp_from_sig(SIG)`.
        override_cfg: nested values laid over its configuration; signature and folder stay the same.
        restore: load the last checkpoint.
        load_best: put the best weights into the model rather than the last ones.
    """
    cfg = OmegaConf.merge(xp.cfg, OmegaConf.create(dict(override_cfg or {})))
    assert isinstance(cfg, DictConfig)
    with xp.enter():
        solver = get_solver(cfg)
        if restore:
            solver.restore(load_best=load_best)
    return solver


def get_solver_from_sig(sig: str, override_cfg: Mapping[str, Any] | None = None, **kwargs: Any) -> "StandardSolver":
    """Solver of a signature; see `get_solver_from_xp`.

    Raises:
        ConfigError: if no experiment has this signature.
    """
    return get_solver_from_xp(main.get_xp_from_sig(sig), override_cfg, **kwargs)


@experiment_main(config_path="../config", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train the experiment that the command line describes, from its last checkpoint on."""
    try:
        setup(cfg)
        solver = get_solver(cfg)
        if cfg.show:
            solver.show()
        elif cfg.execute_only:
            run_stage(solver, cfg.execute_only)
        else:
            train(solver)
    except AudiotokError as error:
        logger.error("%s", error)
        sys.exit(2)


def setup(cfg: DictConfig) -> None:
    """Logging to the terminal and the experiment's folder, threads, and the other processes of a distributed run."""
    import flashy
    import torch

    if cfg.logging.level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"logging.level={cfg.logging.level!r}; choose one of: DEBUG, INFO, WARNING, ERROR")
    flashy.setup_logging(level=cfg.logging.level.upper())
    if cfg.num_threads != "auto":
        torch.set_num_threads(cfg.num_threads)
    flashy.distrib.init(backend="nccl" if torch.cuda.is_available() and cfg.device != "cpu" else "gloo")


def train(solver: "StandardSolver") -> None:
    """Train to the last epoch; what happens is told in the experiment's `status.json`."""
    import flashy

    if not flashy.distrib.is_rank_zero():
        solver.run()
        return
    status = StatusWriter(solver.folder, epochs=solver.cfg.optim.epochs)
    solver.on_progress = lambda epoch: status.beat(epoch=epoch - 1)
    status.start()
    try:
        solver.run()
    except DivergedError as error:
        status.end("DIVERGED", str(error))
        raise
    except (KeyboardInterrupt, SystemExit):
        status.end("INTERRUPTED", "stopped by a signal; the same command resumes it")
        raise
    except Exception as error:
        status.end("FAILED", f"{type(error).__name__}: {error}")
        raise
    status.beat(epoch=solver.cfg.optim.epochs)
    status.end("COMPLETED")


def run_stage(solver: "StandardSolver", stage: str) -> None:
    """Run one stage of a trained experiment.

    Raises:
        ConfigError: if it has not been trained.
    """
    if not solver.restore():
        raise ConfigError(
            f"execute_only={stage}, but there is no {solver.checkpoint_path}; train first, or give continue_from"
        )
    solver.run_one_stage(stage)


# The one place where our launchers take the place of Dora's: SLURM through submitit, or a local queue without SLURM.
install(main)

if __name__ == "__main__":
    main()

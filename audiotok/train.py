"""Entry point of every experiment: `dora run solver=compression/demo`, and from Python the solver of a signature.

Exit codes: 0 done; 1 a defect of ours or of the machine, such as a full disk; 2 a mistake of the user; 3 diverged; 143
stopped by a signal, 130 from the keyboard. After 1, 130 and 143 the same command goes on from the last checkpoint.

Nothing heavy is imported here: `dora grid` and `dora info` go through this file, and need neither torch nor a GPU. That
is why solvers are imported where they are built.
"""

import logging
import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from dora import XP, get_xp
from dora.git_save import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from audiotok.errors import AudiotokError, ConfigError, DataError, DivergedError
from audiotok.experiments import experiment_main
from audiotok.launchers.dora_patches import install, tell_mistakes_in_one_line
from audiotok.status import StatusWriter
from audiotok.utils.commit import current_commit

if TYPE_CHECKING:
    from audiotok.solvers import StandardSolver

logger = logging.getLogger(__name__)

tell_mistakes_in_one_line()  # now, as the decorator below reads the configuration

MACHINE_FAILURE, USER_MISTAKE, DIVERGED = 1, 2, 3
"""Exit codes of errors; see above."""


def get_solver(cfg: DictConfig) -> "StandardSolver":
    """Solver of a resolved configuration; to be called inside the experiment.

    Raises:
        ConfigError: if a value of the configuration cannot be used.
        DataError: if a manifest or its audio cannot be used.
    """
    from audiotok import solvers

    cfg = deepcopy(cfg)
    OmegaConf.resolve(cfg)
    resolve_datasource(cfg)
    return solvers.get_solver(cfg)


def resolve_datasource(cfg: DictConfig) -> None:
    """Make the manifests of the splits absolute paths; relative ones count from where dora was run."""
    for split in ("train", "valid", "evaluate", "generate"):
        if cfg.datasource[split]:
            cfg.datasource[split] = str(to_absolute_path(cfg.datasource[split]))


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


@experiment_main(config_path="config", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train the experiment that the command line describes, from its last checkpoint on."""
    try:
        if cfg.show or cfg.execute_only:
            look(cfg)
        else:
            train(cfg)
    except AudiotokError as error:
        logger.error("%s", error)
        sys.exit(exit_code(error))


def exit_code(error: AudiotokError) -> int:
    """Exit code that an error ends the process with."""
    from audiotok.checkpoint import NotSavedError

    if isinstance(error, DivergedError):
        return DIVERGED
    return MACHINE_FAILURE if isinstance(error, NotSavedError) else USER_MISTAKE


def look(cfg: DictConfig) -> None:
    """Show the model, or run one stage; neither changes the experiment."""
    setup(cfg)
    solver = get_solver(cfg)
    if cfg.show:
        solver.show()
    else:
        run_stage(solver, cfg.execute_only)


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


def train(cfg: DictConfig) -> None:
    """Train to the last epoch; what happens, from the first line on, is told in the experiment's `status.json`.

    A signal to stop ends it after the step at hand with `audiotok.solvers.interruption.Interrupted`.
    """
    from dora.distrib import get_distrib_spec

    from audiotok.checkpoint import NotSavedError
    from audiotok.solvers.interruption import Interrupted, StopSignals

    epochs = OmegaConf.select(cfg, "optim.epochs")  # a configuration without solver has none
    status = StatusWriter(get_xp().folder, epochs=epochs, silent=get_distrib_spec().rank > 0)
    with StopSignals() as stop:
        status.start()
        try:
            setup(cfg)
            solver = get_solver(cfg)
            world_size = get_distrib_spec().world_size
            gpus = world_size if solver.device.type == "cuda" else 0
            status.describe(commit=current_commit(), world_size=world_size, gpus=gpus)
            solver.stop_signal = lambda: stop.signum
            solver.on_progress = lambda: tell_progress(solver, status)
            stop.patient = True
            solver.run()
        except BaseException as error:
            end = ending(error)
            if end[0] == "INTERRUPTED":
                logger.warning("%s", end[1])
            status.end(*end)
            if stop.patient and isinstance(error, Interrupted | NotSavedError):  # which all ranks have in common
                leave_others()
            raise
        tell_progress(solver, status)
        status.end("COMPLETED")
        leave_others()


def tell_progress(solver: "StandardSolver", status: StatusWriter) -> None:
    """Tell where training is."""
    durations = [sum(stage.get("duration", 0.0) for stage in epoch.values()) for epoch in solver.history]
    status.beat(
        epoch=len(solver.history),
        update=solver.progress.updates,
        updates_per_epoch=solver.updates_per_epoch,
        epoch_s=sum(durations) / len(durations) if durations else None,
    )


def ending(error: BaseException) -> tuple[str, str, str]:
    """State, reason and kind that `status.json` says of an error that ended training."""
    from audiotok.solvers.interruption import Interrupted

    if isinstance(error, Interrupted):
        return "INTERRUPTED", error.reason, "interrupted"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "INTERRUPTED", "stopped at once; the same command goes on from the last checkpoint", "interrupted"
    if isinstance(error, DivergedError):
        return "DIVERGED", str(error), "diverged"
    if isinstance(error, AudiotokError):
        kind = "config" if isinstance(error, ConfigError) else "data" if isinstance(error, DataError) else "error"
        return "FAILED", str(error), kind
    first_line = (str(error).splitlines() or [""])[0]
    return "FAILED", f"{type(error).__name__}: {first_line}", "error"


def leave_others() -> None:
    """Leave the other ranks, all at once: the first to go with an error may have the others killed."""
    from torch import distributed

    from audiotok.distributed import is_distributed

    if is_distributed():
        distributed.barrier()
        distributed.destroy_process_group()


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

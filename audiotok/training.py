"""What an entry point does with a configuration: train, show the model or run one stage.

`audiotok.train` calls it, and the `train.py` of a project. Torch is imported in a run only: `dora grid` has no need.
"""

import logging
import os
import re
import sys
from typing import TYPE_CHECKING

from dora import get_xp
from dora.git_save import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from audiotok.config_text import escaped
from audiotok.errors import AudiotokError, ConfigError, DataError, DivergedError
from audiotok.experiments.keys import Additions
from audiotok.experiments.overrides import dotted, leaves_of
from audiotok.schema import SCHEMA
from audiotok.status import StatusWriter
from audiotok.status.amendments import may_change
from audiotok.terminal import in_colour
from audiotok.utils.commit import current_commit
from audiotok.utils.memory import keep_freed_memory
from audiotok.utils.threads import spinning

if TYPE_CHECKING:
    from audiotok.solvers import StandardSolver

logger = logging.getLogger(__name__)
_ESCAPE = re.compile(r"\x1b\[[\d;]*m")


class _PlainFormatter(logging.Formatter):
    """Lines without escape codes, which flashy puts into its messages, for files and pipes."""

    def format(self, record: logging.LogRecord) -> str:
        return _ESCAPE.sub("", super().format(record))


# What overrides may add: keys of the schema that no configuration file sets, and, with +, arguments by any name.
ADDITIONS = Additions(free=(*SCHEMA.keys, "*_params.*", "slurm.*.*"))


def run(cfg: DictConfig) -> None:
    """Do what a configuration describes, inside the experiment; an error ends the process with its exit code."""
    try:
        if cfg.show or cfg.execute_only:
            _look(cfg)
        else:
            _train(cfg)
    except AudiotokError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)


def get_solver(cfg: DictConfig) -> "StandardSolver":
    """Solver of a configuration; called inside the experiment.

    Raises:
        ConfigError: if a value of the configuration cannot be used.
        DataError: if a manifest or its audio cannot be used.
    """
    from audiotok import solvers

    is_struct = OmegaConf.is_struct(cfg)
    # Not `OmegaConf.resolve`: it leaves an escaped `${` as an interpolation, which the next reading resolves.
    cfg = OmegaConf.create(escaped(OmegaConf.to_container(cfg, resolve=True)))
    OmegaConf.set_struct(cfg, is_struct)
    _check(cfg)
    for split in ("train", "valid", "evaluate", "generate"):
        if cfg.datasource[split]:  # a relative path counts from where dora was run
            cfg.datasource[split] = str(to_absolute_path(cfg.datasource[split]))
    return solvers.get_solver(cfg)


def _check(cfg: DictConfig) -> None:
    """ConfigError for what the schema refuses, of whatever version the configuration is."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    SCHEMA.check({str(key): value for key, value in values.items()})


def _look(cfg: DictConfig) -> None:
    """Show the model, or run one stage; neither changes the experiment."""
    _setup(cfg)
    solver = get_solver(cfg)
    if cfg.show:
        solver.show()
    elif solver.restore():
        solver.run_one_stage(cfg.execute_only)
    else:
        missing = f"execute_only={cfg.execute_only}, but there is no {solver.checkpoint_path}"
        raise ConfigError(f"{missing}; train first, or give continue_from")


def _setup(cfg: DictConfig) -> None:
    """Set up logging to the terminal and the experiment's folder, memory, threads and the processes of the run."""
    _check(cfg)
    keep_freed_memory()
    # flashy imports Weights & Biases wherever it is installed: half a second of every start, and its end if that fails.
    hidden = sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]
    import flashy
    import torch

    if hidden is None:
        del sys.modules["wandb"]

    from audiotok.solvers.randomness import set_deterministic

    flashy.setup_logging(level=cfg.logging.level.upper())
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not in_colour(handler.stream):
            handler.setFormatter(
                _PlainFormatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s", "%m-%d %H:%M:%S")
            )
    if cfg.num_threads != "auto":
        torch.set_num_threads(cfg.num_threads)
    on_cpu = cfg.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and (advice := spinning(torch.get_num_threads(), os.environ)):
        logger.info("%s", advice)
    set_deterministic(bool(cfg.get("deterministic")))  # a run that was frozen before has no such key
    if cfg.get("tf32") is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = cfg.tf32
    flashy.distrib.init(backend="gloo" if on_cpu else "nccl")


def _train(cfg: DictConfig) -> None:
    """Train to the last epoch, with `status.json` up to date; a signal ends it with `Interrupted` after a step."""
    from dora.distrib import get_distrib_spec

    from audiotok.checkpoint import NotSavedError
    from audiotok.solvers.interruption import Interrupted, StopSignals

    status = StatusWriter(get_xp().folder, epochs=cfg.optim.epochs, silent=get_distrib_spec().rank > 0)
    with StopSignals() as stop:
        status.start()
        try:
            _setup(cfg)
            _amend_as_source(cfg)
            solver = get_solver(cfg)
            world_size = get_distrib_spec().world_size
            gpus = world_size if solver.device.type == "cuda" else 0
            status.describe(commit=current_commit(), world_size=world_size, gpus=gpus)
            solver.stop_signal = lambda: stop.signum
            solver.on_progress = lambda: _report_progress(solver, status)
            stop.patient = True
            solver.run()
        except BaseException as error:
            state, reason, kind = _ending(error)
            if state == "INTERRUPTED":
                logger.warning("%s", reason)
            status.end(state, reason, kind)
            # Only errors that all ranks have in common: after any other, one rank would wait here for ever.
            if stop.patient and isinstance(error, Interrupted | NotSavedError):
                _leave_others()
            raise
        _report_progress(solver, status)
        status.end("COMPLETED")
        _leave_others()


def _amend_as_source(cfg: DictConfig) -> None:
    """Take what may be amended of an experiment from rank 0; a collective.

    Each rank reads `amended.json` by itself. If it is written meanwhile, one of them would train longer than the rest,
    and wait for them for ever. What is equal stays as it is written: as `${oc.env:NAME}`, it keeps a secret out of
    checkpoints.
    """
    from audiotok.distributed import object_of_source

    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    own = {dotted(path): value for path, value in leaves_of({str(key): value for key, value in plain.items()})}
    for key, value in object_of_source({key: own[key] for key in own if may_change(key, own[key])}).items():
        if key not in own or own[key] != value:
            OmegaConf.update(cfg, key, value, force_add=True)


def _report_progress(solver: "StandardSolver", status: StatusWriter) -> None:
    durations = [sum(stage.get("duration", 0.0) for stage in epoch.values()) for epoch in solver.history]
    status.beat(
        epoch=len(solver.history),
        update=solver.progress.updates,
        updates_per_epoch=solver.updates_per_epoch,
        epoch_s=sum(durations) / len(durations) if durations else None,
        warning=solver.watch.text,
    )


def _ending(error: BaseException) -> tuple[str, str, str]:
    """State, reason and kind in `status.json` of an error that ended training."""
    from audiotok.solvers.interruption import Interrupted

    if isinstance(error, Interrupted):
        return "INTERRUPTED", error.reason, "interrupted"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "INTERRUPTED", "stopped at once; the same command resumes from the last checkpoint", "interrupted"
    if isinstance(error, DivergedError):
        return "DIVERGED", str(error), "diverged"
    if isinstance(error, AudiotokError):
        kind = "config" if isinstance(error, ConfigError) else "data" if isinstance(error, DataError) else "error"
        return "FAILED", str(error), kind
    first_line = (str(error).splitlines() or [""])[0]
    return "FAILED", f"{type(error).__name__}: {first_line}", "error"


def _leave_others() -> None:
    """Leave the other ranks, all at once: the first to end with an error may have the others killed."""
    from torch import distributed

    from audiotok.distributed import is_distributed

    if is_distributed():
        distributed.barrier()
        distributed.destroy_process_group()

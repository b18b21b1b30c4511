"""Entry point of Dora: `dora run solver=compression/demo`; from Python, the solver of a signature.

Exit codes: 0 done; 1 a defect of ours or of the machine, such as a full disk; 2 a mistake of the user; 3 diverged; 143
stopped by a signal, 130 from the keyboard. After 1, 130 and 143 the same command resumes from the last checkpoint.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dora import XP
from omegaconf import DictConfig, OmegaConf

from audiotok import training
from audiotok.experiments import experiment_main
from audiotok.launchers.dora_patches import install, report_mistakes_in_one_line
from audiotok.schema import SCHEMA
from audiotok.training import get_solver

if TYPE_CHECKING:
    from audiotok.solvers import StandardSolver

__all__ = ["get_solver", "get_solver_from_sig", "get_solver_from_xp", "main"]

report_mistakes_in_one_line()  # now, as the decorator below reads the configuration


@experiment_main(
    config_path="config", config_name="config", version_base="1.3", additions=training.ADDITIONS, schema=SCHEMA
)
def main(cfg: DictConfig) -> None:
    """Train the experiment that the command line describes, from its last checkpoint on."""
    training.run(cfg)


def get_solver_from_xp(
    xp: XP, override_cfg: Mapping[str, Any] | None = None, restore: bool = True, load_best: bool = True
) -> "StandardSolver":
    """Solver of an experiment, with its data, model and weights.

    Args:
        xp: such as `main.get_xp_from_sig(SIG)`.
        override_cfg: nested values over those of its configuration; signature and folder stay the same.
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


# The one place where our launchers take the place of Dora's: SLURM, or a local queue without SLURM.
install(main)

if __name__ == "__main__":
    main()

"""Solvers: the training loop, and what one step of each kind of model does."""

from omegaconf import DictConfig

from audiotok.errors import ConfigError
from audiotok.solvers.compression import CompressionSolver
from audiotok.solvers.lm import LMSolver
from audiotok.solvers.solver import StandardSolver

SOLVERS: dict[str, type[StandardSolver]] = {"compression": CompressionSolver, "lm": LMSolver}


def get_solver(cfg: DictConfig) -> StandardSolver:
    """Solver named by `cfg.solver`, built inside the current experiment; ConfigError if there is no such solver."""
    if cfg.solver not in SOLVERS:
        raise ConfigError(
            f"solver={cfg.solver!r}; choose a preset such as solver=compression/encodec_mmd_32khz "
            f"(solvers: {', '.join(SOLVERS)})"
        )
    return SOLVERS[cfg.solver](cfg)


__all__ = ["CompressionSolver", "LMSolver", "StandardSolver", "get_solver"]

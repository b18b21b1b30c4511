"""A training process that sends itself SIGTERM: `python stopped_rank.py RANK UPDATE OVERRIDES…`.

The process of that rank does so in the middle of that update, counted over all epochs; update 0 never comes. Rank 1
starts with an epoch more than rank 0, as if the experiment had been extended between their readings of its file.
"""

import os
import signal
import sys

import flashy
from omegaconf import DictConfig

from audiotok import train, training
from audiotok.solvers import StandardSolver


def run(kill_rank: int, kill_update: int, overrides: list[str]) -> None:
    """Train as `dora run` does."""
    original = StandardSolver.after_step

    def after_step(self: StandardSolver) -> None:
        done = len(self.history) * self.updates_per_epoch + self.progress.updates
        if done == kill_update and self.is_training and flashy.distrib.rank() == kill_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    StandardSolver.after_step = after_step  # type: ignore[method-assign]
    setup = training._setup

    def extended(cfg: DictConfig) -> None:
        cfg.optim.epochs += os.environ["RANK"] == "1"
        setup(cfg)

    training._setup = extended
    sys.argv[1:] = overrides
    train.main()


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

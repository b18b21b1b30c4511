"""Runs a task of a pending SLURM job whose script, by an earlier version, holds `-m launchers.job.task FOLDER`."""

import sys
from pathlib import Path

from audiotok.launchers.slurm.inside import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))

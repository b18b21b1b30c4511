"""Runs a task of a SLURM job that was submitted by an earlier version.

The scripts of jobs that still wait in a queue hold `python -u -m launchers.job.task FOLDER`; new ones
`audiotok.launchers.slurm.inside`.
"""

import sys
from pathlib import Path

from audiotok.launchers.slurm.inside import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))

"""Runs an experiment with the code of a snapshot: `python -P -m audiotok.experiments.job PACKAGE.train OVERRIDES`.

As `dora run OVERRIDES` does, which however imports from the current folder first, whatever was edited there since.
Modules come from PYTHONPATH, see `audiotok.experiments.snapshot`; the current folder stays the user's.
"""

import importlib
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the training function of a module."""
    module, *argv = sys.argv[1:]
    code = Path(os.environ["AUDIOTOK_CODE"]).resolve()
    if not code.is_dir():
        sys.exit(f"error: the code of this job is gone, {code}; submit the experiment again.")
    sys.argv = ["dora", *argv]  # where Dora reads the overrides; our one-line errors know the command by it
    training = importlib.import_module(module)
    file = Path(str(training.__file__)).resolve()
    if not file.is_relative_to(code) and "site-packages" not in file.parts:
        # An editable installation can have a finder that comes before PYTHONPATH.
        sys.exit(f"error: {module} comes from {file}, not from {code}; set `code: live` in the cluster profile.")
    training.main()


if __name__ == "__main__":
    main()

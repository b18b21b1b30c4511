"""Any number of experiments, as the environment tells: a grid file that a test can edit without a file."""

import contextlib
import json
import os

from dora.explore import Explorer, Launcher


@Explorer
def explorer(launcher: Launcher) -> None:
    launcher.slurm_(**json.loads(os.environ.get("TINY_SLURM", "{}")))
    launcher.bind_(json.loads(os.environ.get("TINY_OPTIONS", "{}")))
    with launcher.job_array() if os.environ.get("TINY_ARRAY") else contextlib.nullcontext():
        for values in json.loads(os.environ.get("TINY_RUNS", "[]")):
            asked = values.pop("slurm", {})
            (launcher.slurm(**asked) if asked else launcher)(values)

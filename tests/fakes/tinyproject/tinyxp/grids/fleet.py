"""Four experiments in one array, the third of which fails."""

import os
from typing import Any

from dora.explore import Explorer, Launcher


@Explorer
def explorer(launcher: Launcher) -> None:
    options: dict[str, Any] = {"seconds": float(os.environ.get("TINY_SECONDS", "0.3"))}
    launcher.slurm_(gpus=int(os.environ.get("TINY_GPUS", "0")))
    with launcher.job_array():
        for index in range(1, 5):
            launcher({"index": index, "end": "exception" if index == 3 else "well", **options})

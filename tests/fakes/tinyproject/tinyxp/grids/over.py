"""A grid over the grid `many`: an experiment from each of its experiments, with index 11 from that with index 1."""

import json
import os

from dora.explore import Explorer, Launcher

from audiotok.launchers.grid_file import experiments


@Explorer
def explorer(launcher: Launcher) -> None:
    launcher.bind_(json.loads(os.environ.get("TINY_OVER", "{}")))
    with launcher.job_array():
        for one in experiments("many"):
            launcher({"index": 10 + one.overrides["index"], "continue_from": one.checkpoint})

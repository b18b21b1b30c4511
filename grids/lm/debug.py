"""Does everything run? A tiny language model on each codec of compression.debug, seconds each."""

from dora import Launcher

from audiotok.explorers import LMExplorer
from audiotok.launchers.grid_file import experiments


@LMExplorer
def explorer(launcher: Launcher) -> None:
    """One on each codec."""
    launcher.bind_(solver="lm/debug")
    with launcher.job_array():
        for codec in experiments("compression.debug"):
            launcher(compression_model_checkpoint=codec.checkpoint)

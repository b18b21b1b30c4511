"""Does everything run? Four tiny experiments, seconds each: with the MMD and without, at two seeds."""

from dora import Launcher

from audiotok.explorers import CompressionExplorer


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """Weight 0 and 1."""
    launcher.bind_(solver="compression/debug")
    with launcher.job_array():
        for weight in (0.0, 1.0):
            for seed in (1, 2):
                launcher({"losses.mmd": weight, "seed": seed})

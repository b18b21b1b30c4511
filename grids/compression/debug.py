"""Does everything run? Two tiny experiments, seconds each."""

from dora import Launcher

from audiotok.explorers import CompressionExplorer


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """One experiment with the MMD and one without."""
    launcher.bind_(solver="compression/debug")
    with launcher.job_array():
        launcher()
        launcher({"losses.mmd": 0.0})

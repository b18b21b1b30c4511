"""Three experiments that would take ten minutes, one of them deaf to SIGTERM."""

from dora.explore import Explorer, Launcher


@Explorer
def explorer(launcher: Launcher) -> None:
    launcher.slurm_(gpus=0)
    for index in range(1, 4):
        launcher({"index": index, "seconds": 600, "end": "stubborn" if index == 1 else "well"})

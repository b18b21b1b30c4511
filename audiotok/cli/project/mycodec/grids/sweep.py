"""What does the weight of the MMD buy? Three weights at two seeds."""

from dora import Launcher

from audiotok.explorers import CompressionExplorer


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """One job array."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=60)  # small enough to run without a GPU
    launcher.bind_(solver="compression/mine", device="cpu")
    with launcher.job_array():
        for weight in (0.0, 1.0, 10.0):
            for seed in (1, 2):
                launcher({"losses.mmd": weight, "seed": seed})

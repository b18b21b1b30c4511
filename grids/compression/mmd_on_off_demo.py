"""Does the MMD lower the dependence of codebooks on held-out music? The same small run with and without, over seeds."""

from dora import Launcher

from audiotok.explorers import CompressionExplorer

SEEDS = [1, 2, 3]
WEIGHTS = [0.0, 10.0]


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """Two conditions, paired by seed; more held-out clips than the demo, as mutual information needs frames."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=60)
    launcher.bind_(solver="compression/demo", device="cpu")
    launcher.bind_({"mmd.sigmas": "median", "dataset.evaluate.num_samples": 128, "optim.epochs": 8})
    with launcher.job_array():
        for seed in SEEDS:
            for weight in WEIGHTS:
                launcher({"seed": seed, "losses.mmd": weight})

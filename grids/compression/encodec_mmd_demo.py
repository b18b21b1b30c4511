"""Does the MMD make the codebooks of a trained codec less dependent, at the same quality?

`make demo`: the codec of the package is trained on, without the MMD and with two shares of it, three seeds each.
Planned comparison: `evaluate.mi_groups_delay` (the criterion delays the codebooks, too) and `evaluate.sisdr` of
each share against the baseline of the same seed.
"""

from dora import Launcher

from audiotok.explorers import CompressionExplorer

SEEDS = [1, 2, 3]
SHARES = [0.0, 0.5, 2.0]


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """Three conditions, paired by seed; a core each."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=60)
    launcher.bind_(solver="compression/demo_mmd", device="cpu")
    with launcher.job_array():
        for seed in SEEDS:
            for share in SHARES:
                launcher({"losses.mmd": share, "seed": seed})

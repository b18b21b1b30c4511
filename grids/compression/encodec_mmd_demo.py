"""Does the MMD make the codebooks of a trained codec less dependent, at the same quality?

`make demo`: the codec of the package is trained on, without the MMD and with a share of 4 of it, four seeds each.
Planned comparison: `evaluate.mi_groups_delay` (the criterion delays the codebooks, too) and `evaluate.sisdr` of
the share against the baseline of the same seed. Two conditions with more seeds, as more conditions would show less.
"""

from dora import Launcher

from audiotok.explorers import CompressionExplorer

SEEDS = [1, 2, 3, 4]
SHARES = [0.0, 4.0]


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """Two conditions, paired by seed; a core each."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=60)
    launcher.bind_(solver="compression/demo_mmd", device="cpu")
    with launcher.job_array():
        for seed in SEEDS:
            for share in SHARES:
                launcher({"losses.mmd": share, "seed": seed})

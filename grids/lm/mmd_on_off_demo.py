"""What does predicting the codebooks of a frame side by side cost, on codecs trained with the MMD and without?

Two language models on each codec of compression.mmd_on_off_demo, which trains them first. The comparison: evaluate.gap,
in bits a frame, with the MMD against without, paired by the seed of the codec; the language models of a codec share its
codes, so that their mean is one value. Beside it bits_parallel and bits_chain, which show whether the codes as a whole
became harder to predict, and the evaluate metrics of the codecs. The MMD does what it is for if the gap falls and the
codecs are as good as before; three codecs a condition show the sign of a large effect, not the size of a small one.
"""

from dora import Launcher

from audiotok.explorers import LMExplorer
from audiotok.launchers.grid_file import experiments

SEEDS = [1, 2]


@LMExplorer
def explorer(launcher: Launcher) -> None:
    """Each codec with each seed of its language model; what is on one codec shares an array that waits for it."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=60)
    launcher.bind_(solver="lm/demo", device="cpu")
    with launcher.job_array():
        for codec in experiments("compression.mmd_on_off_demo"):
            for seed in SEEDS:
                launcher({"compression_model_checkpoint": codec.checkpoint, "seed": seed})

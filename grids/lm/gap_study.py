"""Does a share of the MMD shrink what parallel prediction costs? Language models for docs/studies/factorisation_gap.md.

On each codec of compression.gap_study, with both alignments. The comparison: evaluate.gap with each criterion and share
against none, within a pattern, paired by the seed of the codec; hypothesis and what refutes it stand in the study.
"""

from dora import Launcher

from audiotok.explorers import LMExplorer
from audiotok.launchers.grid_file import experiments

SEEDS = [1, 2]
PATTERNS = ["delay", "parallel"]


@LMExplorer
def explorer(launcher: Launcher) -> None:
    """Each codec with each pattern and seed of its language model; whole seeds first, as codecs."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=120)
    launcher.bind_(solver="lm/gap_study", device="cpu")
    with launcher.job_array():
        for seed in SEEDS:
            for codec in experiments("compression.gap_study"):
                for pattern in PATTERNS:
                    launcher({"compression_model_checkpoint": codec.checkpoint, "lm.pattern": pattern, "seed": seed})

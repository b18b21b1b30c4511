"""The language models of docs/studies/factorisation_gap.md at full size, for a cluster: MusicGen's small size.

On each codec of compression.gap_study_32khz, with both alignments; compared as in grids/lm/gap_study.py.
"""

from dora import Launcher

from audiotok.explorers import LMExplorer
from audiotok.grids.lm.gap_study import PATTERNS, SEEDS
from audiotok.launchers.grid_file import experiments


@LMExplorer
def explorer(launcher: Launcher) -> None:
    """Each codec with each pattern and seed of its language model; whole seeds first, as codecs."""
    launcher.bind_(solver="lm/musicgen_small")
    with launcher.job_array():
        for seed in SEEDS:
            for codec in experiments("compression.gap_study_32khz"):
                for pattern in PATTERNS:
                    launcher({"compression_model_checkpoint": codec.checkpoint, "lm.pattern": pattern, "seed": seed})

"""The codecs of docs/studies/factorisation_gap.md at full size, for a cluster: 30 of MusicGen's codec.

`grids/lm/gap_study_32khz.py` trains language models over them; the comparison, the hypothesis and what refutes it stand
in the study.
"""

from dora import Launcher

from audiotok.explorers import CompressionExplorer
from audiotok.grids.compression.gap_study import CONDITIONS, SEEDS


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """The conditions of the study, paired by seed; whole seeds first."""
    launcher.bind_(solver="compression/encodec_mmd_share_32khz")
    with launcher.job_array():
        for seed in SEEDS:
            for condition in CONDITIONS:
                launcher({**condition, "seed": seed})

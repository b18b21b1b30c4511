"""Does a share of the MMD shrink what parallel prediction costs? Codecs for docs/studies/factorisation_gap.md.

`grids/lm/gap_study.py` trains language models over them; this grid alone answers nothing. A share of 1e-6 is a
placebo: the same code, and no gradient to speak of.
"""

from typing import Any

from dora import Launcher

from audiotok.explorers import CompressionExplorer

SEEDS = [1, 2, 3, 4, 5]
SIX: dict[str, Any] = {"mmd.estimator": "disjoint", "mmd.sigmas": [0.1, 1.0, 5.0, 10.0, 20.0, 50.0]}
CLOSED: dict[str, Any] = {}  # as the preset: the closed form at the median width
CONDITIONS: list[dict[str, Any]] = [
    {"losses.mmd": 0.0},
    {"losses.mmd": 1e-6},
    *({"losses.mmd": share, **criterion} for criterion in (SIX, CLOSED) for share in (0.1, 0.5)),
]


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """Six conditions, paired by seed; whole seeds first, so that what has run is balanced."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=120)
    launcher.bind_(solver="compression/gap_study", device="cpu")
    with launcher.job_array():
        for seed in SEEDS:
            for condition in CONDITIONS:
                launcher({**condition, "seed": seed})

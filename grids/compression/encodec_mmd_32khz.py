"""Does the MMD make the codebooks of the 32 kHz codec independent, and at what cost in quality?

64 experiments: 8 conditions in each of 8 blocks, a block being a number of codebooks (4, 8) and a seed (4 of them).

- share 0, and a placebo: a share of 1e-6, which trains by the same code and changes nothing but rounding. Training is
  chaotic, so this is another draw of the same codec, and their difference is what one without effect looks like.
- shares 0.1 and 0.5 on code vectors, which are what evaluate measures, and on residuals, as in the paper, at the median
  width: how much is needed, and does the stream matter?
- share 0.5 on code vectors at the paper's six widths, and at wide ones: does the width matter at an equal share?

Planned comparison, fixed before any run. First metric: `evaluate.mi_groups_delay`, which no condition trains on, in the
alignment of delayed prediction, which all of them train for. The one primary comparison: share 0.5 on code vectors at
the median width minus placebo, paired over the 8 blocks, two-sided paired t-test at 0.05: `p` of its row. Secondary:
each other condition minus placebo, `p_holm` over these 6. The cost: `difference` of `evaluate.mel_distance` for the
same pairs, with its 95 % interval. Each number of codebooks by itself is described, not tested.

    runs["block"] = runs["rvq.n_q"].astype(str) + "/" + runs["seed"].astype(str)
    by = ["losses.mmd", "mmd.stream", "mmd.sigmas"]
    placebo = {"losses.mmd": 1e-6, "mmd.stream": "code", "mmd.sigmas": "median"}
    mi, first = ["evaluate.mi_groups_delay"], (runs[by] == [0.5, "code", "median"]).all(axis=1)
    primary = compare(runs[first | (runs["losses.mmd"] == 1e-6)], by, mi, placebo, pair="block")
    secondary = compare(runs[~first], by, mi, placebo, pair="block")
    cost = compare(runs, by, ["evaluate.mel_distance"], placebo, pair="block")

where `runs = load_grid("compression.encodec_mmd_32khz").runs.copy()`; docs/results.md has both functions.

What each experiment requests of the cluster stands in its profile (AUDIOTOK_CLUSTER).
"""

from itertools import product
from typing import Any

from dora import Launcher

from audiotok.explorers import CompressionExplorer

PLACEBO = 1e-6
RELEASED = [0.1, 1.0, 5.0, 10.0, 20.0, 50.0]
WIDE = [50.0, 200.0, 800.0, 3200.0]  # around the mean d² of 2KD: 1024 and 2048
CONDITIONS: list[dict[str, Any]] = [
    {"losses.mmd": 0.0},
    {"losses.mmd": PLACEBO},
    *({"losses.mmd": share, "mmd.stream": stream} for share, stream in product([0.1, 0.5], ["code", "residual"])),
    *({"losses.mmd": 0.5, "mmd.sigmas": widths} for widths in (RELEASED, WIDE)),
]
CODEBOOKS = [4, 8]
SEEDS = [2036, 2037, 2038, 2039]


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """One job array."""
    launcher.bind_(solver="compression/encodec_mmd_share_32khz")
    with launcher.job_array():
        for n_q, seed, condition in product(CODEBOOKS, SEEDS, CONDITIONS):
            launcher({**condition, "rvq.n_q": n_q, "seed": seed})

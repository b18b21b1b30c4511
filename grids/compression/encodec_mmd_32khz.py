"""How much independence does the MMD buy, and at what cost in quality? The sweep the project exists for.

MMD weight x kernel widths x codebook count x seed, with one baseline without MMD for each codebook count and seed: 40
experiments. What each requests of the cluster stands in its profile (AUDIOTOK_CLUSTER).

Weights span the orders of magnitude that matter: a narrow kernel sees little of d² = 2KD and needs a large weight.
"""

from itertools import product

from dora import Launcher

from audiotok.explorers import CompressionExplorer

WEIGHTS = [2.0e3, 6.0e4, 2.0e6]
WIDTHS: list[list[float] | str] = [
    [0.1, 1.0, 5.0, 10.0, 20.0, 50.0],  # the paper's
    "median",  # as wide as the data
    [50.0, 200.0, 800.0, 3200.0],  # wide: around d² at 4 and 8 codebooks of dimension 128
]
CODEBOOKS = [4, 8]
SEEDS = [2036, 2037]


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """One job array of baselines, one of MMD runs."""
    launcher.bind_(solver="compression/encodec_mmd_32khz")
    with launcher.job_array():
        for n_q, seed in product(CODEBOOKS, SEEDS):
            launcher({"losses.mmd": 0.0, "rvq.n_q": n_q, "seed": seed})
    with launcher.job_array():
        for weight, sigmas, n_q, seed in product(WEIGHTS, WIDTHS, CODEBOOKS, SEEDS):
            launcher({"losses.mmd": weight, "mmd.sigmas": sigmas, "rvq.n_q": n_q, "seed": seed})

"""The sweep of encodec_mmd_32khz at the size of a laptop: two baselines and four MMD runs on real music.

MMD weight x kernel widths x codebook count, without GPU, a few minutes in all: `make demo`.
"""

from itertools import product

from dora import Launcher

from audiotok.explorers import CompressionExplorer

WEIGHTS = [10.0]
WIDTHS: list[list[float] | str] = [[0.1, 1.0, 5.0, 10.0, 20.0, 50.0], "median"]
CODEBOOKS = [2, 4]


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """All experiments in one job array."""
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=4, time=60)
    launcher.bind_(solver="compression/demo", device="cpu")
    with launcher.job_array():
        for n_q in CODEBOOKS:
            launcher({"losses.mmd": 0.0, "rvq.n_q": n_q})
        for weight, sigmas, n_q in product(WEIGHTS, WIDTHS, CODEBOOKS):
            launcher({"losses.mmd": weight, "mmd.sigmas": sigmas, "rvq.n_q": n_q})

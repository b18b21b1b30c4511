"""One of two processes that train the same quantiser on different data; run by test_quantization_ddp.py.

Arguments: rank, folder for the rendezvous and for the results.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from audiotok.quantization import ResidualVectorQuantizer

DIM, STEPS = 4, 8


def batch(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return 3 * rank + torch.randn(2, DIM, 30 + rank, generator=generator)


def quantizer(bins: int, kmeans_init: bool, threshold: float, q_dropout: bool, decay: float) -> ResidualVectorQuantizer:
    torch.manual_seed(7)
    return ResidualVectorQuantizer(
        dimension=DIM,
        n_q=3,
        bins=bins,
        decay=decay,
        kmeans_init=kmeans_init,
        threshold_ema_dead_code=threshold,
        q_dropout=q_dropout,
    ).train()


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    plain = quantizer(bins=16, kmeans_init=False, threshold=0.0, q_dropout=False, decay=0.99)
    for step in range(STEPS):
        plain(batch(rank, step), 50)
    busy = quantizer(bins=64, kmeans_init=True, threshold=2.0, q_dropout=True, decay=0.5)
    torch.manual_seed(rank)  # the ranks' own choices differ: only shared ones may count
    counts, states = [], []
    for step in range(3 * STEPS):
        counts.append(busy(batch(rank, step), 50).codes.shape[1])
        states.append({name: value.clone() for name, value in busy.state_dict().items()})
    result = {"plain": [plain.state_dict()], "busy": states, "counts": counts}
    torch.save(result, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

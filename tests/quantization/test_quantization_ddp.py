"""Two processes: identical buffers, equal to one process that sees all the data."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.quantization import ResidualVectorQuantizer

WORKER = Path(__file__).with_name("ddp_worker.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(folder)], env=env, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("run", ["plain", "busy"])
def test_buffers_are_identical_on_all_ranks_after_every_step(ranks: list[dict[str, Any]], run: str) -> None:
    for first, second in zip(ranks[0][run], ranks[1][run], strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert all(bool(value.isfinite().all()) for value in first.values())


def samples(rank: int, step: int) -> Tensor:
    """What the worker of that rank quantises in that step, [N, D]."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return (3 * rank + torch.randn(2, 4, 30 + rank, generator=generator)).transpose(1, 2).reshape(-1, 4)


def test_all_ranks_draw_the_same_number_of_codebooks(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["counts"] == ranks[1]["counts"]
    assert set(ranks[0]["counts"]) == {1, 2, 3}


def test_codes_were_renewed_on_all_ranks_with_samples_of_the_first(ranks: list[dict[str, Any]]) -> None:
    renewed = [0, 0]
    for step, state in enumerate(ranks[1]["busy"]):
        vectors = state["vq.layers.0._codebook.embed"]
        for rank in range(2):
            renewed[rank] += int((vectors[:, None] == samples(rank, step)[None]).all(dim=2).sum())
    assert renewed[0] > 0
    assert renewed[1] == 0


def test_two_processes_learn_what_one_learns_from_all_the_data(ranks: list[dict[str, Any]]) -> None:
    # Double precision, one process, the batches of both ranks: explicit moving averages.
    torch.manual_seed(7)
    start = ResidualVectorQuantizer(dimension=4, n_q=3, bins=16, kmeans_init=False).state_dict()
    tables = [start[f"vq.layers.{k}._codebook.embed"].double().numpy() for k in range(3)]
    averages, sizes = [table.copy() for table in tables], [np.zeros(16) for _ in tables]
    for step in range(8):
        rest = torch.cat([samples(rank, step) for rank in range(2)]).double().numpy()
        for k in range(3):
            codes = ((rest[:, None] - tables[k][None]) ** 2).sum(axis=2).argmin(axis=1)
            used = tables[k][codes]
            sums = np.stack([rest[codes == i].sum(axis=0) for i in range(16)])
            sizes[k] = 0.99 * sizes[k] + 0.01 * np.bincount(codes, minlength=16)
            averages[k] = 0.99 * averages[k] + 0.01 * sums
            total = sizes[k].sum()
            tables[k] = averages[k] / ((sizes[k] + 1e-5) / (total + 16e-5) * total)[:, None]
            rest = rest - used
    for k in range(3):
        found = ranks[0]["plain"][0]
        np.testing.assert_allclose(found[f"vq.layers.{k}._codebook.cluster_size"], sizes[k], rtol=1e-4)
        np.testing.assert_allclose(found[f"vq.layers.{k}._codebook.embed"], tables[k], rtol=1e-3, atol=1e-4)

"""The real solver of the 32 kHz model on a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from audiotok import train, training
from audiotok.solvers import CompressionSolver
from audiotok.solvers.builders import SPLITS
from benchmarks.gpu.device import Setting

PRESET = "compression/encodec_mmd_32khz"
SMALL = ["seanet.n_filters=16", "msstftd.filters=8", "rvq.bins=256", "rvq.kmeans_iters=5"]  # same layers, narrower
TINY = ["seanet.n_filters=2", "seanet.dimension=8", "seanet.lstm=1", "rvq.bins=16", "rvq.kmeans_iters=3"]
TINY += ["msstftd.filters=2", "msstftd.n_ffts=[256]", "msstftd.hop_lengths=[64]", "msstftd.win_lengths=[256]"]


@contextmanager
def solver_on(setting: Setting, folder: Path | str, *overrides: str) -> Iterator[CompressionSolver]:
    """The solver of the 32 kHz model in an experiment of its own under `folder`, inside that experiment."""
    shared = [f"solver={PRESET}", f"device={setting.device.type}", *(TINY if setting.tiny else [])]
    shared += [f"datasource.{split}={setting.music}/{split}.jsonl.gz" for split in SPLITS]
    shared += [f"dataset.{split}.segment_duration=1" for split in ("evaluate", "generate")]
    old, train.main.dora.dir = train.main.dora.dir, Path(folder)
    try:
        xp = train.main.init_xp(train.main.get_xp([*shared, *overrides]))
        with xp.enter():
            training._setup(xp.cfg)
            found = train.get_solver(xp.cfg)
            assert isinstance(found, CompressionSolver)
            yield found
    finally:
        train.main.dora.dir = old


def batch_of(setting: Setting, full: int) -> str:
    """Override of the batch size."""
    return f"dataset.batch_size={setting.clips(full)}"


def one_batch(one: CompressionSolver) -> Tensor:
    """A batch on the device; the solver is then within its train stage."""
    one.dataloaders["train"].set_epoch(1)
    one.model.train()
    one._current_stage = "train"
    one.rng = torch.Generator().manual_seed(0)
    batch: Tensor = next(iter(one.dataloaders["train"]))
    return batch.to(one.device)

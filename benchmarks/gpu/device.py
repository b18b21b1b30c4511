"""What the sections share: where and how large they are, time and memory on a device, numbers as text."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

MIB = 2**20
T = TypeVar("T")
TF32_MODES = {  # convolutions and LSTMs, matrix products
    "PyTorch's defaults": (True, False),
    "fp32": (False, False),
    "TF32": (True, True),
}


@dataclass(frozen=True)
class Setting:
    """Where a section runs, whether at sizes that only show that it runs, on which music (a folder), beside what."""

    device: torch.device
    tiny: bool
    music: Path
    audiocraft: Path | None = None  # a clone

    def pick(self, full: T, tiny: T) -> T:
        """One of two sizes."""
        return tiny if self.tiny else full

    @property
    def small(self) -> bool:
        """Whether the device is a card of less than 32 GiB: 64 clips of a second do not train on it."""
        return self.device.type == "cuda" and torch.cuda.get_device_properties(self.device).total_memory < 2**35

    def clips(self, full: int) -> int:
        """Clips of a batch: all, or a quarter on a small card."""
        return self.pick(full // 4 if self.small else full, 2)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time of some runs after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        wait_for(device)
        start = time.perf_counter()
        run()
        wait_for(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """Peak memory of a run above what was held before; 0 on the CPU, where torch does not count."""
    if device.type != "cuda":
        run()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    wait_for(device)
    return (torch.cuda.max_memory_allocated() - before) / MIB


@contextmanager
def tf32(mode: str) -> Iterator[None]:
    """Run a block in one of `TF32_MODES`."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = TF32_MODES[mode]
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted value."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-300))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Markdown of a table; floats with three digits."""
    lines = [list(header), ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return "–" if cell is None else str(cell)

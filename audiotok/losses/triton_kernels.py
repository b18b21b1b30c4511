"""The terms of a kernel tile in one pass over its distances, for CUDA.

`kernels._tile_terms` reads a tile several times per width, which memory bounds on a GPU. Here a program reads its
distances once and keeps everything else in registers. Import needs Triton; its interpreter (TRITON_INTERPRET=1) runs
this on the CPU. Twice as fast as torch on an H200 with nearly the same error: docs/benchmarks/gpu.md.
"""

from collections.abc import Callable, Sequence

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

_BLOCK = 2048


def fused_terms(widths: Sequence[float], like: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What `kernels._tile_terms` does with squared distances and slope, for tiles of the kind of `like`."""
    rates = torch.tensor([0.5 / a for a in widths], dtype=like.dtype, device=like.device)

    def terms(squared: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        assert squared.is_contiguous() and slope.is_contiguous()
        n_programs = triton.cdiv(squared.numel(), _BLOCK)
        sums = torch.empty(n_programs, dtype=torch.float64, device=squared.device)
        with torch.cuda.device_of(squared):
            _terms[(n_programs,)](squared, slope, sums, rates, squared.numel(), _BLOCK, len(widths))
        return sums.sum()

    return terms


@triton.jit  # type: ignore[untyped-decorator]
def _terms(squared_at, slope_at, sums_at, rates_at, size, BLOCK: tl.constexpr, WIDTHS: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    squared = tl.maximum(tl.load(squared_at + at, mask=at < size, other=float("inf")), 0.0)
    kernel = tl.zeros_like(squared)
    slope = tl.zeros_like(squared)
    widest = tl.load(rates_at)
    for i in range(WIDTHS):
        rate = tl.load(rates_at + i)
        term = tl.exp(-squared * rate)
        kernel += term
        slope += term * (rate / widest)
    tl.store(slope_at + at, slope, mask=at < size)
    tl.store(sums_at + program, tl.sum(kernel).to(tl.float64))

"""Time and memory of the MMD, forward and backward, beside dense kernel matrices: `python -m benchmarks.mmd [--quick]`.

Every measurement is a process of its own. Within one run the methods take turns, so that a busy machine slows all.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from audiotok.losses.kernels import squared_mmd, squared_mmd_rff
from audiotok.losses.mmd import RELEASED_SIGMAS, MMDLoss, draw_permutations, marginal_samples, standardise
from benchmarks.machine import memory_kib, where, write_page

FRAMES, K, D = 46, 4, 128
CLIPS = (16, 64, 128, 256, 512)
DENSE_UP_TO = 256
LARGE_SIGMAS = (200.0, 400.0, 600.0, 800.0, 1000.0, 2000.0)
SIGMAS = {"released": RELEASED_SIGMAS, "large": LARGE_SIGMAS, "one": (1024.0,)}
QUIET_WAIT_S = 10


def dense_kernel_sum(x: torch.Tensor, y: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Sum over an N x N kernel matrix, by the formula."""
    squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    kernel = torch.zeros_like(squared)
    for a in sigmas:
        kernel = kernel + torch.exp(-squared / (2 * a))
    return kernel.sum()


def dense_mmd(streams: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """The unbiased estimate from three kernel matrices, each computed again in the backward pass."""
    x = standardise(streams.permute(0, 3, 1, 2).flatten(0, 1))
    n = len(x)
    y = marginal_samples(x, permutations(n)).flatten(1)
    x = x.flatten(1)
    xx, yy, xy = (checkpoint(dense_kernel_sum, u, v, sigmas, use_reentrant=False) for u, v in ((x, x), (y, y), (x, y)))
    value: torch.Tensor = (xx + yy - 2 * len(sigmas) * n) / (n * (n - 1)) - 2 * xy / n**2
    return value


def permutations(n: int) -> torch.Tensor:
    """The same shuffles for every method."""
    return draw_permutations(K, n, torch.device("cpu"), torch.Generator().manual_seed(1))


def make_streams(clips: int, shared: float = 0.0) -> torch.Tensor:
    """Normal streams [B, K, D, T] of unit variance; `shared` correlates the codebooks."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(clips, K, D, FRAMES, generator=generator)
    return noise + shared * noise[:, :1]


def method(name: str, sigmas: Sequence[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Dense, in tiles, or by random features (unbiased estimates), or the closed form; from streams to the value."""
    if name == "dense":
        return lambda streams: dense_mmd(streams, sigmas)
    loss = MMDLoss(sigmas, {"tiles": "unbiased"}.get(name, name), delay=False)
    return lambda streams: loss(streams, permutations(streams.shape[0] * streams.shape[3]))


def measure(name: str, clips: int, widths: str) -> dict[str, float]:
    """Median seconds of forward and backward, MiB of peak memory above the inputs, share of CPU used by others."""
    run = method(name, SIGMAS[widths])
    run(make_streams(2).requires_grad_()).backward()  # thread pools and lazy set-up
    streams = make_streams(clips).requires_grad_()
    before = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    seconds: list[float] = []
    busy = busy_seconds()
    started = time.perf_counter()
    while len(seconds) < 1 or (len(seconds) < 15 and time.perf_counter() - started < 2.0):
        streams.grad = None
        start = time.perf_counter()
        run(streams).backward()
        seconds.append(time.perf_counter() - start)
    lasted = time.perf_counter() - started
    others = max(0.0, busy_seconds() - busy) / (lasted * (os.cpu_count() or 1))
    return {"seconds": statistics.median(seconds), "mib": (memory_kib("VmHWM") - before) / 1024, "others": others}


def busy_seconds() -> float:
    """CPU seconds the machine has spent so far on anything but this process."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = resource.getrusage(resource.RUSAGE_SELF)
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


def wait_for_quiet(limit_s: float) -> None:
    """Wait until other processes use less than a tenth of the machine, or the limit has passed."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        start = busy_seconds()
        time.sleep(2)
        if busy_seconds() - start < 0.1 * 2 * (os.cpu_count() or 1):
            return


def rounds(names: Sequence[str], clips: int, widths: str, repeats: int) -> dict[str, dict[str, float]]:
    """Medians over fresh processes, the methods taking turns."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        wait_for_quiet(QUIET_WAIT_S)
        for name in names:
            command = [sys.executable, "-m", "benchmarks.mmd", "--one", name, str(clips), widths]
            results[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            print(f"{widths} N={clips * FRAMES} {name}: {results[name][-1]}", file=sys.stderr)
    keys = ("seconds", "mib", "others")
    return {name: {key: statistics.median(row[key] for row in rows) for key in keys} for name, rows in results.items()}


def speed_table(sizes: Sequence[int], widths: str, repeats: int) -> list[str]:
    """Markdown rows: time and memory of each method by number of samples."""
    lines = [
        "| N | dense | tiles | ratio | dense, memory | tiles, memory | ratio | rff | rff, memory | others' CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for clips in sizes:
        names = ["dense", "tiles", "rff"] if clips <= DENSE_UP_TO else ["tiles", "rff"]
        found: dict[str, Any] = rounds(names, clips, widths, repeats)
        tiles, rff, dense = found["tiles"], found["rff"], found.get("dense")
        compared = ("–", "–", "–", "–")
        if dense:
            faster, smaller = dense["seconds"] / tiles["seconds"], dense["mib"] / tiles["mib"]
            compared = (f"{dense['seconds']:.3g} s", f"{faster:.1f}", f"{dense['mib']:.0f} MiB", f"{smaller:.1f}")
        others = max(row["others"] for row in found.values())
        lines.append(
            f"| {clips * FRAMES} | {compared[0]} | {tiles['seconds']:.3g} s | {compared[1]} | {compared[2]} "
            f"| {tiles['mib']:.0f} MiB | {compared[3]} | {rff['seconds']:.3g} s | {rff['mib']:.0f} MiB | {others:.0%} |"
        )
    return lines


def features_table(clips: int, seeds: int) -> list[str]:
    """Markdown rows: spread of the random features about the exact value, on dependent streams."""
    x = standardise(make_streams(clips, shared=1.0).permute(0, 3, 1, 2).flatten(0, 1))
    y = marginal_samples(x, permutations(len(x))).flatten(1)
    x = x.flatten(1)
    lines = ["| widths | exact | features | mean over seeds | spread of one seed |", "| --- | --- | --- | --- | --- |"]
    for label, sigmas in (("released", RELEASED_SIGMAS), ("1024 (about the median)", (1024.0,))):
        exact = squared_mmd(x, y, sigmas).item()
        for count in (64, 256, 1024, 4096):
            values = [squared_mmd_rff(x, y, sigmas, count, seed).item() for seed in range(seeds)]
            mean, spread = statistics.mean(values), statistics.stdev(values)
            lines.append(f"| {label} | {exact:.4g} | {count} | {mean:.4g} | {spread:.2g} |")
    return lines


def precision() -> tuple[float, float]:
    """Greatest error of the gradient against float64, relative to its greatest value: dense and tiles at N = 736."""
    streams, errors = make_streams(16, shared=1.0), []
    (exact,) = torch.autograd.grad(dense_mmd(wide := streams.double().requires_grad_(), RELEASED_SIGMAS), wide)
    for name in ("dense", "tiles"):
        leaf = streams.clone().requires_grad_()
        (found,) = torch.autograd.grad(method(name, RELEASED_SIGMAS)(leaf), leaf)
        errors.append(float((found - exact).abs().max() / exact.abs().max()))
    return errors[0], errors[1]


def make_page(quick: bool, repeats: int) -> str:
    """Measure all, and return the page."""
    sizes = CLIPS[:2] if quick else CLIPS
    released = speed_table(sizes, "released", repeats)
    large = speed_table(sizes[-1:] if quick else CLIPS[1:3], "large", repeats)
    seeds = 10 if quick else 30
    features = features_table(8 if quick else 64, seeds)
    dense_error, tiles_error = precision()
    module = "benchmarks.mmd" + (" --quick" if quick else f" --repeats {repeats}")
    return TEMPLATE.format(
        where=where(module), repeats=repeats, seeds=seeds,
        released="\n".join(released), large="\n".join(large), features="\n".join(features),
        n_features=(8 if quick else 64) * FRAMES, dense_error=dense_error, tiles_error=tiles_error,
    )  # fmt: skip


TEMPLATE = """# The MMD: time and memory

{where}

Forward and backward of the unbiased estimate on normal streams, K·D = 512, in float32, standardising and shuffling
included.

- dense: N × N kernel matrices by the formula, `torch.utils.checkpoint` around each of the three, gradient by autograd
- tiles: `MMDLoss(estimator="unbiased")`
- rff: `MMDLoss(estimator="rff", num_features=1024)`, an approximation

Every figure is the median over {repeats} fresh process(es), the methods taking turns; each gives the median of its
calls within 2 s. Memory: peak resident size above that with the inputs. Others' CPU: the largest share of the machine
that other processes took during a row; where it leaves less than the threads need, both times are too long. A dense run
of the largest size is left out: it would take four times the time and memory of the row above.

## Released widths: 0.1, 1, 5, 10, 20, 50

{released}

Much of the dense time goes into exponentials that come out as 0: `torch.exp` on the CPU takes about a hundred times
longer when the result is below the smallest normal number, and d² is about 1024. Tiles leave these terms out where the
smallest d² of a tile shows that no digit depends on them.

## Large widths: 200, 400, 600, 800, 1000, 2000

No term vanishes and none is left out.

{large}

## Precision

Greatest error of the gradient, relative to its greatest value, against dense in float64 (N = 736, released widths,
dependent codebooks): dense in float32 {dense_error:.1e}, tiles in
float32 {tiles_error:.1e}. Dense keeps the pairs of a sample with itself, whose gradient is 0 only up to rounding.

## Random features beside the exact value

Dependent codebooks, N = {n_features}, spread over {seeds} seeds.

{features}

The narrow widths among the released ones give almost nothing but the noise of their features. `rff` suits `median` or
widths about it.

## CUDA

The same tiles run on CUDA tensors, with a Triton kernel for their exponentials where Triton is installed. That kernel
is tested against the tiles in Triton's interpreter on the CPU. Figures on a GPU: [gpu.md](gpu.md).
"""


def main() -> None:
    """Write docs/benchmarks/mmd.md and print it; with --one, a single measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one repeat; the page is printed, not written"
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes a figure is the median of (3)")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "CLIPS", "WIDTHS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, clips, widths = options.one
        print(json.dumps(measure(name, int(clips), widths)))
        return
    page = make_page(options.quick, 1 if options.quick else options.repeats)
    if options.quick:
        print(page)
    else:
        write_page("mmd.md", page)


if __name__ == "__main__":
    main()

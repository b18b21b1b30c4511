"""Time, memory and objective of k-means beside Lloyd's algorithm on all differences: `python -m benchmarks.kmeans`.

Every measurement is a process of its own; within one run the methods take turns.
"""

import json
import sys

import torch
from torch import Tensor

from audiotok.quantization.kmeans import draw, draw_apart, kmeans, nearest, tally
from benchmarks.machine import Figures, in_turns, measured, where, write_page

DIM = 128
METHODS = ("differences", "products", "ours", "plusplus")
# samples, bins, iterations, repeats. A codebook of 2048 sees 100 frames in 2 s at 50 Hz, 3200 in a batch of 64 s.
CASES = ((100, 2048, 50, 3), (1600, 1024, 10, 3), (3200, 2048, 50, 3))
WITHOUT_DIFFERENCES = {3200}  # 6.7 GB and minutes


def latents(samples: int) -> Tensor:
    """Samples [N, D] around 200 centres, with a spectrum that falls off as that of an encoder's output does."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(200, DIM, generator=generator)
    owners = torch.randint(200, (samples,), generator=generator)
    x = centers[owners] + 0.7 * torch.randn(samples, DIM, generator=generator)
    return x / torch.arange(1, DIM + 1) ** 0.5


def by_differences(samples: Tensor, means: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm with all differences [N, bins, D] at once, and every iteration."""
    for _ in range(iterations):
        squared = ((samples[:, None] - means[None]) ** 2).sum(dim=2)
        counts, sums = tally(samples, squared.argmin(dim=1), len(means))
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means


def by_products(samples: Tensor, means: Tensor, iterations: int) -> Tensor:
    """The same with distances from matrix products, and every iteration."""
    for _ in range(iterations):
        counts, sums = tally(samples, nearest(samples, means), len(means))
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means


def objective(samples: Tensor, means: Tensor) -> float:
    """Mean squared distance to the nearest mean, in double precision."""
    means = means.double()
    parts = [torch.cdist(x, means).min(dim=1).values ** 2 for x in samples.double().split(100)]
    return float(torch.cat(parts).mean())


def one(method: str, samples: int, bins: int, iterations: int) -> Figures:
    """Figures of one method; all but plusplus start from the same points."""
    x, warm = latents(samples), latents(32)
    start = draw(x, bins, torch.Generator().manual_seed(1))
    found: list[Tensor] = []

    def run(x: Tensor = x, start: Tensor = start) -> None:
        if method == "differences":
            found.append(by_differences(x, start, iterations))
        elif method == "products":
            found.append(by_products(x, start, iterations))
        elif method == "ours":
            found.append(kmeans(x, len(start), iterations, init=start)[0])
        else:
            start = draw_apart(x, len(start), torch.Generator().manual_seed(1))
            found.append(kmeans(x, len(start), iterations, init=start)[0])

    run(warm, warm[:4])  # thread pools and lazy set-up
    figures = measured(run, repeats=1 if method == "differences" else 5)
    return {**figures, "objective": objective(x, found[-1])}


def table() -> list[str]:
    """Markdown rows, one for each case and method; ratios are to differences, or to products without it."""
    lines = [
        "| samples × bins × dim × iterations | method | time | memory | times faster | mean squared distance |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for samples, bins, iterations, repeats in CASES:
        methods = METHODS[1:] if samples in WITHOUT_DIFFERENCES else METHODS
        cases = [(name, samples, bins, iterations) for name in methods]
        found = in_turns("benchmarks.kmeans", cases, repeats, OMP_NUM_THREADS="1")
        for name, row in zip(methods, found, strict=True):
            lines.append(
                f"| {samples} × {bins} × {DIM} × {iterations} | {name} | {row['seconds']:.3g} s | {row['mib']:.0f} MiB "
                f"| {found[0]['seconds'] / row['seconds']:.3g} | {row['objective']:.4g} |"
            )
    return lines


PAGE = """# k-means that starts a codebook

{where}

Each figure is the median over processes of their own with one thread, taking turns. `differences` is Lloyd's
algorithm with all N × bins × D differences, as the reference computes it; `products` takes distances from matrix
products; `ours` also stops once an assignment comes again, which gives the same means. These three start from the same
points; `plusplus` is `rvq.kmeans_start=plusplus`, and its time includes choosing them. "Times faster" compares with the
first row of a case.

{table}

With fewer samples than bins, every sample is a starting point, nearly always; so two rounds do, and nothing is left to
improve. With more, k-means++ costs one pass over the samples for each bin.
"""


def main() -> None:
    """Write docs/benchmarks/kmeans.md and print it; with --one METHOD N BINS ITERATIONS, one measurement as JSON."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        write_page("kmeans.md", PAGE.format(table="\n".join(table()), where=where("benchmarks.kmeans")))


if __name__ == "__main__":
    main()

"""The MMD and the other numerics on a device: the Triton kernel beside plain torch, float64 and the CPU."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from audiotok.losses import MMDLoss, kernels
from audiotok.losses.mmd import draw_permutations
from audiotok.metrics import dependence_metrics, mmd_permutation_test
from audiotok.quantization.kmeans import kmeans
from benchmarks.gpu.device import Setting, apart, peak_mib, seconds, table, tf32
from benchmarks.mmd import FRAMES, SIGMAS, K, dense_mmd, make_streams

Criterion = Callable[[Tensor], Tensor]
DENSE_UP_TO, FLOAT64_UP_TO = 512, 256  # clips
CPU = torch.device("cpu")
RUNS = {"dense": "dense", "torch": "tiles, torch", "triton": "tiles, Triton", "rff": "rff"}


def criterion(estimator: str, n: int, widths: str = "released", row_block: int | None = None) -> Criterion:
    """The MMD of streams [B, K, D, T] of n samples in all, always with the same shuffles."""
    loss = MMDLoss(SIGMAS.get(widths, widths), estimator, delay=False, row_block=row_block)
    orders = draw_permutations(K, n, CPU, torch.Generator().manual_seed(1))
    return lambda streams: loss(streams, orders)


def without_triton(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function as on a machine without Triton."""
    with mock.patch.object(kernels, "find_spec", return_value=None):
        return run(*arguments)


def both(run: Criterion, streams: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    leaf = streams.detach().requires_grad_()
    value = run(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def mmd(setting: Setting) -> Iterator[list[str]]:
    """Time and memory of forward and backward by number of samples; errors of value and gradient."""
    times: list[tuple[object, ...]] = []
    errors: list[tuple[object, ...]] = []
    names = [*(f"{name}, ms" for name in RUNS.values()), "torch / Triton", *(f"{name}, MiB" for name in RUNS.values())]
    compared = ["N", "widths", "what", "beside", "value", "gradient"]
    for clips in setting.pick((16, 64, 256, 512, 2048), (2, 4)):
        n, streams = clips * FRAMES, make_streams(clips, shared=1.0).to(setting.device)
        tiles = criterion("unbiased", n)
        runs: dict[str, Criterion] = {
            "dense": lambda x: dense_mmd(x, SIGMAS["released"]),
            "torch": partial(without_triton, tiles),
            "triton": tiles,
            "rff": criterion("rff", n),
        }
        if clips > (DENSE_UP_TO // 2 if setting.small else DENSE_UP_TO):  # 21 GiB for 512, 5 for 256
            del runs["dense"]
        repeats = 3 if clips <= DENSE_UP_TO else 1
        took = {name: seconds(partial(both, run, streams), setting.device, repeats) for name, run in runs.items()}
        held = {name: peak_mib(partial(both, run, streams), setting.device) for name, run in runs.items()}
        ratio = took["torch"] / took["triton"]
        times.append((n, *(1e3 * took[name] if name in took else None for name in RUNS), ratio, *map(held.get, RUNS)))
        errors += _errors(setting, clips, streams, runs)
        lines = [*table(["N", *names], times), *table(compared, errors)]
        yield lines
    lines += _tiles(setting)
    yield lines
    yield [*lines, *_with_tf32(setting)]


def _errors(setting: Setting, clips: int, streams: Tensor, runs: dict[str, Criterion]) -> list[tuple[object, ...]]:
    n, rows = clips * FRAMES, []
    wanted, beside = both(runs["torch"], streams), "tiles, torch"
    rows.append((n, "released", "tiles, Triton", beside, *map(apart, both(runs["triton"], streams), wanted)))
    if clips > FLOAT64_UP_TO:
        return rows
    for widths in ("released", "large", "median") if clips <= 64 else ("released",):
        run = criterion("unbiased", n, widths)
        where = CPU if clips <= 16 else setting.device
        wanted = without_triton(both, run, streams.double().to(where))
        beside = f"float64 in torch on the {'CPU' if where.type == 'cpu' else 'GPU'}"
        rows.append((n, widths, "tiles, Triton", beside, *map(apart, both(run, streams), wanted)))
        rows.append((n, widths, "tiles, torch", beside, *map(apart, without_triton(both, run, streams), wanted)))
        rows.append((n, widths, "tiles, Triton, float64", beside, *map(apart, both(run, streams.double()), wanted)))
    return rows


def _tiles(setting: Setting) -> list[str]:
    """Time and memory by the side of a tile."""
    clips, rows = setting.pick(512, 4), []
    streams = make_streams(clips, shared=1.0).to(setting.device)
    for side in setting.pick((1024, 2048, 4096, 8192, 16384), (64, 128)):
        run = partial(both, criterion("unbiased", clips * FRAMES, row_block=side), streams)
        rows.append((side, 1e3 * seconds(run, setting.device, repeats=3), peak_mib(run, setting.device)))
    return table([f"side of a tile at N = {clips * FRAMES}", "ms", "MiB"], rows)


def _with_tf32(setting: Setting) -> list[str]:
    """What becomes of the MMD where the program around it allows TF32."""
    clips, rows = setting.pick(256, 4), []
    streams = make_streams(clips, shared=1.0).to(setting.device)
    for widths in ("released", "median"):
        run = criterion("unbiased", clips * FRAMES, widths)
        wanted = both(run, streams.double())
        for mode in ("fp32", "TF32"):
            with tf32(mode):
                took = 1e3 * seconds(partial(both, run, streams), setting.device, repeats=3)
                rows.append((mode, widths, took, *map(apart, both(run, streams), wanted)))
    return table([f"matrix products at N = {clips * FRAMES}", "widths", "ms", "error of value", "of gradient"], rows)


def measures(setting: Setting) -> list[str]:
    """Random features, the other estimators, the closed-form test, k-means: device beside CPU."""
    clips = setting.pick(64, 4)
    n, streams = clips * FRAMES, make_streams(clips, shared=1.0)
    codes = torch.randint(64, (clips, K, FRAMES), generator=torch.Generator().manual_seed(0))
    samples = streams[:, 0].transpose(1, 2).flatten(0, 1)
    bins = setting.pick(2048, 16)

    def tested(x: Tensor) -> tuple[Tensor, ...]:
        found = mmd_permutation_test(x, delay=False, num_permutations=setting.pick(100, 4), generator=_generator())
        return tuple(map(torch.tensor, (found.statistic, found.error, found.p)))

    def dependence(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.tensor, dependence_metrics(x, bins=64, frame_rate=50.0, num_shuffles=5).values()))

    runs: dict[str, tuple[Callable[[Tensor], tuple[Tensor, ...]], Tensor]] = {
        f"MMD, {name}, with gradient": (partial(both, criterion(name, n)), streams)
        for name in ("samples", "clips", "disjoint", "rff")
    }
    runs["MMD, rff, median width, with gradient"] = partial(both, criterion("rff", n, "median")), streams
    runs["MMD with a permutation test"] = tested, streams
    runs["metrics of dependence"] = dependence, codes
    runs[f"k-means, {len(samples)} × {bins}"] = lambda x: kmeans(x, bins, 50, init=x[:bins]), samples
    rows = []
    for name, (run, given) in runs.items():
        there = given.to(setting.device)
        difference = max(map(apart, run(there), run(given)))
        on_cpu, on_device = seconds(partial(run, given), CPU, 1), seconds(partial(run, there), setting.device, 3)
        rows.append((name, 1e3 * on_cpu, 1e3 * on_device, difference))
    return table(["what", "CPU, ms", "device, ms", "largest difference"], rows)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)

"""Training steps: time, memory, waiting for data and for the device, values beside the CPU, torch.compile."""

import collections
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from audiotok.solvers import CompressionSolver
from audiotok.solvers.averages import to_floats
from audiotok.solvers.interruption import Progress
from audiotok.solvers.randomness import set_deterministic
from benchmarks.gpu.device import TF32_MODES, Setting, peak_mib, seconds, table, tf32, wait_for
from benchmarks.gpu.solvers import SMALL, batch_of, one_batch, solver_on

UPDATES, WARM_UP = 10, 4
DETERMINISTIC, BF16 = "deterministic algorithms", "bf16 autocast, an experiment"
KINDS = {  # of kernels, by words in their names
    "change of layout": ("nchwToNhwc", "nhwcToNchw", "transpose"),
    "convolutions": ("fprop", "dgrad", "wgrad", "conv", "Convolution"),
    "matrix products": ("gemm", "gemv", "splitK"),
    "FFT": ("fft",),
    "reductions": ("reduce", "norm"),
    "elementwise": ("elementwise", "cat", "CatArray", "pad"),
    "Adam, EMA": ("multi_tensor",),
    "copies": ("Memcpy", "Memset"),
}


@dataclass
class Clock:
    """When each step of a train stage began to wait for its batch, had it, and was done."""

    waits: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    mmd: list[float] = field(default_factory=list)

    def batches(self, loader: Any) -> Iterator[Tensor]:
        """The batches of a loader, timed."""
        iterator = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waits.append(time.perf_counter() - start)
            if batch is None:
                return
            start = time.perf_counter()
            yield batch
            self.steps.append(time.perf_counter() - start)  # the loop has read the metrics by then: no work is left

    def timing(self, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        """A function whose time is noted as that of the MMD step."""

        def timed(*arguments: Any) -> Any:
            wait_for(device)
            start = time.perf_counter()
            result = function(*arguments)
            wait_for(device)
            self.mmd.append(time.perf_counter() - start)
            return result

        return timed


class _Timed:
    """Takes the place of flashy's progress bar."""

    def __init__(self, clock: Clock, bar: Any) -> None:
        self.clock, self.bar = clock, bar

    def __iter__(self) -> Iterator[Tensor]:
        return self.clock.batches(self.bar)

    def update(self, **metrics: float) -> None:
        self.bar.update(**metrics)


def steps(setting: Setting) -> list[str]:
    """Time, waiting and memory of training steps at full size, in each mode of TF32, and what else there is to know."""
    updates = setting.pick(UPDATES, 6)
    sizes = [batch_of(setting, 64), f"optim.updates_per_epoch={updates}", "mmd.num_batches_mmd=4"]
    sizes.append(f"dataset.num_workers={setting.pick(8, 0)}")
    rows, modes = [], [*TF32_MODES, DETERMINISTIC, BF16]
    with TemporaryDirectory() as folder, solver_on(setting, folder, *sizes) as one:
        for mode in modes:
            autocast = torch.autocast(setting.device.type, torch.bfloat16) if mode == BF16 else nullcontext()
            set_deterministic(mode == DETERMINISTIC)
            try:
                with tf32(mode if mode in TF32_MODES else "PyTorch's defaults"), autocast:
                    clocks: list[Clock] = []
                    memory = peak_mib(lambda: clocks.append(train_stage(one)), setting.device)  # noqa: B023
                rows.append((mode, *_summary(clocks[0], setting.pick(64, 2)), memory))
            except Exception as error:
                rows.append((mode, *[None] * 6, f"{type(error).__name__}: {str(error)[:120]}"))
        set_deterministic(False)
        header = ["mode", "step, s", "clips of 1 s a second", "MMD step of 4 batches, s", "first step, s"]
        header += ["waiting for data", "longest wait, ms", "memory, MiB"]
        return [*table(header, rows), *_waits(one), *_kernels(one), *_full_macro_batch(setting, one)]


def train_stage(one: CompressionSolver) -> Clock:
    """Run the train stage of an epoch, as `run_epoch` does."""
    clock, macro = Clock(), one.macro_batch
    assert macro is not None
    one.progress, one.averages = Progress(), type(one.averages)()
    one.rng = torch.Generator().manual_seed(0)
    one._pending_metrics.clear()
    progress_of = one.progress_of
    with (
        mock.patch.object(one, "progress_of", lambda split, start=0: _Timed(clock, progress_of(split, start))),
        mock.patch.object(macro, "value", clock.timing(macro.value, one.device)),
    ):
        one.run_stage("train", one.train)
    return clock


def _summary(clock: Clock, batch_size: int) -> tuple[object, ...]:
    waits, took = clock.waits[WARM_UP : len(clock.steps)], clock.steps[WARM_UP:]
    with_mmd = {index for index in range(len(clock.steps)) if (index + 1) % 4 == 0}
    plain = [step for index, step in enumerate(clock.steps) if index >= WARM_UP and index not in with_mmd]
    step = statistics.median(plain)
    share = sum(waits) / (sum(waits) + sum(took))
    return step, batch_size / step, clock.mmd[-1], clock.steps[0], f"{share:.1%}", 1e3 * max(waits)


def _waits(one: CompressionSolver) -> list[str]:
    """Where a step without MMD makes the program wait for the device."""
    if one.device.type != "cuda":
        return []
    batch = one_batch(one)
    assert one.macro_batch is not None
    one.macro_batch.pending = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        to_floats(one.run_step(batch))
        torch.cuda.set_sync_debug_mode("default")
    heard = [w for w in caught if "called a synchronizing" in str(w.message)]
    places = collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in heard)
    return table(["the program waits for the device in", "times a step"], places.most_common(12))


def _kernels(one: CompressionSolver) -> list[str]:
    """Share of three steps in which the device computes, and on what."""
    if one.device.type != "cuda":
        return []
    batch = one_batch(one)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(3):
            to_floats(one.run_step(batch))
        took = 1e6 * (time.perf_counter() - start)
    calls, shares = collections.Counter[str](), collections.Counter[str]()
    for event in profiled.key_averages():
        if event.self_device_time_total > 0:
            kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "other")
            for name in ("all", kind):
                calls[name] += event.count
                shares[name] += event.self_device_time_total
    rows = [(kind, calls[kind] // 3, f"{time_us / took:.1%}") for kind, time_us in shares.most_common()]
    return table(["kernels, PyTorch's defaults", "calls a step", "share of the time"], rows)


def _full_macro_batch(setting: Setting, one: CompressionSolver) -> list[str]:
    """The MMD step of the preset: 32 batches."""
    macro, batch = one.macro_batch, one_batch(one)
    assert macro is not None
    count = setting.pick(32, 3)

    def step() -> None:
        macro.pending = [batch.cpu()] * count
        macro.value(one.model, 1.0, one.model.num_codebooks)
        one.optimizer.zero_grad()

    memory, took = peak_mib(step, one.device), seconds(step, one.device, 1)
    return table(["batches of one MMD step", "s", "MiB above the model"], [(count, took, memory)])


def values(setting: Setting) -> list[str]:
    """Metrics of three training steps beside those on the CPU, from the same weights and batches."""
    overrides = [*([] if setting.tiny else SMALL), batch_of(setting, 8), "rvq.kmeans_init=false"]
    overrides += ["rvq.threshold_ema_dead_code=0"]  # devices draw the samples for dead codes differently
    overrides += ["mmd.num_batches_mmd=1", "losses.mmd=1", "dataset.num_workers=0", "optim.updates_per_epoch=3"]
    cpu = Setting(torch.device("cpu"), setting.tiny, setting.music)
    wanted = _metrics(cpu, overrides)
    rows = []
    found = {}
    for mode in TF32_MODES:
        with tf32(mode):
            found[mode] = _metrics(setting, overrides)
    for index in (0, 2):
        for name, value in wanted[index].items():
            differences = [abs(found[mode][index][name] - value) / max(abs(value), 1e-12) for mode in TF32_MODES]
            rows.append((index + 1, name, value, *differences))
    return table(["step", "metric", "CPU", *(f"relative difference, {mode}" for mode in TF32_MODES)], rows)


def _metrics(setting: Setting, overrides: list[str]) -> list[dict[str, float]]:
    with TemporaryDirectory() as folder, solver_on(setting, folder, *overrides) as one:
        batch = one_batch(one)
        return [to_floats(one.run_step(batch)) for _ in range(3)]


def compiled(setting: Setting) -> list[str]:
    """An experiment: encoder and decoder through torch.compile."""
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # the penalty and the balancer both walk the encoder's graph
    overrides = [batch_of(setting, 64), f"dataset.num_workers={setting.pick(8, 0)}", "mmd.num_batches_mmd=64"]
    with TemporaryDirectory() as folder, solver_on(setting, folder, *overrides) as one, tf32("TF32"):
        batch = one_batch(one)
        plain = seconds(lambda: to_floats(one.run_step(batch)), one.device, 3)
        start = time.perf_counter()
        for part in (one.model.encoder, one.model.decoder):
            part.compile()
        to_floats(one.run_step(batch))
        wait_for(one.device)
        waited = time.perf_counter() - start
        took = seconds(lambda: to_floats(one.run_step(batch)), one.device, 3)
    return table(["step, TF32, s", "encoder and decoder compiled, s", "first step, s"], [(plain, took, waited)])

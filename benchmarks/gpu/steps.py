"""Training steps: time, memory, waiting for data and for the device, values beside the CPU, torch.compile."""

import collections
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
MODES: dict[str, list[str]] = {  # overrides of the product; what a limit cuts off comes last
    "fp32, PyTorch's defaults": [],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
    "fp32, tf32=false": ["tf32=false"],
    "bf16, tf32=true, fused Adam": ["precision=bf16", "tf32=true", "optim.fused=true"],
    "fp32, deterministic": ["deterministic=true"],
    "fp32, fused Adam": ["optim.fused=true"],
    "fp32, tf32=true": ["tf32=true"],
}
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


def steps(setting: Setting) -> Iterator[list[str]]:
    """Time, waiting and memory of training steps at full size, in each mode, and what else there is to know."""
    rows: list[tuple[object, ...]] = []
    header = [
        f"mode, {setting.clips(64)} clips",
        "step, s",
        "clips of 1 s a second",
        "MMD step of 4 batches, s",
        "first step, s",
    ]
    header += ["waiting for data", "longest wait, ms", "memory, MiB"]
    more: list[str] = []
    for name, overrides in list(MODES.items())[:: setting.pick(1, 2)]:
        try:
            row, lines = _measured(setting, name, overrides)
        except Exception as error:
            row, lines = (*[None] * 6, f"{type(error).__name__}: {str(error)[:120]}"), []
        rows.append((name, *row))
        more += lines
        yield [*table(header, rows), *more]


@contextmanager
def _solver(setting: Setting, folder: str, overrides: list[str], updates: int) -> Iterator[CompressionSolver]:
    """Solver of full size, with PyTorch's defaults where overrides do not change them."""
    sizes = [batch_of(setting, 64), f"optim.updates_per_epoch={updates}", "mmd.num_batches_mmd=4"]
    sizes.append(f"dataset.num_workers={setting.pick(8, 0)}")
    with tf32("PyTorch's defaults"), solver_on(setting, folder, *sizes, *overrides) as one:
        yield one
    set_deterministic(False)


def _measured(setting: Setting, name: str, overrides: list[str]) -> tuple[tuple[object, ...], list[str]]:
    """The row of a mode, and more of it for the two that are looked into."""
    with TemporaryDirectory() as folder, _solver(setting, folder, overrides, setting.pick(UPDATES, 6)) as one:
        clocks: list[Clock] = []
        memory = peak_mib(lambda: clocks.append(train_stage(one)), setting.device)
        row = *_summary(clocks[0], setting.clips(64)), memory
        try:
            if name == "bf16":
                return row, _kernels(one, name)
            if overrides:
                return row, []
            return row, [*_waits(one), *_kernels(one, name), *_full_macro_batch(setting, one)]
        except Exception as error:  # the row is there all the same
            return row, [f"{name}: {type(error).__name__}: {str(error)[:120]}", ""]


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


def _kernels(one: CompressionSolver, mode: str) -> list[str]:
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
    return table([f"kernels, {mode}", "calls a step", "share of the time"], rows)


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
    for mode in ("bf16", "fp16"):
        found[mode] = _metrics(setting, [*overrides, f"precision={mode}"])
    for index in (0, 2):
        for name, value in wanted[index].items():
            differences = [
                abs(one[index].get(name, float("nan")) - value) / max(abs(value), 1e-12) for one in found.values()
            ]
            rows.append((index + 1, name, value, *differences))
    return table(["step", "metric", "CPU", *(f"relative difference, {mode}" for mode in found)], rows)


def _metrics(setting: Setting, overrides: list[str]) -> list[dict[str, float]]:
    with TemporaryDirectory() as folder, solver_on(setting, folder, *overrides) as one:
        batch = one_batch(one)
        return [to_floats(one.run_step(batch)) for _ in range(3)]


def compiled(setting: Setting) -> Iterator[list[str]]:
    """Time of steps with compile=true, and of the first, with an empty cache of compiled kernels."""
    rows: list[tuple[object, ...]] = []
    header = [
        f"mode, {setting.clips(64)} clips",
        "step, s",
        "memory, MiB",
        "step with compile=true, s",
        "memory, MiB",
        "first step, s",
    ]
    shared = [batch_of(setting, 64), "dataset.num_workers=0", "mmd.num_batches_mmd=64"]
    for name, mode in (("bf16, tf32=true", ["precision=bf16", "tf32=true"]), ("fp32, tf32=true", ["tf32=true"])):
        cells: list[object] = [name]
        for more in ([], ["compile=true"]):
            torch.compiler.reset()
            with (
                TemporaryDirectory() as cache,
                mock.patch.dict("os.environ", {"TORCHINDUCTOR_CACHE_DIR": cache}),
                TemporaryDirectory() as folder,
                solver_on(setting, folder, *shared, *mode, *more) as one,
            ):
                batch = one_batch(one)
                start = time.perf_counter()
                to_floats(one.run_step(batch))
                first = time.perf_counter() - start
                cells += [seconds(lambda: to_floats(one.run_step(batch)), one.device, 3)]  # noqa: B023
                cells += [peak_mib(lambda: to_floats(one.run_step(batch)), one.device)]  # noqa: B023
            cells += [first] if more else []
            yield table(header, [*rows, (*cells, *[None] * (len(header) - len(cells)))])
        rows.append(tuple(cells))


def beside_audiocraft(setting: Setting) -> list[str]:
    """Training steps of ours and of AudioCraft's solver in turns, from the same weights, on the same batches."""
    if setting.audiocraft is None:
        return ["left out: no --audiocraft CLONE was given", ""]
    from benchmarks import train_step

    size = setting.clips(32)
    modes = {"audiotok, fp32": [], "audiotok, bf16": ["precision=bf16"]}
    solvers = {name: train_step.our_solver(setting.device, *mode, tiny=setting.tiny) for name, mode in modes.items()}
    theirs = train_step.their_solver(train_step.load(setting.audiocraft), solvers["audiotok, fp32"])
    runs = {"AudioCraft": train_step.their_step(theirs)}
    runs |= {name: train_step.our_step(one) for name, one in solvers.items()}
    batches = [train_step.music(index, size).to(setting.device) for index in range(setting.pick(8, 3))]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for batch in batches:
        for name, run in runs.items():
            start = time.perf_counter()
            run(batch)
            wait_for(setting.device)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found[2:]) for name, found in times.items()}
    memory = {name: peak_mib(partial(run, batches[0]), setting.device) for name, run in runs.items()}
    rows = [(name, took, medians["AudioCraft"] / took, memory[name]) for name, took in medians.items()]
    return table([f"{size} clips of 1 s", "s a step", "times as fast", "MiB above the model"], rows)

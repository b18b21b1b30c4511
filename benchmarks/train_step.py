"""The training step of the 32 kHz codec beside AudioCraft's: `python -m benchmarks.train_step [--audiocraft CLONE]`.

CLONE is a clone of github.com/facebookresearch/audiocraft, see `benchmarks.audiocraft`: its solver's `run_step` runs as
it is, with its model, discriminators, losses and balancer. Without CLONE only ours is measured. Both start from
the same weights and see the same batches. Each runs in a process of its own; steps take turns, so that a busy machine
slows both.

With `--curve N`, codebooks are AudioCraft's in both, and N steps of ours are compared with its curve, beside
AudioCraft's own from weights that were moved by one unit in the last place.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from audiotok.solvers import CompressionSolver
from audiotok.solvers.averages import to_floats
from audiotok.solvers.settings import settings
from benchmarks.audiocraft import import_audiocraft
from benchmarks.gpu.__main__ import make_music
from benchmarks.gpu.device import Setting, seconds, table, wait_for
from benchmarks.gpu.solvers import solver_on
from benchmarks.machine import memory_kib, where

RATE = 32000
OURS, THEIRS, MOVED = "audiotok", "AudioCraft", "AudioCraft, moved"
VARIANTS: dict[str, list[str]] = {  # programs of ours, and their overrides
    OURS: [],
    "audiotok, fused Adam": ["optim.fused=true"],
    "audiotok, bf16": ["precision=bf16"],
    "audiotok, bf16, fused Adam": ["precision=bf16", "optim.fused=true"],
}
LOSSES = ("msspec", "l1", "penalty", "adv", "feat", "d_loss")
KINDS = {  # of operations, by the beginnings of their names
    "convolution backward": ("aten::convolution_backward", "aten::_slow_conv", "aten::slow_conv"),
    "convolution forward": ("aten::mkldnn_convolution", "aten::_convolution"),
    "LSTM backward": ("aten::mkldnn_rnn_layer_backward",),
    "LSTM forward": ("aten::mkldnn_rnn_layer",),
    "Adam": ("Optimizer.step", "aten::addcdiv_", "aten::addcmul_", "aten::lerp_", "aten::_fused_adam", "aten::sqrt"),
    "FFT": ("aten::_fft",),
    "weight norm": ("aten::_weight_norm", "aten::norm_except"),
    "copies": ("aten::copy_", "aten::cat"),
}
NAMES: tuple[str, ...] = (
    "solvers.compression",
    "models.encodec",
    "adversarial",
    "losses.balancer",
    "losses.specloss",
    "losses.sisnr",
)
NAMES += ("quantization", "quantization.core_vq", "modules")
WITHOUT = ("solvers.base", "solvers.builders", "utils.checkpoint", "utils.samples.manager", "utils.utils")
Metrics = dict[str, float]
Step = Callable[[Tensor], Metrics]


def music(index: int, batch_size: int) -> Tensor:
    """A batch [B, 1, RATE] of decaying notes and noise."""
    generator = torch.Generator().manual_seed(index)
    since = torch.arange(RATE) % (RATE // 2) / RATE
    pitches = 110 * 2 ** (torch.randint(0, 36, (batch_size, 4, 1), generator=generator) / 12)
    notes = (torch.sin(2 * torch.pi * pitches * since) * torch.exp(-3 * since)).sum(1, keepdim=True)
    return 0.1 * notes + 0.01 * torch.randn(batch_size, 1, RATE, generator=generator)


def our_solver(device: torch.device, *overrides: str, tiny: bool = False) -> CompressionSolver:
    """The baseline of the 32 kHz preset, in its train stage."""
    with tempfile.TemporaryDirectory() as folder:
        make_music(Path(folder), 8, 2.0)
        shared = ["losses.mmd=0", "dataset.batch_size=2", "dataset.num_workers=0"]
        with solver_on(Setting(device, tiny, Path(folder)), folder, *shared, *overrides) as solver:
            solver.model.train()
            solver._current_stage = "train"
            solver.rng = torch.Generator().manual_seed(0)
            return solver


def our_step(solver: CompressionSolver) -> Step:
    """A step of ours."""
    return lambda batch: dict(to_floats(solver.run_step(batch)))


def their_solver(modules: Mapping[str, Any], ours: CompressionSolver) -> Any:
    """AudioCraft's solver with the configuration, weights and device of ours; it has not yet made a step."""
    cfg, device = ours.cfg, ours.device
    module = modules["solvers.compression"]
    solver = object.__new__(module.CompressionSolver)
    solver.cfg, solver.device, solver.is_training = cfg, device, True
    solver.model = their_model(modules, cfg).to(device)
    solver.model.load_state_dict(ours.model.state_dict())
    solver.optimizer = _adam(solver.model, cfg)
    solver.adv_losses = torch.nn.ModuleDict({"msstftd": _their_adversary(modules, ours)})
    specloss, sisnr, weights = modules["losses.specloss"], modules["losses.sisnr"], cfg.losses
    trained = {
        "l1": torch.nn.L1Loss(),
        "msspec": specloss.MultiScaleMelSpectrogramLoss(**settings(cfg.msspec)),
    }
    reported = {  # of weight 0, in its configuration too, and measured at every step
        "mel": specloss.MelSpectrogramL1Loss(**settings(cfg.mel)),
        "sisnr": sisnr.SISNR(**settings(cfg.sisnr)),
    }
    solver.aux_losses = torch.nn.ModuleDict(trained).to(device)
    solver.info_losses = torch.nn.ModuleDict(reported).to(device)
    of_adversary = {f"{kind}_msstftd": float(weights[kind]) for kind in ("adv", "feat")}
    balanced = of_adversary | {name: float(weights[name]) for name in trained}
    solver.balancer = modules["losses.balancer"].Balancer(balanced, **settings(cfg.balancer))
    solver.rng = torch.Generator().manual_seed(0)
    solver.model.train()
    return solver


def their_model(modules: Mapping[str, Any], cfg: Any) -> Any:
    """AudioCraft's codec of a configuration with our keys, on the CPU."""
    networks, seanet, rvq = modules["modules"], settings(cfg.seanet), settings(cfg.rvq)
    encoder, decoder = seanet.pop("encoder"), seanet.pop("decoder")
    left_out = ("kmeans_start", "commitment_weight")  # their ways are ours by default
    return modules["models.encodec"].EncodecModel(
        networks.SEANetEncoder(**{**seanet, **encoder}),
        networks.SEANetDecoder(**{**seanet, **decoder}),
        modules["quantization"].ResidualVectorQuantizer(
            dimension=seanet["dimension"], **{name: value for name, value in rvq.items() if name not in left_out}
        ),
        frame_rate=50,
        sample_rate=RATE,
        channels=1,
    )


def _their_adversary(modules: Mapping[str, Any], ours: CompressionSolver) -> Any:
    adversarial, cfg = modules["adversarial"], ours.cfg
    adversary = adversarial.MultiScaleSTFTDiscriminator(**settings(cfg.msstftd)).to(ours.device)
    adversary.load_state_dict(ours.adversaries["msstftd"].adversary.state_dict())
    criteria = adversarial.get_adv_criterion, adversarial.get_real_criterion, adversarial.get_fake_criterion
    return adversarial.AdversarialLoss(
        adversary,
        _adam(adversary, cfg),
        *(criterion(cfg.adversarial.adv_loss) for criterion in criteria),
        adversarial.FeatureMatchingLoss(torch.nn.L1Loss(), cfg.adversarial.normalize),
        cfg.adversarial.normalize,
    )


def _adam(model: torch.nn.Module, cfg: Any) -> torch.optim.Optimizer:
    adam = settings(cfg.optim.adam)
    return torch.optim.Adam(
        model.parameters(), lr=cfg.optim.lr, betas=tuple(adam["betas"]), weight_decay=adam["weight_decay"]
    )


def their_step(solver: Any) -> Step:
    """A step of AudioCraft."""

    def step(batch: Tensor) -> Metrics:
        metrics: dict[str, Any] = {}
        return dict(to_floats(solver.run_step(0, batch, metrics)))

    return step


def use_their_codebooks(modules: Mapping[str, Any], solver: CompressionSolver) -> None:
    """Put AudioCraft's codebooks, with their start and their revival, into our quantiser."""
    theirs = modules["quantization.core_vq"].EuclideanCodebook
    kind = type("Codebook", (theirs,), {"ready": property(lambda self: bool(self.inited))})
    rvq, layers = settings(solver.cfg.rvq), solver.model.quantizer.get_submodule("vq.layers")
    names = ("kmeans_init", "kmeans_iters", "decay", "threshold_ema_dead_code")
    for layer in layers.children():
        ours = layer.get_submodule("_codebook")
        codebook = kind(solver.cfg.seanet.dimension, rvq["bins"], **{name: rvq[name] for name in names})
        codebook.load_state_dict(ours.state_dict())
        layer.add_module("_codebook", codebook.to(solver.device).train())


def move(modules: Sequence[torch.nn.Module], seed: int) -> None:
    """Move every weight by one unit in the last place, up or down."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in itertools.chain.from_iterable(module.parameters() for module in modules):
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1
        moved = torch.nextafter(parameter.detach().cpu(), signs * torch.inf)
        parameter.data.copy_(moved)


class Worker:
    """A program in a process of its own, which makes a step whenever it is told to."""

    def __init__(self, name: str, batch_size: int, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "benchmarks.train_step", "--one", name, "--batches", str(batch_size)]
        command += ["--device", str(options.device), "--threads", str(options.threads)]
        command += ["--audiocraft", str(options.audiocraft)] if options.audiocraft else []
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def step(self, index: int) -> Metrics:
        """Make a step with batch `index`; its seconds, CPU seconds of all threads, and MiB of the process at most."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(index, file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(name: str, batch_size: int, options: argparse.Namespace) -> None:
    """What a worker does: a step for each line that it reads."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    device = options.device
    as_found = mock.patch("audiotok.training.keep_freed_memory") if name == THEIRS else nullcontext()
    with as_found:  # AudioCraft leaves the C library as it is
        ours = our_solver(device, *VARIANTS.get(name, []))
    step = our_step(ours)
    if name == THEIRS:
        step = their_step(their_solver(load(options.audiocraft), ours))
        del ours  # nothing of it is left but a configuration
    for line in sys.stdin:
        batch = music(int(line), batch_size).to(device)
        torch.manual_seed(int(line))
        wait_for(device)
        wall, cpu = time.perf_counter(), time.process_time()
        metrics = step(batch)
        wait_for(device)
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        held = memory_kib("VmHWM") if device.type == "cpu" else torch.cuda.max_memory_allocated() / 1024
        print(json.dumps(found | {"mib": held / 1024} | metrics), file=answers, flush=True)


def load(clone: Path) -> dict[str, Any]:
    """The modules of AudioCraft by name."""
    return dict(zip(NAMES, import_audiocraft(clone, NAMES, without=WITHOUT), strict=True))


def timing(options: argparse.Namespace) -> list[str]:
    """The table of times and memory; the order of the programs changes from step to step."""
    rows = []
    names = [THEIRS] * (options.audiocraft is not None) + list(VARIANTS)
    for batch_size in options.batches:
        workers = {name: Worker(name, batch_size, options) for name in names}
        found: dict[str, list[Metrics]] = {name: [] for name in names}
        for index in range(options.steps + 1):
            for name in names if index % 2 == 0 else names[::-1]:
                found[name].append(workers[name].step(index))
        medians = {
            name: {key: statistics.median(step[key] for step in steps[1:]) for key in ("wall", "cpu")}
            for name, steps in found.items()
        }
        for name, steps in found.items():
            workers[name].close()
            wall, cpu = medians[name]["wall"], medians[name]["cpu"]
            faster = [medians[names[0]][key] / medians[name][key] for key in ("wall", "cpu")]
            rows.append((batch_size, name, 1 / wall, faster[0], cpu, faster[1], steps[0]["wall"], steps[-1]["mib"]))
            print(rows[-1], file=sys.stderr, flush=True)
    header = ["clips of 1 s", "program", "steps per second", "times as fast", "CPU s a step", "times as fast"]
    return table([*header, "first step, s", "MiB of the process"], rows)


def curve(options: argparse.Namespace, modules: Mapping[str, Any]) -> list[str]:
    """Differences from AudioCraft's curve: ours, and AudioCraft's from moved weights."""
    size = options.batches[0]
    small = ["seanet.n_filters=16", "msstftd.filters=8"] if options.small else []
    ours = our_solver(options.device, *small)
    use_their_codebooks(modules, ours)
    moved = [f"{MOVED} {seed + 1}" if options.moved > 1 else MOVED for seed in range(options.moved)]
    theirs = {name: their_solver(modules, ours) for name in (THEIRS, *moved)}
    for seed, name in enumerate(moved):
        move([theirs[name].model, theirs[name].adv_losses["msstftd"].adversary], seed)
    steps = {name: their_step(solver) for name, solver in theirs.items()} | {OURS: our_step(ours)}
    found: dict[str, list[Metrics]] = {name: [] for name in steps}
    for index in range(options.curve):
        batch = music(index, size).to(options.device)
        for name, step in steps.items():
            torch.manual_seed(index)  # of the samples that take the place of dead codes
            found[name].append(step(batch))
        if (index + 1) % 10 == 0:
            print(index + 1, {name: round(rows[-1]["msspec"], 5) for name, rows in found.items()}, file=sys.stderr)
            if options.save:
                Path(options.save).write_text(json.dumps(found))
    return _differences(found)


def _differences(found: Mapping[str, list[Metrics]]) -> list[str]:
    """Table of relative differences of each loss from AudioCraft's: at some steps, and on average over all."""
    count = len(found[THEIRS])
    marks = [mark for mark in (1, 2, 5, 10, 20, 50, 100, 200, 500) if mark <= count]
    rows = []
    for loss, name in itertools.product(LOSSES, [OURS, *(name for name in found if name.startswith(MOVED))]):
        pairs = zip(found[name], found[THEIRS], strict=True)
        apart = [abs(a[loss] - b[loss]) / max(abs(b[loss]), 1e-12) for a, b in pairs]
        tail = [sum(row[loss] for row in found[which][count // 2 :]) / (count - count // 2) for which in (name, THEIRS)]
        rows.append((loss, name, *(apart[mark - 1] for mark in marks), statistics.mean(apart), tail[0] / tail[1] - 1))
    header = ["loss", "beside AudioCraft", *(f"step {mark}" for mark in marks), "mean of all steps"]
    return table([*header, "mean of the second half, its difference"], rows)


def bounds(options: argparse.Namespace) -> list[str]:
    """Where the time of a step goes, and how its convolutions compare with the fastest matrix product."""
    lines = []
    for batch_size in options.batches:
        solver = our_solver(options.device)
        step, batch = our_step(solver), music(0, batch_size).to(options.device)
        for _ in range(2):
            step(batch)
        with FlopCounterMode(display=False) as counter:
            step(batch)
        flops = counter.get_total_flops()
        took = seconds(partial(step, batch), options.device, 3)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step(batch)
        events = profiled.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        rows = []
        for kind, beginnings in {**KINDS, "all else": ("",)}.items():
            mine = [event for event in events if event.key.startswith(beginnings)]
            rows.append((kind, f"{sum(event.self_cpu_time_total for event in mine) / total:.1%}"))
            events = [event for event in events if event not in mine]
        peak_flops = matmul_peak(options.device)
        lines += [
            f"{batch_size} clips: {flops / 1e9:.0f} GFLOP of convolutions and matrix products in {took:.2f} s are "
            f"{flops / took / 1e9:.0f} GFLOP/s; a product of two 2048 × 2048 matrices runs at "
            f"{peak_flops / 1e9:.0f} GFLOP/s: {flops / took / peak_flops:.0%} of it.",
            "",
            *table(["operations", "share of a step"], rows),
        ]
    return lines


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of the best of some products of two matrices 2048 × 2048."""
    a = torch.randn(2048, 2048, device=device)
    best = float("inf")
    for _ in range(6):
        wait_for(device)
        start = time.perf_counter()
        a @ a
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return float(2 * 2048**3 / best)


def main() -> None:
    """Measure, and print the tables of docs/benchmarks/train_step.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audiocraft", type=Path, metavar="CLONE")
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 4], help="clips of a batch (2 4)")
    parser.add_argument("--steps", type=int, default=10, help="steps of each program, after the first (10)")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (all cores)")
    parser.add_argument("--curve", type=int, default=0, metavar="N", help="compare N steps instead")
    parser.add_argument("--moved", type=int, default=1, metavar="M", help="curves of AudioCraft from moved weights (1)")
    parser.add_argument("--small", action="store_true", help="compare a model of a quarter of the width")
    parser.add_argument("--save", metavar="FILE", help="metrics of the steps compared, as JSON")
    parser.add_argument("--quick", action="store_true", help="times alone, not where they go")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        work(options.one, options.batches[0], options)
        return
    if options.curve:
        if options.audiocraft is None:
            parser.error("--curve needs --audiocraft CLONE")
        print("\n".join(curve(options, load(options.audiocraft))))
        return
    lines = timing(options)
    print("\n".join([where("benchmarks.train_step"), "", *lines, *([] if options.quick else bounds(options))]))


if __name__ == "__main__":
    main()

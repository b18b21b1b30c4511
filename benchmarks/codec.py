"""Encoding and decoding beside the EnCodec of AudioCraft and that of Hugging Face.

`python -m benchmarks.codec [--audiocraft CLONE] [--codec demo]`; CLONE is a clone of
github.com/facebookresearch/audiocraft, see `benchmarks.audiocraft`. All have the same weights: of the 32 kHz model,
fresh, with codebooks fitted to its latents, or of a trained one. Each program runs in a process of its own, within
`torch.inference_mode()`; clips take turns, so that a busy machine slows all. Ours keeps freed memory, as its commands
do (`audiotok.utils.memory`), and once leaves the C library as it is, as the others do.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from audiotok.checkpoint import load_checkpoint, resolve_checkpoint
from audiotok.models import get_compression_model
from audiotok.models.pretrained import configuration_of
from audiotok.modules.seanet import SEANetOptions
from audiotok.utils.memory import keep_freed_memory
from benchmarks.gpu.device import table
from benchmarks.machine import where
from benchmarks.train_step import load, matmul_peak, their_model

OURS, PLAIN, BF16 = "audiotok", "audiotok, memory as found", "audiotok, bf16"
AUDIOCRAFT, HUGGINGFACE = "AudioCraft", "Hugging Face"
PROGRAMS = (OURS, PLAIN, BF16, AUDIOCRAFT, HUGGINGFACE)
WAYS = ("encode", "decode")
SIZE = {  # the codec of MusicGen
    "compression_model": "encodec",
    "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 32000, "channels": 1},
    "seanet": {
        **asdict(SEANetOptions(n_filters=64, ratios=[8, 5, 4, 4], norm_params={})),
        "encoder": {},
        "decoder": {},
    },
    "rvq": {"n_q": 4, "bins": 2048},
}
Run = Callable[[Tensor], Tensor]
Found = dict[str, float]


def music(batch: int, samples: int, channels: int, rate: int, seed: int = 0) -> Tensor:
    """Clips [B, C, T] of decaying notes and noise."""
    generator = torch.Generator().manual_seed(seed)
    since = torch.arange(samples) % (rate // 2) / rate
    starts = torch.arange(samples) // (rate // 2)
    pitches = 110 * 2 ** (torch.randint(0, 36, (batch, 4, int(starts[-1]) + 1), generator=generator) / 12)
    notes = torch.sin(2 * torch.pi * pitches[..., starts] * since) * torch.exp(-3 * since)
    noise = torch.randn(batch, channels, samples, generator=generator)
    return 0.1 * notes.sum(1, keepdim=True) + 0.01 * noise


def configuration(codec: str) -> DictConfig:
    """That of a checkpoint, or of the 32 kHz model if codec is empty."""
    if not codec:
        return OmegaConf.create(SIZE)
    path = resolve_checkpoint(codec)
    return configuration_of(load_checkpoint(path), path)


def make_weights(codec: str, cfg: DictConfig) -> dict[str, Tensor]:
    """Weights of a trained codec, or fresh ones with codebooks of k-means."""
    torch.manual_seed(0)
    model = get_compression_model(cfg)
    if codec:
        return dict(type(model).get_pretrained(codec).state_dict())
    wav = music(6, 20 * model.sample_rate, model.channels, model.sample_rate, seed=1)
    with torch.no_grad():
        latent = torch.cat([model.encoder(clip[None]) for clip in wav], dim=2)  # type: ignore[operator]
        model.get_submodule("quantizer").train()(latent, model.frame_rate)
    return dict(model.state_dict())


def our_runs(cfg: DictConfig, weights: Mapping[str, Tensor]) -> tuple[Run, Run]:
    """Encoding and decoding of ours."""
    model = get_compression_model(cfg).eval()
    model.load_state_dict(weights)
    return lambda wav: model.encode(wav)[0], model.decode


def audiocraft_runs(clone: Path, cfg: DictConfig, weights: Mapping[str, Tensor]) -> tuple[Run, Run]:
    """The same of AudioCraft."""
    model = their_model(load(clone), cfg).eval()
    model.load_state_dict(weights)
    return lambda wav: model.encode(wav)[0], model.decode


def huggingface_runs(cfg: DictConfig, weights: Mapping[str, Tensor]) -> tuple[Run, Run]:
    """The same of Transformers."""
    from transformers import EncodecConfig, EncodecModel

    seanet, encodec, rvq = cfg.seanet, cfg.encodec, cfg.rvq
    kbps = rvq.n_q * (rvq.bins - 1).bit_length() * encodec.sample_rate / torch.tensor(seanet.ratios).prod().item() / 1e3
    model: Any = EncodecModel(
        EncodecConfig(
            sampling_rate=encodec.sample_rate, audio_channels=encodec.channels, hidden_size=seanet.dimension,
            num_filters=seanet.n_filters, upsampling_ratios=list(seanet.ratios), codebook_size=rvq.bins,
            target_bandwidths=[kbps], use_causal_conv=False, pad_mode=seanet.get("pad_mode", "constant"),
            use_conv_shortcut=False, num_lstm_layers=seanet.get("lstm", 2),
        )
    )  # fmt: skip
    model.train(False)
    model.load_state_dict({huggingface_name(name, model.state_dict()): value for name, value in weights.items()})
    return (
        lambda wav: model.encode(wav, bandwidth=kbps).audio_codes[0],
        lambda codes: model.decode(codes[None], [None]).audio_values,
    )


def huggingface_name(name: str, theirs: Mapping[str, Tensor]) -> str:
    """The name in Transformers of one of our weights."""
    name = name.replace("quantizer.vq.", "quantizer.").replace("._codebook.", ".codebook.")
    name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
    name = re.sub(r"\.(conv|convtr)\.\1\.", ".conv.", name)
    newer = name.replace("weight_g", "parametrizations.weight.original0")
    newer = newer.replace("weight_v", "parametrizations.weight.original1")
    return newer if newer in theirs else name


def work(name: str, folder: Path, options: argparse.Namespace) -> None:
    """What a worker does: a clip for each line that it reads; the result goes into the folder."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    if name in (OURS, BF16):
        keep_freed_memory()
    cfg, weights = configuration(options.codec), torch.load(folder / "weights.pt", weights_only=True)
    if name == AUDIOCRAFT:
        runs = audiocraft_runs(options.audiocraft, cfg, weights)
    else:
        runs = huggingface_runs(cfg, weights) if name == HUGGINGFACE else our_runs(cfg, weights)
    for line in sys.stdin:
        way, batch, threads = json.loads(line)
        torch.set_num_threads(threads)
        given = torch.load(folder / f"{way}_{batch}.pt", weights_only=True)
        precision: AbstractContextManager[object] = nullcontext()
        if name == BF16:
            precision = torch.autocast("cpu", torch.bfloat16)
        with torch.inference_mode(), precision:
            wall, cpu = time.perf_counter(), time.process_time()
            result = runs[WAYS.index(way)](given)
            found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        torch.save(result.float() if way == "decode" else result, folder / f"{name}_{way}_{batch}.pt")
        print(json.dumps(found), file=answers, flush=True)


def measure(names: list[str], folder: Path, options: argparse.Namespace) -> list[str]:
    """The tables of times and of what differs."""
    arguments = [f"--codec={options.codec}", f"--audiocraft={options.audiocraft}"]
    command = [sys.executable, "-m", "benchmarks.codec", *arguments, "--folder", str(folder), "--one"]
    pipe = subprocess.PIPE
    workers = {name: subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, text=True) for name in names}
    others = [name for name in names if name in (AUDIOCRAFT, HUGGINGFACE)]
    mine = [name for name in names if name not in others]
    rows, apart = [], []
    for threads, batch, way in ((t, b, w) for t in options.threads for b in options.batches for w in WAYS):
        found: dict[str, list[Found]] = {name: [] for name in names}
        for index in range(options.rounds + 1):
            for name in names if index % 2 == 0 else names[::-1]:
                stdin, stdout = workers[name].stdin, workers[name].stdout
                assert stdin is not None and stdout is not None
                print(json.dumps([way, batch, threads]), file=stdin, flush=True)
                found[name].append(json.loads(stdout.readline()))
        medians = {
            name: {key: statistics.median(each[key] for each in runs[1:]) for key in ("wall", "cpu")}
            for name, runs in found.items()
        }
        for name in names:
            wall, cpu = medians[name]["wall"], medians[name]["cpu"]
            ratios = [
                medians[other][key] / medians[name][key] if name in mine else ""
                for other in others
                for key in ("cpu", "wall")
            ]
            rows.append((threads, batch, way, name, cpu, wall, *ratios))
            print(rows[-1], file=sys.stderr, flush=True)
        if threads == options.threads[0]:
            reference = torch.load(folder / f"{others[0] if others else OURS}_{way}_{batch}.pt", weights_only=True)
            for name in names:
                value = torch.load(folder / f"{name}_{way}_{batch}.pt", weights_only=True)
                apart.append((batch, way, name, difference(value, reference, way)))
    for worker in workers.values():
        worker.communicate()
    header = ["threads", "clips", "", "program", "CPU s", "wall s"]
    header += [f"times as fast as {other}, {unit}" for other in others for unit in ("CPU", "wall")]
    what = ["clips", "", "program", f"beside {others[0] if others else OURS}"]
    return [*table(header, rows), "", *table(what, apart)]


def difference(value: Tensor, reference: Tensor, way: str) -> str:
    """Share of equal codes, or signal-to-noise ratio of audio."""
    if way == "encode":
        equal = (value == reference).double()
        return f"{equal.mean():.2%} of codes equal, by codebook {', '.join(f'{x:.1%}' for x in equal.mean(dim=(0, 2)))}"
    noise = (value - reference).double().pow(2).mean()
    return f"SNR {float(10 * (reference.double().pow(2).mean() / noise).log10()):.0f} dB"


def bounds(cfg: DictConfig, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> list[str]:
    """Convolutions of one clip in GFLOP/s, beside the fastest products of matrices, on one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    runs, device = our_runs(cfg, weights), torch.device("cpu")
    lines = [f"A product of two 2048 × 2048 matrices (MKL): {matmul_peak(device) / 1e9:.0f} GFLOP/s; "]
    a, b = torch.randn(1, 1024, 1, 4096).contiguous(memory_format=torch.channels_last), torch.randn(1024, 1024, 1, 3)
    with torch.inference_mode():
        took = min(_cpu_seconds(lambda: F.conv2d(a, b)) for _ in range(5))
        lines[0] += f"a convolution of 1024 channels (oneDNN): {2 * 1024**2 * 3 * 4094 / took / 1e9:.0f}."
        rows = []
        for way, run in zip(WAYS, runs, strict=True):
            with FlopCounterMode(display=False) as counter:
                run(inputs[way])
            flops = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "conv" in str(op))
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
                run(inputs[way])
            own = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
            total, convs = sum(own.values()), sum(time for name, time in own.items() if "conv" in name)
            kinds = {"convolutions": "conv", "LSTM": "rnn", "ELU": "elu", "copies": "copy", "additions": "aten::add"}
            shares = [f"{sum(time for key, time in own.items() if part in key) / total:.0%}" for part in kinds.values()]
            rows.append((way, flops / 1e9, flops / convs / 1e9, *shares))
    return [lines[0], "", *table(["", "GFLOP of convolutions", "GFLOP/s of these", *kinds], rows)]


def _cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure, and print the tables of docs/benchmarks/codec.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audiocraft", type=Path, metavar="CLONE")
    parser.add_argument("--codec", default="", metavar="MODEL", help="a trained codec, e.g. demo (fresh 32 kHz model)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], help="clips of a batch (1 4)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="threads of PyTorch (1 2)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip (10)")
    parser.add_argument("--rounds", type=int, default=3, help="after the first, which does not count (3)")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, help="programs; Hugging Face needs transformers")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work(options.one, options.folder, options)
        return
    names = list(options.only or PROGRAMS)
    if options.audiocraft is None and AUDIOCRAFT in names:
        names.remove(AUDIOCRAFT)
    cfg = configuration(options.codec)
    weights = make_weights(options.codec, cfg)
    with tempfile.TemporaryDirectory() as name:
        folder, inputs = Path(name), {}
        torch.save(weights, folder / "weights.pt")
        frames = int(options.seconds * cfg.encodec.sample_rate)
        for batch in options.batches:
            wav = music(batch, frames, cfg.encodec.channels, cfg.encodec.sample_rate)
            with torch.inference_mode():
                inputs = {"encode": wav, "decode": our_runs(cfg, weights)[0](wav)}
            for way, value in inputs.items():
                torch.save(value, folder / f"{way}_{batch}.pt")
        lines = measure(names, folder, options)
    print("\n".join([where("benchmarks.codec " + " ".join(sys.argv[1:])), "", *lines]))
    print("\n".join(["", *bounds(cfg, weights, inputs)]))


if __name__ == "__main__":
    main()

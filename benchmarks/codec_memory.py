"""Resident memory and speed of `audiotok encode` and `audiotok decode` on an hour of audio, as the system counts them.

python -m benchmarks.codec_memory demo --minutes 60
python -m benchmarks.codec_memory 32khz --minutes 5    # the size of solver compression/encodec_musicgen_32khz
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile


def main() -> None:
    """Run both commands, and print the most memory that each has held from its start to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=("demo", "32khz"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=1, help="files at once; so many are coded")
    parser.add_argument("--write", type=Path, help="of the process that writes the model")
    args = parser.parse_args()
    if args.write:
        write_codec(args.write)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, codec = Path(scratch), "demo"
        if args.model != "demo":  # in a process of its own: a child counts what its parent holds as it starts
            codec = str(folder / "codec.bin")
            subprocess.run([sys.executable, "-m", "benchmarks.codec_memory", args.model, "--write", codec], check=True)
        for number in range(args.jobs):
            write_noise(folder / f"music/{number}.wav", args.minutes, seed=number)
        for part, source, out in (("encode", "music", "tokens"), ("decode", "tokens", "back")):
            command = [sys.executable, "-m", "audiotok.cli", part, str(folder / source), "--model", codec]
            options = ["--out", str(folder / out), "--device", "cpu", "--jobs", str(args.jobs)]
            seconds, cpu_s, mib = measure([*command, *options])
            rate = args.minutes * 60 * args.jobs / seconds
            print(
                f"{args.model} {part}: {args.jobs} × {args.minutes:g} minutes, {mib:.0f} MiB at most, "
                f"{cpu_s:.0f} s of CPU, {rate:.1f} times as fast as it plays",
                flush=True,
            )


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command: seconds, CPU seconds, and the most memory that it has held, in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def write_noise(path: Path, minutes: float, seed: int) -> None:
    """Noise with chords that come and go, at 32 kHz, a second at once."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(32000) / 32000
    path.parent.mkdir(exist_ok=True)
    with soundfile.SoundFile(os.fsencode(path), "w", 32000, 1, format="WAV", subtype="PCM_16") as file:
        for _ in range(round(minutes * 60)):
            notes = sum(np.sin(2 * np.pi * 110 * 2 ** (note / 12) * time_s) for note in rng.integers(0, 36, 3))
            file.write(0.1 * notes + 0.01 * rng.standard_normal(32000))


def write_codec(path: Path) -> None:
    """Write a fresh codec of MusicGen's size as an exported file."""
    import torch
    from omegaconf import OmegaConf

    from audiotok.checkpoint import save_checkpoint
    from audiotok.models import get_compression_model
    from tests.codecs import config

    torch.manual_seed(0)
    cfg = config(bins=2048, n_filters=64, dimension=128, ratios=[8, 5, 4, 4])
    cfg.rvq.update({"n_q": 4, "kmeans_init": False})
    cfg.encodec.sample_rate = cfg.sample_rate = 32000
    weights = get_compression_model(cfg).state_dict()
    save_checkpoint({"best_state": weights, "xp.cfg": OmegaConf.to_yaml(cfg), "exported": True}, path)


if __name__ == "__main__":
    main()

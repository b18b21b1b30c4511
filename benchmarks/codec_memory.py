"""Resident memory and speed of encoding and decoding an hour of audio from disk to disk.

python -m benchmarks.codec_memory demo --minutes 60
python -m benchmarks.codec_memory 32khz --minutes 5    # the size of solver compression/encodec_musicgen_32khz
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def main() -> None:
    """Encode and decode in processes of their own, whose largest memory is printed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=("demo", "32khz"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--part", choices=("encode", "decode"), help="of the process that measures itself")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure(args.model, args.part, args.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_noise(folder / "hour.wav", args.minutes)
        for part in ("encode", "decode"):
            command = [sys.executable, "-m", "benchmarks.codec_memory", args.model, "--part", part, "--folder", scratch]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rate = args.minutes * 60 / found["seconds"]
            print(
                f"{args.model} {part}: {args.minutes:g} minutes, {found['peak_mib']:.0f} MiB at most "
                f"({found['before_mib']:.0f} with the model loaded), {rate:.1f} times as fast as it plays"
            )


def write_noise(path: Path, minutes: float) -> None:
    """Noise with chords that come and go, at 32 kHz, a second at once."""
    rng = np.random.default_rng(0)
    time_s = np.arange(32000) / 32000
    with soundfile.SoundFile(os.fsencode(path), "w", 32000, 1, format="WAV", subtype="PCM_16") as file:
        for _ in range(round(minutes * 60)):
            notes = sum(np.sin(2 * np.pi * 110 * 2 ** (note / 12) * time_s) for note in rng.integers(0, 36, 3))
            file.write(0.1 * notes + 0.01 * rng.standard_normal(32000))


def measure(name: str, part: str, folder: Path) -> dict[str, Any]:
    """Encode or decode in this process."""
    from audiotok.coding import decode_files, encode_files

    model = build(name)
    before, started = peak_mib(), time.perf_counter()
    if part == "encode":
        report = encode_files(model, [folder / "hour.wav"], folder / "tokens", codec=name)
    else:
        report = decode_files(model, [folder / "tokens"], folder / "back")
    assert report.done, report.failed
    return {"seconds": time.perf_counter() - started, "peak_mib": peak_mib(), "before_mib": before}


def build(name: str) -> Any:
    """The demo codec, or a fresh one of MusicGen's size."""
    import torch

    from audiotok.models import CompressionModel, get_compression_model
    from tests.codecs import config

    if name == "demo":
        return CompressionModel.get_pretrained("demo")
    torch.manual_seed(0)
    cfg = config(bins=2048, n_filters=64, dimension=128, ratios=[8, 5, 4, 4])
    cfg.rvq.update({"n_q": 4, "kmeans_init": False})
    cfg.encodec.sample_rate = cfg.sample_rate = 32000
    return get_compression_model(cfg).eval()


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

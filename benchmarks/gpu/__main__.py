"""Write docs/benchmarks/gpu.md: each section in a process of its own, so that none can take the others with it."""

import argparse
import contextlib
import datetime
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu.device import Setting, table
from benchmarks.machine import DOCS


class Section(NamedTuple):
    """A function of a module here, and what the page says about it."""

    module: str
    share_s: float  # of the whole time when every section needs all of its own, see `limit_of`
    heading: str
    note: str


SECTIONS = {
    "mmd": Section(
        "kernels", 55, "The MMD between codebooks",
        "Forward and backward of the unbiased estimate, K·D = 512, dependent codebooks. N = 94208 is what the preset "
        "compares in one step: 32 batches of 64 clips of 46 frames. Dense is benchmarks/mmd.py's formula. Errors are "
        "relative to the largest value.",
    ),
    "measures": Section("kernels", 20, "Other estimators, the permutation test, k-means", "At N = 2944."),
    "steps": Section(
        "steps", 85, "Training steps of the 32 kHz model",
        "encodec_mmd_32khz in full: clips of 1 s from wav and flac files, 8 loader processes, msstftd, balancer, an "
        "MMD step every 4 batches. PyTorch's defaults allow TF32 in convolutions and LSTMs, not in matrix products.",
    ),
    "values": Section(
        "steps", 20, "Training steps beside the CPU",
        "A quarter of the width, 8 clips, the same weights and batches, no renewal of dead codes.",
    ),
    "codec": Section(
        "codec", 25, "Encoding and decoding with the 32 kHz model",
        "A margin is how much farther the other code is, relative to the squared distance of the CPU's.",
    ),
    "loader": Section("codec", 20, "The loader alone", "1 s segments of 44.1 kHz stereo wav and flac to 32 kHz mono."),
    "resume": Section(
        "runs", 20, "Stopped and resumed",
        "One epoch of six steps, valid, evaluate and generate, at a quarter of the width.",
    ),
    "deterministic": Section("runs", 35, "Stopped and resumed, deterministic", "The same with deterministic=true."),
    "nccl": Section("runs", 15, "NCCL", "A group of one process, with no collective passed over."),
    "language_model": Section(
        "lm", 45, "The language model",
        "The two sizes of benchmarks/lm.py; an update is forward, backward and AdamW (fused in audiotok), all within "
        "autocast for bf16; codes are drawn from the 250 likeliest.",
    ),
    "beside_audiocraft": Section(
        "steps", 35, "Training steps beside AudioCraft",
        "AudioCraft's solver from a clone, see benchmarks/train_step.py: the baseline of the 32 kHz preset, the same "
        "weights and batches, in turns. PyTorch's defaults for TF32.",
    ),
    "compiled": Section(
        "steps", 85, "torch.compile",
        "compile=true, no MMD. The first step is that of a machine that has never compiled the model.",
    ),
}  # fmt: skip
MARK = "section: "


class Done(NamedTuple):
    """A section that has ended."""

    name: str
    took_s: float
    lines: list[str]
    end: str


def section(name: str, setting: Setting) -> list[str] | Iterator[list[str]]:
    """Run a section; its lines of Markdown, or growing lists of them."""
    run: Callable[[Setting], list[str] | Iterator[list[str]]] = getattr(
        importlib.import_module(f"benchmarks.gpu.{SECTIONS[name].module}"), name
    )
    return run(setting)


def show(found: list[str] | Iterator[list[str]]) -> None:
    """Print the lines of a section, again whenever there are more of them."""
    for lines in [found] if isinstance(found, list) else found:
        print(MARK + json.dumps(lines), flush=True)


def limit_of(name: str, to_come: Sequence[str], left_s: float) -> float:
    """Seconds after which a section is given up: its part of what is left, so that none takes the time of another.

    What a section leaves of its part goes to all that come after it.
    """
    return max(0.0, left_s) * SECTIONS[name].share_s / sum(SECTIONS[one].share_s for one in [name, *to_come])


def in_own_process(name: str, options: argparse.Namespace, music: Path, limit_s: float) -> Done:
    """Run a section in a process of its own; its lines, with why there are no more if it did not end well."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, "--device", options.device]
    command += ["--music", str(music), *(["--tiny"] if options.tiny else [])]
    command += ["--audiocraft", str(options.audiocraft)] if options.audiocraft else []
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # A group of its own: processes that compile would outlive it.
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        try:
            end = "" if process.wait(limit_s) == 0 else f"failed, exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            end = f"given up after {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (out, err):
            stream.seek(0)
        printed, messages = out.read(), err.read()
    took = time.monotonic() - started
    print(f"{name}: {took:.0f} s {end}", file=sys.stderr)
    if end:
        sys.stderr.write(messages[-4000:])
    if end.startswith("failed"):
        end += f": {(messages.strip().splitlines() or ['no message'])[-1][:300]}"
    found = [line for line in printed.splitlines() if line.startswith(MARK)]
    lines = list(json.loads(found[-1].removeprefix(MARK))) if found else []
    return Done(name, took, [*lines, end, ""] if end else lines, end or "whole")


def make_music(folder: Path, tracks: int, length_s: float) -> None:
    """Tracks of decaying notes and noise, half of them wav and half flac, 44.1 kHz stereo, with their manifests."""
    from audiotok.data.audio import write_audio
    from audiotok.data.prepare import prepare

    rate = 44100
    since = torch.arange(int(length_s * rate)) % (rate // 2) / rate
    for index in range(tracks):
        generator = torch.Generator().manual_seed(index)
        pitches = 110 * 2 ** (torch.randint(0, 36, (4, 1), generator=generator) / 12)
        notes = (torch.sin(2 * torch.pi * pitches * since) * torch.exp(-3 * since)).sum(0)
        wav = 0.1 * notes + 0.01 * torch.randn(2, len(since), generator=generator)
        write_audio(folder / f"track{index}.{'flac' if index % 2 else 'wav'}", wav, rate)
    prepare([folder], folder, splits={"train": 0.7, "valid": 0.1, "evaluate": 0.1, "generate": 0.1})


def pages(options: argparse.Namespace) -> Iterator[str]:
    """Run the sections; the page after each of them."""
    started = time.monotonic()
    to_come = [name for name in SECTIONS if name in (options.only or SECTIONS)]
    done: list[Done] = []
    with tempfile.TemporaryDirectory() as music:
        make_music(Path(music), *((8, 3.0) if options.tiny else (40, 10.0)))
        while to_come:
            name = to_come.pop(0)
            limit_s = limit_of(name, to_come, started + options.limit - time.monotonic())
            done.append(in_own_process(name, options, Path(music), limit_s))
            yield page_of(done, options, time.monotonic() - started)


def page_of(done: Sequence[Done], options: argparse.Namespace, took_s: float) -> str:
    """The page of the sections that have ended."""
    card = torch.cuda.get_device_name() if options.device == "cuda" else "the CPU"
    given = "".join(
        f" {flag}" for flag, on in (("--tiny", options.tiny), ("--audiocraft CLONE", options.audiocraft)) if on
    )
    rows = [(f"[{one.name}](#{anchor(SECTIONS[one.name].heading)})", one.took_s, one.end) for one in done]
    lines = ["# On a GPU", "", f"`python -m benchmarks.gpu{given}`, {datetime.date.today()}; {card}, {os.cpu_count()} "
             f"cores, PyTorch {torch.__version__}; {took_s:.0f} s in all.", ""]  # fmt: skip
    lines += table(["section", "s, with the start of its process", "ended"], rows)
    for one in done:
        lines += [f"## {SECTIONS[one.name].heading}", "", SECTIONS[one.name].note, "", *one.lines]
    return "\n".join(lines)


def anchor(heading: str) -> str:
    """What a heading is called in links of Markdown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def main() -> None:
    """Measure and write the page, or say that there is no GPU; with --one, a section as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections; the page is printed, not written")
    parser.add_argument("--limit", type=float, default=460, help="seconds in all (460)")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs; nothing is written")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only to try this program out")
    parser.add_argument("--audiocraft", type=Path, metavar="CLONE", help="of AudioCraft, to run beside")
    parser.add_argument("--one", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--music", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # so that sections end with it
    if options.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: there is nothing to measure (try the program out with --device cpu --tiny).")
        return
    if options.one:
        device, clone = torch.device(options.device), options.audiocraft
        show(section(options.one, Setting(device, options.tiny, options.music, clone)))
        return
    kept = not (options.tiny or options.only or options.device == "cpu")
    page = ""
    for page in pages(options):
        if kept:  # a run that is cut off leaves what it has
            (DOCS / "gpu.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()

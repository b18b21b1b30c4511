"""What benchmarks share: runs in processes of their own, peak memory, and the line that says where they ran."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
Figures = dict[str, float]


def memory_kib(key: str) -> int:
    """A memory figure of this process, such as VmRSS (now) or VmHWM (peak), in KiB; Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def measured(run: Callable[[], None], repeats: int = 1) -> Figures:
    """Median seconds of some runs, and MiB of peak memory above what the process held before."""
    before = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "mib": (memory_kib("VmHWM") - before) / 1024}


def in_turns(module: str, cases: Sequence[Sequence[object]], repeats: int, **environment: str) -> list[Figures]:
    """Medians of `python -m module --one CASE` for each case; the cases take turns, so a busy machine slows all."""
    found: list[list[Figures]] = [[] for _ in cases]
    for _ in range(repeats):
        for case, rows in zip(cases, found, strict=True):
            command = [sys.executable, "-m", module, "--one", *map(str, case)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment})
            rows.append(json.loads(run.stdout))
            print(module, *case, rows[-1], file=sys.stderr)
    return [{key: statistics.median(row[key] for row in rows) for key in rows[0]} for rows in found]


def where(module: str) -> str:
    """Command, date and machine class."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"`python -m {module}`, {datetime.date.today()}; {os.cpu_count()} cores of {cpu}, "
        f"PyTorch {torch.__version__}, on the CPU; load {os.getloadavg()[0]:.1f} at the end."
    )


def write_page(name: str, page: str) -> None:
    """Print a page, and put it into docs/benchmarks."""
    DOCS.mkdir(exist_ok=True)
    (DOCS / name).write_text(page)
    print(page)

"""Loading a results folder: the first time, again from the cache, and with plain json and pandas.

A folder is made up in Dora's layout, 10 000 experiments × 200 epochs × 40 metrics unless given otherwise: some 3 GB of
JSON, for which a disk with 6 GB to spare is needed, and a few minutes.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from audiotok.results.cache import CACHE_FOLDER
from benchmarks.machine import where, write_page

MODULE = "benchmarks.results"
AGE_S = 3600.0  # the files are as old as that: what has just changed is not cached
NAMES = ("msspec", "sisnr", "l1", "mel", "mmd", "adv", "feat", "penalty", "duration")
CHANGED = 100
PLAIN = 1000


def make_tree(root: Path, experiments: int, epochs: int, metrics: int) -> None:
    """Make up a results folder of one grid, in two processes."""
    (root / "xps").mkdir(parents=True)
    (root / "grids" / "made.up").mkdir(parents=True)
    with ProcessPoolExecutor(2) as pool:
        chunks = [(root, range(start, experiments, 8), epochs, metrics) for start in range(8)]
        list(pool.map(_make_some, *zip(*chunks, strict=True)))


def _make_some(root: Path, indices: range, epochs: int, metrics: int) -> None:
    template = "[" + ",".join(_epoch_template(metrics) for _ in range(epochs)) + "\n]"
    for index in indices:
        rng = random.Random(index)
        folder = root / "xps" / f"{rng.getrandbits(32):08x}"
        folder.mkdir()
        argv = [
            "solver=compression/demo",
            f"losses.mmd={index % 50}",
            f"rvq.n_q={1 + index // 50 % 16}",
            f"seed={index}",
        ]
        if index % 2:
            argv.append("mmd.sigmas=[0.1, 1, 5, 10]")  # in the others it comes from the configuration
        job = {"launcher": "slurm", "job_id": str(index), "submitted": 1.7e9, "profile": {"gpus": 1}}
        status = {"state": "COMPLETED", "reason": "", "job_id": str(index), "host": f"node{index % 16}", "gpus": 1}
        status |= {"started": 1.7e9, "updated": 1.7e9 + 9e3, "ended": 1.7e9 + 9e3, "epoch": epochs, "epochs": epochs}
        config = {
            "mmd": {"sigmas": [1.0, 2.0]},
            **{f"section_{n}": {f"key_{k}": k for k in range(20)} for n in range(20)},
        }
        texts = {
            ".argv.json": json.dumps(argv),
            "status.json": json.dumps(status, indent=1),
            "job.json": json.dumps(job, indent=1),
            "frozen.json": json.dumps({"argv": argv, "cfg": config, "choices": {}}),
            "history.json": template % tuple([rng.random() for _ in range(epochs * metrics)]),
        }
        past = time.time() - AGE_S
        for name, text in texts.items():
            (folder / name).write_text(text)
            os.utime(folder / name, (past, past))
        (root / "grids" / "made.up" / folder.name).symlink_to(folder)


def _epoch_template(metrics: int) -> str:
    """One epoch as Dora writes it, with `%r` for each number; stages share the names of some metrics."""
    sizes = {"train": metrics * 9 // 20, "valid": metrics * 8 // 20}
    sizes["evaluate"] = metrics - sum(sizes.values())
    names = [*NAMES, *(f"metric_{n}" for n in range(metrics))]
    epoch = {stage: dict.fromkeys(names[:size], 0) for stage, size in sizes.items() if size}
    return "\n  " + json.dumps(epoch, indent=2).replace(": 0", ": %r").replace("\n", "\n  ")


def _measure(*arguments: object) -> dict[str, float]:
    """One measurement in a process of its own, and the peak memory of it and its children, in MiB."""
    command = [sys.executable, "-m", f"{MODULE}_load", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, _tree_mib(process.pid))
            time.sleep(0.01)
        assert process.returncode == 0 and process.stdout is not None, command
        figures: dict[str, float] = json.loads(process.stdout.read()) | {"mib": peak}
    print(*arguments, figures, file=sys.stderr)
    return figures


def _tree_mib(pid: int) -> float:
    """Resident memory of a process and its descendants; what they share counts for each."""
    total, waiting = 0, [str(pid)]
    while waiting:
        folder = Path("/proc", waiting.pop())
        with contextlib.suppress(OSError):
            total += int((folder / "statm").read_text().split()[1]) * resource.getpagesize()
            for task in (folder / "task").iterdir():
                waiting += (task / "children").read_text().split()
    return total / 2**20


def _touch(root: Path, count: int) -> None:
    """Change some histories, long enough ago to be cached."""
    past = time.time() - AGE_S / 2
    for folder in sorted((root / "xps").iterdir())[:count]:
        os.utime(folder / "history.json", (past, past))


def _size_mib(root: Path, pattern: str) -> float:
    return float(sum(path.stat().st_size for path in root.glob(pattern))) / 2**20


def page(root: Path, experiments: int, epochs: int, metrics: int, plain: int) -> str:
    """Measure everything, each figure in a process of its own."""
    shutil.rmtree(root / CACHE_FOLDER, ignore_errors=True)
    cold = _measure("ours", root)
    warm = [_measure("ours", root) for _ in range(3)]
    best = min(warm, key=lambda figures: figures["runs"] + figures["history"])
    _touch(root, CHANGED)
    changed = _measure("ours", root)
    simple = _measure("plain", root, plain)
    fill = _measure("fill", int(cold["rows"]), int(cold["columns"]) - 3)
    scale = experiments / min(plain, experiments)
    rows = [
        ("ours, cold", cold, 1.0, f"{experiments}"),
        ("ours, warm", best, 1.0, f"{experiments}"),
        ("the same memory, filled", fill, 1.0, "-"),
        (f"ours, warm, {CHANGED} histories changed", changed, 1.0, f"{experiments}"),
        ("json + pandas", simple, 1.0, f"{min(plain, experiments)}"),
        ("json + pandas, scaled", simple, scale, f"{experiments}"),
    ]
    lines = [
        f"| {name} | {count} | {_seconds(row, 'runs', scale)} | {_seconds(row, 'history', scale)} "
        f"| {(row.get('runs', 0) + row['history']) * scale:.3g} s | {_seconds(row, 'cpu', scale)} "
        f"| {_seconds(row, 'curve', scale)} "
        f"| {row['base'] + (row['mib'] - row['base']) * scale:.0f} MiB |"
        for name, row, scale, count in rows
    ]
    return PAGE.format(
        table="\n".join(lines),
        where=where(MODULE),
        experiments=experiments,
        epochs=epochs,
        metrics=metrics,
        base=cold["base"],
        rows=int(cold["rows"]),
        columns=int(cold["columns"]),
        json=_size_mib(root, "xps/*/history.json"),
        cache=_size_mib(root, f"{CACHE_FOLDER}/*"),
        warm=", ".join(f"{row['runs'] + row['history']:.2f}" for row in warm),
    )


def _seconds(row: dict[str, float], name: str, scale: float) -> str:
    return f"{row[name] * scale:.3g} s" if name in row else "-"


PAGE = """# Loading results

{where}

{experiments} experiments × {epochs} epochs × {metrics} metrics, {json:.0f} MiB of histories, which become {rows} rows ×
{columns} columns; the cache takes {cache:.0f} MiB.

| | experiments | `load_all` and `.runs` | then `.history` | both | CPU time of both | then one curve | peak memory |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

Each row is a process of its own, less the import of the libraries; peak memory is that of the process, libraries
included ({base:.0f} MiB of it), and of the processes that it starts, sampled every 10 ms. Cold is without a cache, and
writes it; the files are in the page cache of the machine, as far as it keeps them. Warm is the best of three
({warm} s). "One curve" is `read_history(["valid"], ["msspec"])`, of each run. "The same memory, filled" is a NumPy
array of the size of the history, in a fresh process: on a virtual machine, memory that it has to get from its host
first can take longer than everything else.

With json + pandas a row of the table is a dict until all files are read, so it is measured on fewer experiments; time,
and memory above that of the libraries, grow in proportion to their number.
"""


def main() -> None:
    """Write docs/benchmarks/results.md and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--metrics", type=int, default=40)
    parser.add_argument("--plain", type=int, default=PLAIN, help="experiments for json + pandas")
    parser.add_argument("--folder", type=Path, help="keep the tree there, and use one that is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary) / "outputs"
        if not root.exists():
            start = time.perf_counter()
            make_tree(root, args.experiments, args.epochs, args.metrics)
            print(f"made in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        write_page("results.md", page(root, args.experiments, args.epochs, args.metrics, args.plain))


if __name__ == "__main__":
    main()

"""What `benchmarks.results` measures, in a process that imports no more than a reader of results does."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiotok.results import load_all


def load_ours(root: Path) -> dict[str, float]:
    """Load the runs, then all of the history, then one curve of each run."""
    start, cpu = time.perf_counter(), _cpu_s()
    experiments = load_all(root)
    runs = time.perf_counter()
    history = experiments.history
    end, cpu = time.perf_counter(), _cpu_s() - cpu
    curves = experiments.read_history(["valid"], ["msspec"])
    shapes = {"rows": len(history), "columns": history.shape[1], "curve_rows": len(curves), "cpu": cpu}
    return {"runs": runs - start, "history": end - runs, "curve": time.perf_counter() - end, **shapes}


def load_plain(root: Path, count: int) -> dict[str, float]:
    """What a notebook would do: a dict per row, and pandas makes a table of them."""
    start, cpu = time.perf_counter(), _cpu_s()
    rows: list[dict[str, Any]] = []
    for folder in sorted((root / "xps").iterdir())[:count]:
        with (folder / "history.json").open() as file:
            for epoch, stages in enumerate(json.load(file), 1):
                for stage, metrics in stages.items():
                    rows.append({"sig": folder.name, "stage": stage, "epoch": epoch, **metrics})
    frame = pd.DataFrame(rows)
    figures = {"history": time.perf_counter() - start, "cpu": _cpu_s() - cpu}
    return {**figures, "rows": len(frame), "columns": frame.shape[1]}


def fill(rows: int, columns: int) -> dict[str, float]:
    """Request memory as large as the table from the system, and fill it: no reader can take less."""
    start, cpu = time.perf_counter(), _cpu_s()
    np.full((columns, rows), np.nan)
    return {"history": time.perf_counter() - start, "cpu": _cpu_s() - cpu}


def _cpu_s() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    """Print one measurement as JSON: `ours FOLDER`, `plain FOLDER COUNT` or `fill ROWS COLUMNS`."""
    what, *arguments = sys.argv[1:]
    base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    if what == "ours":
        figures = load_ours(Path(arguments[0]))
    elif what == "plain":
        figures = load_plain(Path(arguments[0]), int(arguments[1]))
    else:
        figures = fill(int(arguments[0]), int(arguments[1]))
    print(json.dumps({**figures, "base": base}))


if __name__ == "__main__":
    main()

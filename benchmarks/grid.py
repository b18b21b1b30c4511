"""A grid of 1000 experiments with our launcher and with upstream Dora: resolve, submit, watch.

`python -m benchmarks.grid` writes docs/benchmarks/grid.md; it needs what the cluster tests need (root on Debian).
"""

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import dora.grid
from dora.conf import SlurmConfig, SubmitRules
from dora.grid import RunGridArgs
from dora.hydra import HydraMain
from dora.shep import Sheep, Shepherd
from dora.xp import XP

from audiotok.experiments import ExperimentMain
from audiotok.explorers import CompressionExplorer
from benchmarks import resolve
from benchmarks.machine import where, write_page

if TYPE_CHECKING:
    from tests.cluster.slurm import TestCluster

COUNT = 1000
EPOCHS, METRICS = 200, 40
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel")
TIMES = "SLURM_COMMAND_TIMES"  # names the file that the commands of SLURM write their durations to
UPSTREAM_MONITOR = dora.grid.monitor  # before our hooks replace it

# Stands on PATH before a command of SLURM and notes how long it took: client, controller and accounting together.
_TIMED = """#!/bin/bash
began=$EPOCHREALTIME
{command} "$@"
code=$?
echo "{name} $began $EPOCHREALTIME" >> "$SLURM_COMMAND_TIMES"
exit $code
"""

Figures = dict[str, float]


@dataclass
class Side:
    """One of the two: its shepherd, its sheep and how it shows a table; `resolve_s` is for all of them."""

    shepherd: Any
    sheep: list[Any]
    slurm: Any
    monitor: Callable[..., bool]
    root: Path
    resolve_s: float


def ours(count: int) -> Side:
    """The launcher of this repository."""
    from audiotok.launchers.shepherd import GridShepherd
    from audiotok.launchers.table import monitor
    from audiotok.train import main

    experiments = resolve.grid()[:count]
    seconds = resolve.resolve(resolve.make(ExperimentMain), experiments)[1]
    shepherd = GridShepherd(main)
    profile: Any = main.get_slurm_config()
    profile.update({"gpus": 0, "cpus_per_task": 1, "mem_gb": 1.0, "time": 60, "max_mem_gb": None})
    sheep = [shepherd.get_sheep_from_argv(main.value_to_argv(one)) for one in experiments]
    return Side(shepherd, sheep, profile, monitor, Path(main.dora.dir), seconds)


def upstream(count: int) -> Side:
    """Dora's own classes with the same configuration; most experiments are resolved by ours, being the same."""
    main, resolver = resolve.make(HydraMain), resolve.make(ExperimentMain)
    experiments = resolve.grid()[:count]
    some = slice(None, None, max(1, count // resolve.OF_DORA))
    found, seconds = resolve.resolve(main, experiments[some])
    resolved = resolve.resolve(resolver, experiments)[0]
    xps = [XP(main.dora, xp.cfg, list(xp.argv), delta=xp.delta) for xp in resolved]
    assert [xp.sig for xp in xps[some]] == [xp.sig for xp in found]
    slurm = SlurmConfig(gpus=0, cpus_per_task=1, mem_per_gpu=1, time=60, partition="main", array_parallelism=256)
    sheep = [Sheep(xp) for xp in xps]
    return Side(Shepherd(main), sheep, slurm, UPSTREAM_MONITOR, Path(main.dora.dir), seconds * count / len(found))


def measure(side: Side) -> Figures:
    """Submit everything as one array, then show the table: first, again, and after a tenth has gone on."""
    figures: Figures = {"count": len(side.sheep), "resolve": side.resolve_s, "resolve_slurm": 0.0}
    before = _files(side.root)
    with _timed(figures, "submit"):
        with side.shepherd.job_array(side.slurm):
            for sheep in side.sheep:
                side.shepherd.maybe_submit_lazy(sheep, side.slurm, SubmitRules())
        side.shepherd.commit()
    after = _files(side.root)
    figures["files"] = (after[0] - before[0]) / len(side.sheep)
    figures["bytes"] = (after[1] - before[1]) / len(side.sheep)
    explorer, shown = CompressionExplorer(lambda launcher: None), []
    for sheep in side.sheep:
        _train(sheep.xp.folder, EPOCHS - 1)
    for name in ("first", "again", "tenth"):
        if name == "tenth":
            for sheep in side.sheep[::10]:
                _train(sheep.xp.folder, EPOCHS)
        with _timed(figures, name):
            side.shepherd.update()
            side.monitor(RunGridArgs(), side.shepherd.main, explorer, side.sheep, lambda *words: shown.append(words))
    text = "\n".join(str(words[0]) for words in shown)
    assert all(text.count(sheep.xp.sig) == 3 for sheep in side.sheep), text[-2000:]
    return figures


def cluster_module() -> Any:
    """The cluster of the tests; our `tests` is no package, and one of that name may be installed."""
    package = ModuleType("tests")
    package.__path__ = [str(Path(__file__).parent.parent / "tests")]
    sys.modules["tests"] = package
    return importlib.import_module("tests.cluster.shared")


def on_cluster(method: str, count: int, cluster: "TestCluster", folder: Path) -> Figures:
    """Measure one side in a process and a results folder of its own; its jobs are then cancelled."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in COMMANDS:
        path = commands / name
        path.write_text(_TIMED.format(command=shutil.which(name), name=name))
        path.chmod(0o755)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AUDIOTOK", "SLURM", "DORA"))},
        **cluster.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "AUDIOTOK_OUTPUT_DIR": str(folder / "outputs"),
        "AUDIOTOK_LAUNCHER": "slurm",
        TIMES: str(folder / "times"),
    }
    command = [sys.executable, "-m", "benchmarks.grid", "--one", method, "--count", str(count)]
    done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, text=True)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    print(method, found, file=sys.stderr)
    cluster.output("scancel", "--user=0")
    return found


@contextmanager
def _timed(figures: Figures, name: str) -> Iterator[None]:
    """Seconds of a block, and those of them that commands of SLURM took."""
    path = Path(os.environ[TIMES])
    path.write_text("")
    began = time.perf_counter()
    yield
    figures[name] = time.perf_counter() - began
    spans = [line.split()[1:] for line in path.read_text().splitlines()]
    figures[f"{name}_slurm"] = sum(float(end) - float(begin) for begin, end in spans)
    figures[f"{name}_commands"] = len(spans)


def _files(folder: Path) -> tuple[int, int]:
    """Files and links below a folder, and their bytes."""
    found = [path.lstat() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return len(found), sum(stat.st_size for stat in found)


def _train(folder: Path, epochs: int) -> None:
    """Leave what a training of so many epochs leaves for a table."""
    rng = random.Random(epochs)
    stages = {"train": 16, "valid": 12, "evaluate": 12}
    names = ("adv", "d_loss", "mmd", "sisnr", "mel", "usage")
    history = [
        {
            stage: {names[n] if n < len(names) else f"metric_{n}": rng.random() for n in range(count)}
            for stage, count in stages.items()
        }
        for _ in range(epochs)
    ]
    assert sum(stages.values()) == METRICS
    text = json.dumps(history, indent=2)
    for name, content in (("history.json", text), ("status.json", json.dumps({"epoch": epochs, "epochs": EPOCHS}))):
        draft = folder / f".{name}"
        draft.write_text(content)
        draft.replace(folder / name)


PAGE = """# A grid of {count} experiments

{where}

Experiments of `encodec_mmd_32khz`, submitted to the two-node SLURM of the tests (accounting on, nodes kept from
starting anything), then shown with {epochs} epochs of {metrics} metrics each. Both sides submit one array, in processes
of their own. "Of it SLURM" is what the commands of SLURM took: client, slurmctld and accounting.

| work | ours | of it SLURM | upstream Dora | of it SLURM | times faster, SLURM aside |
| --- | --- | --- | --- | --- | --- |
{table}

{notes}
"""

_WORK = (
    ("resolve", "resolve: signatures, deltas, names"),
    ("submit", "submit as one array"),
    ("first", "refresh the table: first"),
    ("again", "refresh: nothing has changed"),
    ("tenth", "refresh: every tenth has gone on"),
)


def page(mine: Figures, theirs: Figures) -> str:
    """The report; upstream's seconds are scaled to the same count where it was measured with fewer."""
    scale = mine["count"] / theirs["count"]
    lines = []
    for key, name in _WORK:
        own, other = mine[key] - mine[f"{key}_slurm"], (theirs[key] - theirs[f"{key}_slurm"]) * scale
        lines.append(
            f"| {name} | {mine[key]:.3g} s | {mine[f'{key}_slurm']:.3g} s | {theirs[key] * scale:.3g} s "
            f"| {theirs[f'{key}_slurm'] * scale:.3g} s | {other / own:.3g} |"
        )
    lines.append(f"| files and links per experiment | {mine['files']:.2f} | | {theirs['files']:.2f} | | |")
    lines.append(f"| bytes per experiment | {mine['bytes']:,.0f} | | {theirs['bytes']:,.0f} | | |")
    notes = [f"Upstream resolved {resolve.OF_DORA} of them; its seconds are scaled, and the signatures are the same."]
    if scale != 1:
        notes.append(f"All its other figures are of {theirs['count']:.0f} experiments, its seconds scaled.")
    facts = {"count": int(mine["count"]), "epochs": EPOCHS, "metrics": METRICS, "where": where("benchmarks.grid")}
    return PAGE.format(table="\n".join(lines), notes=" ".join(notes), **facts).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both sides and write the page; with --one, one side in this process, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="experiments of ours")
    parser.add_argument("--upstream", type=int, metavar="COUNT", help="experiments of upstream's, if fewer")
    parser.add_argument("--one", choices=("ours", "upstream"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure((ours if args.one == "ours" else upstream)(args.count))))
        return
    slurm = cluster_module()
    reason = slurm.missing()
    if reason is not None:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as base, slurm.TestCluster(Path(base) / "cluster") as cluster:
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
        mine = on_cluster("ours", args.count, cluster, Path(base) / "ours")
        theirs = on_cluster("upstream", args.upstream or args.count, cluster, Path(base) / "upstream")
    write_page("grid.md", page(mine, theirs))


if __name__ == "__main__":
    main()

"""Results folders of whole grids in the shapes in which they are run, made from a stated formula with a seeded noise.

The truth of a run is `truth(parameters)`: what its metrics are without noise and without the effect of its seed.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

NOISE = {"sisdr": 0.3, "mel_distance": 0.01, "visqol": 0.03, "mi_groups": 0.01, "mi_groups_delay": 0.01, "mmd": 2e-4}
SEED_SPREAD = 0.3  # dB of SI-SDR that runs of one seed have in common
EPOCHS = 12
RELEASED = [0.1, 1.0, 5.0, 10.0, 20.0, 50.0]
WIDE = [50.0, 200.0, 800.0, 3200.0]
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """A grid: its runs by their overrides, in order."""

    grid: str
    runs: Sequence[Parameters]
    unfinished: Mapping[str, int] = field(default_factory=dict)  # how many runs are in which other state than COMPLETED
    defaults: Parameters | None = None  # of `frozen.json`; None: runs without that file


def truth(parameters: Parameters) -> dict[str, float]:
    """Metrics of evaluate by formula: more codes sound better, the MMD costs a little of that and makes codes less
    dependent, most of all on code vectors."""
    share, n_q = float(parameters.get("losses.mmd") or 0), float(parameters.get("rvq.n_q") or 4)
    bins, lr = float(parameters.get("rvq.bins") or 1024), float(parameters.get("optim.lr") or 3e-4)
    reach = 0.5 if parameters.get("mmd.stream") == "residual" else 1.0
    sisdr = 2 + 2 * np.log2(n_q) + 0.5 * np.log2(bins / 256) - 0.8 * share / (1 + share) - abs(np.log10(lr / 3e-4))
    dependence = 0.3 * n_q / 4 * np.exp(-reach * share)
    return {
        "sisdr": float(sisdr),
        "mel_distance": float(1.2 - 0.03 * sisdr),
        "visqol": float(3 + 0.1 * sisdr),
        "mi_groups": float(dependence),
        "mi_groups_delay": float(0.8 * dependence),
        "mmd": float(0.004 * np.exp(-2 * reach * share)),
    }


def sweep(root: Path, runs: int = 400, *, grid: str | None = None) -> str:
    """Write a sweep of five parameters over runs / 200 seeds, one in ten of which has not completed.

    Returns:
        Name of the grid.
    """
    values: dict[str, list[Any]] = {
        "losses.mmd": [0.0, 0.1, 0.5, 1.0, 2.0],
        "rvq.n_q": [4, 8],
        "mmd.stream": ["code", "residual"],
        "optim.lr": [1e-4, 2e-4, 3e-4, 5e-4, 1e-3],
        "rvq.bins": [256, 1024],
        "seed": [2036 + index for index in range(-(-runs // 200))],
    }
    each = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())][:runs]
    unfinished = {"RUNNING": 14, "PENDING": 3, "FAILED": 12, "DIVERGED": 9}
    counts = {state: round(count * runs / 400) for state, count in unfinished.items()}
    name = grid or f"sweep{runs}"
    _write(Shape(name, each, counts, {"device": "cuda", "optim": {"epochs": EPOCHS}}), root)
    return name


def write_shape(name: str, root: Path, *, frozen: bool = False) -> str:
    """Write the results folder of a shape: `sweep400`, `main`, `demo` or `mmd_on_off_demo`; a root may hold several.

    Args:
        name: of the shape.
        root: results folder to make or to add to.
        frozen: whether runs have their `frozen.json`, with a value for each parameter that they do not override.

    Returns:
        Name of the grid.
    """
    if name == "sweep400":
        return sweep(root)
    shape = {"main": _main, "demo": _demo, "mmd_on_off_demo": _mmd_on_off_demo}[name]()
    defaults = {"mmd": {"stream": "code", "sigmas": "median", "estimator": "closed", "num_features": None}}
    _write(Shape(shape.grid, shape.runs, shape.unfinished, defaults if frozen else None), root)
    return shape.grid


def _main() -> Shape:
    """40 runs of compression.encodec_mmd_32khz: 10 conditions, 2 numbers of codebooks, 2 seeds; all completed."""
    conditions: list[dict[str, Any]] = [
        {"losses.mmd": 0.0},
        {"losses.mmd": 1e-6},
        *({"losses.mmd": share, "mmd.stream": stream} for share, stream in product([0.1, 0.5], ["code", "residual"])),
        *({"losses.mmd": 0.5, "mmd.sigmas": widths} for widths in (RELEASED, WIDE)),
        {"losses.mmd": 0.5, "mmd.estimator": "features", "mmd.num_features": 512},
        {"losses.mmd": 0.5, "mmd.estimator": "disjoint", "mmd.num_features": None},
    ]
    runs = [{**one, "rvq.n_q": n_q, "seed": seed} for n_q, seed, one in product([4, 8], [2036, 2037], conditions)]
    return Shape("compression.encodec_mmd_32khz", runs)


def _demo() -> Shape:
    runs = [{"losses.mmd": share, "seed": seed} for seed, share in product([1, 2, 3, 4], [0.0, 4.0])]
    return Shape("compression.encodec_mmd_demo", runs)


def _mmd_on_off_demo() -> Shape:
    runs = [{"seed": seed, "losses.mmd": weight} for seed, weight in product([1, 2, 3], [0.0, 10.0])]
    return Shape("compression.mmd_on_off_demo", runs)


def _write(shape: Shape, root: Path) -> None:
    """Write a grid as Dora, the launchers and the solver leave it."""
    draw = np.random.default_rng(list(shape.grid.encode()))
    seeds = {run["seed"]: draw.normal(0, SEED_SPREAD) for run in shape.runs}
    states = [state for state, count in shape.unfinished.items() for _ in range(count)]
    places = dict(zip(draw.permutation(len(shape.runs)).tolist(), states, strict=False))
    links = root / "grids" / shape.grid
    links.mkdir(parents=True)
    for place, run in enumerate(shape.runs):
        argv = [f"{key}={json.dumps(value) if value is not None else 'null'}" for key, value in run.items()]
        argv = [text.replace('"', "") for text in argv]
        sig = hashlib.sha1(" ".join([shape.grid, *argv]).encode(), usedforsecurity=False).hexdigest()[:8]
        folder = root / "xps" / sig
        folder.mkdir(parents=True)
        (folder / ".argv.json").write_text(json.dumps(argv))
        _write_state(folder, places.get(place, "COMPLETED"), place)
        epochs = {"COMPLETED": EPOCHS, "PENDING": 0}.get(places.get(place, "COMPLETED"), int(draw.integers(2, EPOCHS)))
        if epochs:
            history = _history(run, epochs, seeds[run["seed"]], draw, diverged=places.get(place) == "DIVERGED")
            (folder / "history.json").write_text(json.dumps(history))
        if shape.defaults is not None:
            config = json.dumps(shape.defaults)  # which is YAML, too
            (folder / "frozen.json").write_text(json.dumps({"cfg_yaml": config, "choices": {}}))
        (links / sig).symlink_to(Path("../../xps") / sig)


def _write_state(folder: Path, state: str, place: int) -> None:
    """Files by which a run has a state; `place` gives it its host."""
    now = time.time()
    if state == "PENDING":
        (folder / "job.json").write_text(json.dumps({"launcher": "slurm", "job_id": str(place), "submitted": now}))
        return
    reasons = {"FAILED": "RuntimeError: CUDA error: an illegal memory access", "DIVERGED": "valid.msspec is not finite"}
    ended = {} if state == "RUNNING" else {"ended": now - 3600}
    seen = now if state == "RUNNING" else now - 3600
    status: dict[str, Any] = {
        "state": state,
        "reason": reasons.get(state, ""),
        "host": f"gpu{place % 16:02d}",
        "commit": "abc1234",
    }
    status |= {"started": now - 7200 - place, "updated": seen, "gpus": 1, "epochs": EPOCHS, **ended}
    (folder / "status.json").write_text(json.dumps(status))


def _history(
    run: Parameters, epochs: int, shift: float, draw: np.random.Generator, *, diverged: bool
) -> list[dict[str, dict[str, float]]]:
    """Curves towards the truth; evaluate every third epoch, of which the early ones are worse."""
    wanted = truth(run)
    wanted = {**wanted, "sisdr": wanted["sisdr"] + shift - 8 * diverged}
    end = {name: value + float(draw.normal(0, NOISE[name])) for name, value in wanted.items()}
    codebooks = int(run.get("rvq.n_q") or 4)
    history = []
    for epoch in range(1, epochs + 1):
        left = float(np.exp(-epoch / 3))
        noise = draw.normal(0, 0.01, 3)
        valid = {"msspec": 2 - 0.05 * end["sisdr"] + 3 * left + noise[0], "sisnr": end["sisdr"] - 8 * left + noise[1]}
        train = {"msspec": valid["msspec"] - 0.1 + noise[2], "duration": 60.0}
        if run.get("losses.mmd"):  # without its loss it is not measured
            train["mmd"] = abs(end["mmd"]) * (1 + 20 * left)
        stages = {"train": train, "valid": {**valid, "duration": 5.0}}
        if epoch % 3 == 0:
            stages["evaluate"] = _evaluate(end, left, codebooks)
        history.append(stages)
    return history


def _evaluate(end: Mapping[str, float], left: float, codebooks: int) -> dict[str, float]:
    measured = {**end, "sisdr": end["sisdr"] - 8 * left, "mi_groups": end["mi_groups"] * (1 + left), "mmd_p": 0.02}
    measured |= {"usage": 1 - left, "protocol": 1.0, "duration": 9.0}
    measured |= {f"usage_q{index}": 1 - left - 0.01 * index for index in range(codebooks)}
    pairs = {f"q{i}_q{j}": measured["mi_groups"] / (1 + j - i) for i, j in combinations(range(codebooks), 2)}
    return measured | {f"{name}_{pair}": value for name in ("mi", "mi_groups") for pair, value in pairs.items()}

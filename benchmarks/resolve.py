"""Time to resolve the experiments of a grid beside Dora's own entry point: `python -m benchmarks.resolve`.

Both run in this process, on one core; the experiments that Dora is given too must get the same signatures and deltas.
"""

import json
import time
from itertools import islice, product
from typing import Any

from dora.hydra import HydraMain

from audiotok.experiments import ExperimentMain
from benchmarks.machine import where, write_page

EXPERIMENTS = 1000
OF_DORA = 40  # spread over all: Dora takes minutes for 1000
WEIGHTS = (2.0e3, 2.0e4, 6.0e4, 2.0e5, 2.0e6)
WIDTHS: tuple[Any, ...] = ([0.1, 1.0, 5.0, 10.0, 20.0, 50.0], "median", [50.0, 200.0, 800.0, 3200.0])
CODEBOOKS = (2, 4, 6, 8)
PRESET = "compression/encodec_mmd_32khz"


def make(kind: type[HydraMain]) -> Any:
    """Entry point on the configuration of this project."""

    def main(cfg: Any) -> None: ...

    main.__module__ = "audiotok.train"  # where Dora looks for the configuration from
    return kind(main, config_name="config", config_path="../config", version_base="1.3")


def grid() -> list[dict[str, Any]]:
    """Overrides of a sweep of absolute weights."""
    cases = islice(product(range(2036, 3036), WEIGHTS, WIDTHS, CODEBOOKS), EXPERIMENTS)
    return [
        {"solver": PRESET, "losses.mmd": weight, "mmd.sigmas": sigmas, "rvq.n_q": n_q, "seed": seed}
        for seed, weight, sigmas, n_q in cases
    ]


def resolve(main: Any, experiments: list[dict[str, Any]]) -> tuple[list[Any], float]:
    """Experiments of overrides, and seconds, from the entry point's first use on."""
    start = time.perf_counter()
    found = [main.get_xp(main.value_to_argv(overrides)) for overrides in experiments]
    main.get_names(found)
    return found, time.perf_counter() - start


PAGE = """# Resolving experiments

{where}

What it takes to turn the overrides of an experiment of `encodec_mmd_32khz` into its signature, delta and name. Both
entry points ran in one process, one after the other. Dora was given {few} of the {many} experiments, spread evenly;
their signatures and deltas are the same in both.

| entry point | experiments | time | time each | 1000 experiments |
| --- | --- | --- | --- | --- |
| `dora.hydra.HydraMain` | {few} | {theirs:.2f} s | {their_each:.1f} ms | {their_1000:.0f} s |
| `audiotok.experiments.ExperimentMain` | {many} | {ours:.2f} s | {our_each:.2f} ms | {our_1000:.2f} s |

{ratio:.0f} times faster each. Ours includes composing the preset once.
"""


def main() -> None:
    """Write docs/benchmarks/resolve.md and print it."""
    experiments = grid()
    some = slice(None, None, EXPERIMENTS // OF_DORA)
    ours, our_seconds = resolve(make(ExperimentMain), experiments)
    theirs, their_seconds = resolve(make(HydraMain), experiments[some])
    for one, other in zip(ours[some], theirs, strict=True):
        assert one.sig == other.sig and json.dumps(one.delta) == json.dumps(other.delta), one.argv
    our_each, their_each = our_seconds / len(ours), their_seconds / len(theirs)
    figures = {
        "few": len(theirs),
        "many": len(ours),
        "theirs": their_seconds,
        "ours": our_seconds,
        "their_each": 1e3 * their_each,
        "our_each": 1e3 * our_each,
        "their_1000": 1000 * their_each,
        "our_1000": 1000 * our_each,
        "ratio": their_each / our_each,
    }
    write_page("resolve.md", PAGE.format(where=where("benchmarks.resolve"), **figures))


if __name__ == "__main__":
    main()

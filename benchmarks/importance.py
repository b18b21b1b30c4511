"""Coverage of the intervals of importance and error rate of its test: `python -m benchmarks.importance`.

Grids of 48 runs over a (4 values), b (3), c (2) and two seeds; a and b have effects, c has none; noise of variance 1.
"""

import itertools
import sys

import numpy as np
import pandas as pd

from audiotok.results.importance import importance


def main(draws: int = 400) -> None:
    """Print, for each size of the effects, true share, mean share, coverage, and how often p < .05."""
    rng = np.random.default_rng(0)
    runs = pd.DataFrame(itertools.product(range(4), range(3), range(2), range(2)), columns=list("abcs"))
    a, b = runs["a"].to_numpy(float), np.array([0, 0.5, -0.5])[runs["b"]]
    for of_a, of_b in ((0, 0), (0.3, 0.3), (1, 1), (3, 0.1)):
        spread = {"a": np.var(of_a * a), "b": np.var(of_b * b), "c": 0.0}
        total = sum(spread.values()) + 1
        names = list(spread)
        found = [
            importance(runs.assign(y=of_a * a + of_b * b + rng.normal(size=len(runs))), "y", names)
            .set_index("parameter")
            .loc[names, ["share", "low", "high", "p"]]
            .to_numpy(float)
            for _ in range(draws)
        ]
        shares, low, high, p = np.moveaxis(np.stack(found), 2, 0)
        for place, (name, variance) in enumerate(spread.items()):
            truth = variance / total
            covered = np.mean((low[:, place] <= truth + 1e-12) & (truth <= high[:, place] + 1e-12))
            rejected = np.mean(p[:, place] < 0.05)
            print(f"{name} {truth:.3f} {shares[:, place].mean():.3f} {covered:.3f} {rejected:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

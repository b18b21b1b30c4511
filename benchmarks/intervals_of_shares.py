"""Coverage of intervals of a share of right answers of several listeners: `python -m benchmarks.intervals_of_shares`.

The table stands in docs/listening.md.
"""

import numpy as np
from scipy import stats

from audiotok.results.votes import share_interval

DRAWS = 1000
TRIALS = 16


def coverage(share: float, spread: float, listeners: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Coverage of the intervals of Korn and Graubard, Clopper and Pearson, and Student over listeners.

    Args:
        share: true mean over listeners.
        spread: standard deviation of their shares, of a beta distribution; 0: all alike.
        listeners: number of them.
        rng: source of the draws.
    """
    shares = np.full((DRAWS, listeners), share)
    if spread:
        concentration = share * (1 - share) / spread**2 - 1
        shares = rng.beta(share * concentration, (1 - share) * concentration, (DRAWS, listeners))
    hits = rng.binomial(TRIALS, shares).astype(float)
    trials = np.full(listeners, float(TRIALS))
    ours = np.array([share_interval(row, trials) for row in hits])
    total, right = TRIALS * listeners, hits.sum(1)
    low = np.nan_to_num(stats.beta.ppf(0.025, right, total - right + 1), nan=0.0)
    high = np.nan_to_num(stats.beta.ppf(0.975, right + 1, total - right), nan=1.0)
    means = hits / TRIALS
    half = stats.t.ppf(0.975, listeners - 1) * means.std(1, ddof=1) / np.sqrt(listeners)
    return (
        float(np.mean((ours[:, 0] <= share) & (share <= ours[:, 1]))),
        float(np.mean((low <= share) & (share <= high))),
        float(np.mean(np.abs(means.mean(1) - share) <= half)),
    )


def main() -> None:
    """Print a line a case."""
    rng = np.random.default_rng(1)
    for share, spread in ((0.5, 0.15), (0.7, 0.15), (0.9, 0.1)):
        for own, listeners in ((0.0, 3), (0.0, 6), (spread, 3), (spread, 6), (spread, 20)):
            found = ", ".join(f"{value:.1%}" for value in coverage(share, own, listeners, rng))
            print(f"share {share}, spread {own}, {listeners} listeners: {found}")


if __name__ == "__main__":
    main()

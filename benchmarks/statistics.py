"""How often the tests of results are wrong, and how often they find an effect: `python -m benchmarks.statistics`.

Tables are drawn from a stated law: weights × numbers of codebooks × seeds, each value being the mean of its number of
codebooks, plus what its seed does to all runs that have it (a share of the variance), plus noise, plus the effect of
its weight. Then p-values are those of `audiotok.results`, and of tests that were not chosen. It prints the tables of
docs/results.md; about ten minutes on one core, half of them for the mixed model.
"""

import argparse
import contextlib
import itertools
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy import stats

from audiotok.results.metrics import Floats
from audiotok.results.pooled import block_test
from audiotok.results.statistics import Interval, _confidence_interval, holm
from audiotok.results.tables import Estimate, best_rows

LEVELS, COUNTS = 4, 2  # weights, numbers of codebooks
SEEDS = (2, 3, 5)
ALPHA = 0.05
DRAWS = 999
SHARED = 0.3  # share of the variance that runs of one seed have in common
NOISES = ("normal", "skewed", "uneven", "whole")


def draw(rng: np.random.Generator, noise: str, levels: int, counts: int, seeds: int, effect: float) -> Floats:
    """Values [levels, counts, seeds] with a spread of about 1; the last level's mean is `effect` above the others.

    `skewed` is log-normal; `uneven` has ten times the spread at one number of codebooks, and three times at the last
    level as at the first; `whole` is rounded to whole numbers.
    """
    shared = np.sqrt(SHARED) * rng.normal(size=(1, counts, seeds))
    own = np.sqrt(1 - SHARED) * rng.normal(size=(levels, counts, seeds))
    values = shared + own
    if noise == "skewed":
        values = (np.exp(values) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    if noise == "uneven":
        values *= (np.linspace(0.2, 2.0, counts)[:, None] if counts > 1 else 1.0) * np.linspace(0.5, 1.5, levels)[
            :, None, None
        ]
    values = values + 3.0 * np.arange(counts)[:, None]
    values[-1] += effect
    return np.asarray(np.round(values) if noise == "whole" else values)


def numbered(values: Floats, by_seed: bool = True) -> tuple[Floats, list[int], list[int]]:
    """Values, levels and blocks as `block_test` takes them; blocks of a number of codebooks, and of a seed."""
    level, count, seed = (index.ravel() for index in np.indices(values.shape))
    return values.ravel(), level.tolist(), (count * values.shape[2] * by_seed + seed * by_seed + count).tolist()


def by_permutation(values: Floats) -> float:
    """As `audiotok results --pooled` has it, with fewer arrangements."""
    return block_test(*numbered(values), DRAWS).p


def over_seeds(values: Floats) -> float:
    """The same without regard to which seed a run has."""
    return block_test(*numbered(values, by_seed=False), DRAWS).p


def by_ranks(values: Floats) -> float:
    """Friedman's test."""
    flat = values.reshape(len(values), -1)
    return float(stats.friedmanchisquare(*flat).pvalue)


def by_blocked_model(values: Floats) -> float:
    """F test of a linear model with levels and blocks: what `statsmodels` gives for `y ~ C(level) + C(block)`."""
    flat = values.reshape(len(values), -1)
    levels, blocks = flat.shape
    rest = flat - flat.mean(axis=0)
    between = blocks * (rest.mean(axis=1) ** 2).sum()
    within = (rest**2).sum() - between
    if within <= 1e-12 * (rest**2).sum() or not rest.any():
        return 0.0 if rest.any() else 1.0
    degrees = (levels - 1, (levels - 1) * (blocks - 1))
    return float(stats.f.sf(between / degrees[0] / (within / degrees[1]), *degrees))


def by_mixed_model(values: Floats) -> float:
    """Wald test of the levels, with blocks as random: `statsmodels` MixedLM."""
    flat, level, block = numbered(values)
    frame = pd.DataFrame({"y": flat, "level": level, "block": block})
    with warnings.catch_warnings(), contextlib.suppress(np.linalg.LinAlgError):
        warnings.simplefilter("ignore")
        fit = smf.mixedlm("y ~ C(level)", frame, groups="block").fit(reml=True, method="lbfgs")
        return float(fit.wald_test_terms(scalar=True).table.loc["C(level)", "pvalue"])
    return 1.0  # no fit: nothing found


POOLED: dict[str, Callable[[Floats], float]] = {
    "permutation in blocks of n_q and seed": by_permutation,
    "permutation in blocks of n_q": over_seeds,
    "blocked model, F": by_blocked_model,
    "Friedman": by_ranks,
}


def rate(test: Callable[[Floats], float], repeats: int, noise: str, seeds: int, effect: float) -> float:
    """Share of tables in which a test has p up to ALPHA."""
    rng = np.random.default_rng(0)
    return sum(test(draw(rng, noise, LEVELS, COUNTS, seeds, effect)) <= ALPHA for _ in range(repeats)) / repeats


def percent(share: float) -> str:
    """Of a share, with one decimal."""
    return f"{100 * share:.1f}"


def print_pooled(repeats: int, mixed: int) -> None:
    """Error rate and power of tests of a parameter over the whole design."""
    print(f"{LEVELS} values × {COUNTS} n_q × seeds; {repeats} tables a cell\n")
    heads = [*(f"{noise}, no effect" for noise in NOISES), "normal, effect 1.5", "skewed, effect 1.5"]
    print("| test | seeds | " + " | ".join(heads) + " |\n| --- | ---: |" + " ---: |" * len(heads))
    for name, test in POOLED.items():
        for seeds in SEEDS:
            laws = [*((noise, seeds, 0.0) for noise in NOISES), ("normal", seeds, 1.5), ("skewed", seeds, 1.5)]
            cells = [percent(rate(test, repeats, *law)) for law in laws]
            print(f"| {name} | {seeds} | {' | '.join(cells)} |", flush=True)
    for seeds in SEEDS if mixed else ():
        cells = [percent(rate(by_mixed_model, mixed, "normal", seeds, effect)) for effect in (0.0, 1.5)]
        print(f"| mixed model, Wald ({mixed} tables) | {seeds} | {cells[0]} | - | - | - | {cells[1]} | - |", flush=True)


def paired(values: Floats, pool: bool) -> Floats:
    """Differences [tests, pairs] of all levels to the first, for each number of codebooks or over all of them."""
    differences = values[1:] - values[:1]
    return differences.reshape(len(differences) * (1 if pool else values.shape[1]), -1)


def by_scipy(differences: Floats) -> Floats:
    """Paired t-tests [tests] as SciPy has them: 0 for equal differences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = np.asarray(stats.ttest_1samp(differences, 0.0, axis=1).pvalue)
    return np.where(differences.any(axis=1), p, 1.0)


def by_t(differences: Floats) -> Floats:
    """What `compare` gives, which tests/results/test_statistics.py holds: flipped signs where differences are equal."""
    equal = (np.ptp(differences, axis=1) < 1e-9) & differences.any(axis=1)
    return np.where(equal, 2.0 ** (1 - differences.shape[1]), by_scipy(differences))


def by_signs(differences: Floats) -> Floats:
    """All signs flipped."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=differences.shape[1])))
    sums = np.abs(differences @ signs.T)
    return np.asarray((sums >= sums[:, :1] - 1e-9).mean(axis=1))


PAIRED: dict[str, tuple[Callable[[Floats], Floats], bool]] = {
    "t, equal differences with p = 0": (by_scipy, False),
    "t": (by_t, False),
    "t over all n_q": (by_t, True),
    "signs over all n_q": (by_signs, True),
}


def print_pairs(repeats: int) -> None:
    """Of conditions against a baseline: share of tests, and of tables, with p or p_holm below ALPHA."""
    print(f"\n9 values × {COUNTS} n_q against the baseline of their n_q; {repeats} tables a cell\n")
    heads = ["normal: p", "normal: any p_holm", "whole: p", "whole: any p_holm", "effect 3: p", "effect 3: p_holm"]
    print("| test | seeds | " + " | ".join(heads) + " |\n| --- | ---: |" + " ---: |" * len(heads))
    for name, (test, pool) in PAIRED.items():
        for seeds in SEEDS:
            cells = list[float]()
            for noise, effect in (("normal", 0.0), ("whole", 0.0), ("normal", 3.0)):
                rng = np.random.default_rng(0)
                draws = (draw(rng, noise, 10, COUNTS, seeds, effect) for _ in range(repeats))
                tables = [test(paired(values, pool)) for values in draws]
                low, corrected = ([each < ALPHA for each in found] for found in (tables, list(map(holm, tables))))
                of_effect = slice(-1 if pool else -COUNTS, None)
                if effect:
                    cells += [float(np.mean([found[of_effect].mean() for found in each])) for each in (low, corrected)]
                else:
                    cells += [float(np.mean(low)), float(np.mean([found.any() for found in corrected]))]
            print(f"| {name} | {seeds} | " + " | ".join(map(percent, cells)) + " |", flush=True)


def print_marks(repeats: int, rows: int = 8) -> None:
    """How often the row that is best in truth is marked as best, and how many rows are."""
    print(f"\n{rows} rows, the best one 1 standard deviation from the others; {repeats} tables a cell\n")
    print("| noise | seeds | best in truth is marked | rows marked | largest mean is best in truth |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for noise in ("normal", "skewed", "uneven"):
        for seeds in SEEDS:
            rng, marked, counts, first = np.random.default_rng(0), 0, 0, 0
            for _ in range(repeats):
                values = draw(rng, noise, rows, 1, seeds, 1.0)[:, 0]
                means = values.mean(axis=1)
                estimates = [Estimate(float(row.mean()), float(row.std(ddof=1)), seeds) for row in values]
                found = best_rows(estimates, "higher")
                marked, counts, first = (
                    marked + (rows - 1 in found),
                    counts + len(found),
                    first + (means.argmax() == rows - 1),
                )
            shares = percent(marked / repeats), f"{counts / repeats:.1f}", percent(first / repeats)
            print(f"| {noise} | {seeds} | " + " | ".join(shares) + " |", flush=True)


def print_coverage(repeats: int) -> None:
    """How often the interval of the mean of normal values holds the true mean."""
    print(f"\n{repeats} intervals a cell\n\n| interval of 95 % | n = 2 | n = 3 | n = 5 |\n| --- | ---: | ---: | ---: |")
    kinds: tuple[Interval, ...] = ("t", "bootstrap")
    for interval in kinds:
        cells = []
        for seeds in SEEDS:
            rng = np.random.default_rng(0)
            bounds = [_confidence_interval(rng.normal(size=seeds), 0.95, interval) for _ in range(repeats)]
            cells.append(percent(float(np.mean([low <= 0 <= high for low, high in bounds]))))
        print(f"| {interval} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="tables a cell (default: 1000)")
    parser.add_argument("--mixed", type=int, default=100, help="of the mixed model, which is slow (default: 100)")
    args = parser.parse_args()
    print_pooled(args.repeats, args.mixed)
    print_pairs(args.repeats)
    print_marks(args.repeats)
    print_coverage(args.repeats // 2)


if __name__ == "__main__":
    main()

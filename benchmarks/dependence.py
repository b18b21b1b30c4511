"""How often the tests of dependence call independent codebooks dependent, and dependent ones too.

    python -m benchmarks.dependence rates [--clips 120]          independent codebooks: false positives, errors of mi
    python -m benchmarks.dependence mmd                          the same for the MMD test
    python -m benchmarks.dependence power                        dependent codebooks
    python -m benchmarks.dependence codec CHECKPOINT MANIFEST    codes of a codec, aligned and apart

Codebooks of a simulation are two series of 8 levels: noise from frame to frame, a slow state of their own, and a mean
of their own in each recording. They are independent of each other, but with few recordings their laws over all
recordings look dependent. Clips have 25 frames (half a second at 50 Hz) and lie end to end. The tables are in
docs/dependence.md.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import special, stats
from scipy.signal import lfilter

from audiotok.data import AudioDataset
from audiotok.metrics import estimate_dependence, mmd_permutation_test
from audiotok.metrics.codes import p_value
from audiotok.models.encodec import CompressionModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BINS, FRAMES, SHUFFLES, LEVEL = 8, 25, 39, 0.05
RECORDINGS = (1, 3, 10, 20, 50)
STATES = (0, 25, 250, 1250)  # frames until a slow state keeps 1/e of itself
SLOW, OWN = 0.7, 0.7  # of a slow state beside noise of sqrt(1 - SLOW^2), and of the mean of a recording


def simulate(rng: np.random.Generator, recordings: int, clips: int, state: int, shared: float = 0.0) -> Floats:
    """Two series [recordings * clips, 2, FRAMES]; `shared` is the scale of noise that they have in common."""
    shape = (recordings, 2, clips * FRAMES)
    z = np.sqrt(1 - SLOW**2) * rng.standard_normal(shape) + OWN * rng.standard_normal((recordings, 2, 1))
    z += SLOW * (slow(rng, shape, state) if state else rng.standard_normal(shape))
    z += shared * rng.standard_normal((recordings, 1, clips * FRAMES))
    found: Floats = z.reshape(recordings, 2, clips, FRAMES).transpose(0, 2, 1, 3).reshape(-1, 2, FRAMES)
    return found


def slow(rng: np.random.Generator, shape: tuple[int, ...], state: int) -> Floats:
    """A stationary autoregressive series of first order with variance 1."""
    a = np.exp(-1 / state)
    steps = rng.standard_normal(shape) * np.sqrt(1 - a * a)
    steps[..., 0] = rng.standard_normal(shape[:-1])
    found: Floats = lfilter([1], [1, -a], steps, axis=-1)
    return found


def levels(z: Floats) -> Ints:
    """Codes: the eighth of its codebook that a value lies in."""
    edges = np.quantile(z, np.arange(1, BINS) / BINS, axis=(0, 2))[:, None, :, None]
    found: Ints = (z > edges).sum(0)
    return found


def interval(ps: Floats) -> str:
    """Share of p-values up to LEVEL in percent with its 95 % interval (Clopper and Pearson)."""
    if np.isnan(ps).any():
        return "no p"
    hits = int((ps <= LEVEL + 1e-9).sum())
    low, high = stats.binomtest(hits, len(ps)).proportion_ci()
    return f"{100 * hits / len(ps):.0f} ({100 * low:.0f}–{100 * high:.0f})"


def lags_of(codes: Ints, recordings: int) -> Ints:
    """Joint counts [recordings, lags, BINS^2] of codebooks [B, 2, T], the second turned by each number of clips."""
    x, y = codes.reshape(recordings, -1, 2, FRAMES).transpose(2, 0, 1, 3)
    clips = x.shape[1]
    turned = y[:, (np.arange(clips)[:, None] + np.arange(clips)) % clips]
    cells = x[:, None] * BINS + turned + BINS**2 * np.arange(recordings * clips).reshape(recordings, clips, 1, 1)
    return np.bincount(cells.ravel(), minlength=recordings * clips * BINS**2).reshape(recordings, clips, -1)


def bits_of(counts: Ints) -> Floats:
    """Plug-in mutual information of joint counts [..., BINS^2]."""
    law = counts.reshape(*counts.shape[:-1], BINS, BINS) / counts.sum(-1)[..., None, None]
    parts = law.sum(-1), law.sum(-2), law.reshape(counts.shape)
    first, second, joint = (special.entr(part).sum(-1) / np.log(2) for part in parts)
    found: Floats = first + second - joint
    return found


def shifted(codes: Ints, recordings: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """p, mutual information and its error as `estimate_dependence` has them, of two codebooks and by shifts.

    All lags are counted at once, which takes a tenth of the time; what is drawn from them is the same.
    """
    lags = lags_of(codes, recordings)
    clips, rows = lags.shape[1], np.arange(recordings)
    observed = float(bits_of(lags[:, 0].sum(0)))
    null = bits_of(lags[rows, rng.integers(clips, size=(SHUFFLES, recordings))].sum(1))
    gap = max(1, clips // 8)
    apart = bits_of(lags[rows, rng.integers(gap, clips - gap + 1, size=(SHUFFLES, recordings))].sum(1))
    return p_value(observed, null), observed - apart.mean(), apart.std(ddof=1) * np.sqrt(1 + 1 / SHUFFLES)


def exchanged(codes: Ints, units: int, rng: np.random.Generator) -> float:
    """P-value of two codebooks whose clips are exchanged as so many units."""
    x, y = codes.transpose(1, 0, 2).reshape(2, units, -1)
    orders = [np.arange(units)] + [rng.permutation(units) for _ in range(SHUFFLES)]
    counts = [np.bincount((x * BINS + y[order]).ravel(), minlength=BINS**2) for order in orders]
    observed, *null = bits_of(np.stack(counts)).tolist()
    return p_value(observed, np.array(null))


def rates(runs: int, seed: int, total: int) -> None:
    """False positives of `mi_p` in %, and mean and spread of `mi` in its errors."""
    print("| recordings × clips | state, frames | clips exchanged | shifts | recordings | mi, bit | mi / mi_err |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for recordings, state in itertools.product(RECORDINGS, STATES):
        clips = max(4, total // recordings)
        rng = np.random.default_rng((seed, recordings, clips, state))
        ps, found = np.full((3, runs), np.nan), np.zeros((2, runs))
        for run in range(runs):
            codes = levels(simulate(rng, recordings, clips, state))
            ps[0, run] = exchanged(codes, len(codes), rng)
            ps[1, run], *found[:, run] = shifted(codes, recordings, rng)
            if recordings >= 20:
                ps[2, run] = exchanged(codes, recordings, rng)
        cells = " | ".join(interval(row) for row in ps)
        score = found[0] / found[1]
        print(
            f"| {recordings} × {clips} | {state} | {cells} | {found[0].mean():.4f} | "
            f"{score.mean():.2f} ± {score.std():.2f} |", flush=True,
        )  # fmt: skip


def power(runs: int, seed: int, total: int) -> None:
    """How often dependence is found, in %, at level 0.05."""
    print("| recordings × clips | state, frames | noise in common | mi, bit | shifts | recordings |")
    print("| --- | --- | --- | --- | --- | --- |")
    for recordings, state, shared in itertools.product(RECORDINGS, (25, 1250), (0.2, 0.3, 0.5)):
        clips = max(4, total // recordings)
        rng = np.random.default_rng((seed, recordings, state, round(10 * shared)))
        ps, bits = np.full((2, runs), np.nan), np.zeros(runs)
        for run in range(runs):
            codes = levels(simulate(rng, recordings, clips, state, shared))
            ps[0, run], bits[run], _ = shifted(codes, recordings, rng)
            if recordings >= 20:
                ps[1, run] = exchanged(codes, recordings, rng)
        cells = " | ".join(interval(row) for row in ps)
        print(f"| {recordings} × {clips} | {state} | {shared} | {bits.mean():.4f} | {cells} |", flush=True)


def mmd(runs: int, seed: int, total: int) -> None:
    """False positives of `mmd_p` in %: streams of one dimension, 240 frames compared."""
    print("| recordings × clips | state, frames | clips exchanged | shifts |\n| --- | --- | --- | --- |")
    for recordings, state in itertools.product(RECORDINGS, (25, 1250)):
        clips = max(4, total // recordings)
        rng = np.random.default_rng((seed, recordings, state))
        ps = np.full((2, runs), np.nan)
        for run in range(runs):
            streams = torch.from_numpy(simulate(rng, recordings, clips, state))[:, :, None]
            owners = np.arange(len(streams)) // clips
            for row, (tracks, shuffle) in enumerate(((None, "recordings"), (owners, "shifts"))):
                generator = torch.Generator().manual_seed(run)
                found = mmd_permutation_test(
                    streams, "median", False, SHUFFLES, generator, tracks=tracks, shuffle=shuffle, max_samples=240
                )
                ps[row, run] = found.p
        print(f"| {recordings} × {clips} | {state} | {interval(ps[0])} | {interval(ps[1])} |", flush=True)


@torch.no_grad()
def codec(checkpoint: str, manifest: str, runs: int, seed: int) -> None:
    """Codebooks of a codec on its own music: as they are, and taken from frames of a recording that lie apart."""
    model = CompressionModel.get_pretrained(checkpoint)
    options = {"segment_s": 0.8, "sample_rate": model.sample_rate, "channels": model.channels, "tile": True}
    clips = AudioDataset.from_manifest(Path(manifest), return_info=True, **options)
    wavs, infos = zip(*(clips[i] for i in range(len(clips))), strict=True)
    codes = torch.cat([model.encode(wav[None])[0] for wav in wavs]).numpy()
    _, tracks = np.unique([str(info.path) for info in infos], return_inverse=True)
    bins, rng = model.cardinality, np.random.default_rng(seed)
    print(f"{len(codes)} clips of {tracks.max() + 1} recordings, {codes.shape[1]} codebooks")
    print("| codebooks | shuffle | mi, bit | p ≤ 0.05, % |\n| --- | --- | --- | --- |")
    places = [np.flatnonzero(tracks == track) for track in range(tracks.max() + 1)]
    apart = []
    for _ in range(runs):  # at least 7 clips (5.6 s) from each other; the same clips as before, of every codebook
        moved = codes.copy()
        for q in range(1, codes.shape[1]):
            for place in places:
                moved[place, q] = codes[np.roll(place, rng.integers(7 * q, max(7 * q + 1, len(place) // 4 * q))), q]
        apart.append(moved)
    nulls = ((np.arange(len(codes)), "recordings", "clips exchanged"), (tracks, "shifts", "shifts"))
    for name, sets in (("aligned", [codes]), ("5.6 s or more apart", apart)):
        for owners, shuffle, label in nulls:
            ps, bits = [], []
            for run, taken in enumerate(sets):
                found = estimate_dependence(
                    taken, bins=bins, delay=False, tracks=owners, shuffle=shuffle, num_shuffles=SHUFFLES, seed=run
                )
                ps.append(found.p)
                bits.append(found.mean.corrected)
            share = f"p = {ps[0]:.2f}" if len(ps) == 1 else interval(np.array(ps))
            print(f"| {name} | {label} | {np.mean(bits):.3f} | {share} |", flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("rates", "mmd", "power", "codec"))
    parser.add_argument("files", nargs="*", help="codec: checkpoint and manifest")
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=120, help="clips over all recordings; four of each at least")
    args = parser.parse_args()
    if args.table == "codec":
        checkpoint, manifest = args.files
        codec(checkpoint, manifest, args.runs, args.seed)
    else:
        {"rates": rates, "mmd": mmd, "power": power}[args.table](args.runs, args.seed, args.clips)


if __name__ == "__main__":
    main()

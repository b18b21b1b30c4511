"""A grid of codecs and a grid of language models on them, made by hand, in Dora's layout."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CODECS, GRID = "compression.codecs", "lm.codecs"


def add_run(root: Path, grid: str, sig: str, argv: Sequence[str], history: Sequence[Any], state: str) -> Path:
    """Add an experiment; an empty state for one without a status."""
    folder = root / "xps" / sig
    folder.mkdir(parents=True)
    (folder / ".argv.json").write_text(json.dumps(list(argv)))
    (folder / "history.json").write_text(json.dumps(list(history)))
    now = time.time()
    if state:
        status = {"state": state, "reason": "", "started": now - 9, "updated": now, "ended": now}
        (folder / "status.json").write_text(json.dumps(status))
    (root / "grids" / grid).mkdir(parents=True, exist_ok=True)
    (root / "grids" / grid / sig).symlink_to(f"../../xps/{sig}")
    return folder


def measured(weight: int, codec_seed: int, seed: int) -> Mapping[str, float]:
    """What evaluate of a language model measures: the gap shrinks with the weight, while its codes cost more bits."""
    gap = round(0.05 - weight / 1000 + codec_seed / 1000 + seed / 10_000, 6)
    chain = 18.0 + weight / 10 + codec_seed / 100 + seed / 1000
    both = {"gap": gap, "gap_err": 0.002, "bits_parallel": chain + gap, "bits_chain": chain}
    return {**both, "ce": 3.0 + seed, "gap_q2": gap / 2, "bits_frame": chain + gap, "bits_s": 50 * (chain + gap)}


def codec_sig(weight: int, codec_seed: int) -> str:
    return f"c0de{weight:02d}{codec_seed:02d}"


def fill(root: Path, *, weights: Sequence[int] = (0, 10), codec_seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Codecs of some weights × seeds, and two language models on each; signatures in another order than parameters."""
    for weight, codec_seed in itertools.product(weights, codec_seeds):
        evaluate = {"sisdr": 5.0 + codec_seed / 10 - weight / 100, "mi_groups": 0.3 - weight / 50, "mmd": 1.86e-5}
        history = [{"valid": {"msspec": 2.0}}, {"valid": {"msspec": 1.0}, "evaluate": evaluate}]
        argv = ["solver=compression/debug", f"losses.mmd={weight}", f"seed={codec_seed}"]
        add_run(root, CODECS, codec_sig(weight, codec_seed), argv, history, "COMPLETED")
        for seed in (1, 2):
            sig = f"1a{9 - codec_seed}{weight:02d}{seed}00"
            checkpoint = f"compression_model_checkpoint=//sig/{codec_sig(weight, codec_seed)}"
            epochs = [
                {"train": {"ce": 5.0}, "valid": {"ce": 4.0}},
                {"train": {"ce": 3.5}, "valid": {"ce": 3.5}, "evaluate": measured(weight, codec_seed, seed),
                 "generate": {"fmd": 1.0 + seed / 10, "fmd_chain": 0.9, "fmd_gap": 0.1 + seed / 10}},
            ]  # fmt: skip
            add_run(root, GRID, sig, [checkpoint, "solver=lm/demo", f"seed={seed}"], epochs, "COMPLETED")

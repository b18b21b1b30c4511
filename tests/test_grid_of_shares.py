"""The planned comparison of `grids/compression/encodec_mmd_32khz.py` can be made of the runs of that grid."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

import audiotok
from audiotok.grids.compression import encodec_mmd_32khz as grid
from audiotok.results.statistics import compare

CONFIG = Path(audiotok.__file__).parent / "config"
METRICS = ["evaluate.mi_groups_delay", "evaluate.mel_distance"]


def test_the_planned_comparison_pairs_every_condition_with_the_placebo_in_all_blocks() -> None:
    rows: list[dict[str, Any]] = []
    for n_q, seed, condition in product(grid.CODEBOOKS, grid.SEEDS, grid.CONDITIONS):
        row = {"mmd.stream": "code", "mmd.sigmas": "median", **condition, "rvq.n_q": n_q, "seed": seed}
        row["mmd.sigmas"] = tuple(row["mmd.sigmas"]) if isinstance(row["mmd.sigmas"], list) else row["mmd.sigmas"]
        # Blocks differ by much, conditions by their share, with a little noise.
        rows.append(row | dict.fromkeys(METRICS, n_q - condition["losses.mmd"] + 1e-3 * (len(rows) % 3)))
    runs = pd.DataFrame(rows)
    assert len(runs) == 64 and not runs.drop(columns=METRICS).duplicated().any()
    code = "\n".join(re.findall(r"^    (.*)$", grid.__doc__ or "", re.MULTILINE))
    names: dict[str, Any] = {"runs": runs, "compare": compare}
    exec(code, names)
    primary, secondary, cost = names["primary"], names["secondary"], names["cost"]
    (first,) = primary[names["by"]].to_numpy().tolist()
    assert first == [0.5, "code", "median"] and primary["p"].item() == primary["p_holm"].item()
    assert len(secondary) == len(grid.CONDITIONS) - 2 and first not in secondary[names["by"]].to_numpy().tolist()
    assert len(cost) == len(grid.CONDITIONS) - 1 and set(cost["metric"]) == {"evaluate.mel_distance"}
    for table in (primary, secondary):
        assert set(table["n"]) == {8} and set(table["metric"]) == {"evaluate.mi_groups_delay"}
        assert (table["difference"] - (1e-6 - table["losses.mmd"])).abs().max() < 2e-3


def test_the_metrics_of_the_planned_comparison_are_measured() -> None:
    cfg = OmegaConf.load(f"{CONFIG}/solver/compression/default.yaml")
    for name in METRICS:
        assert name in (grid.__doc__ or "")
    assert cfg.evaluate.metrics.mel_distance and cfg.evaluate.metrics.dependence and cfg.metrics.dependence.delay

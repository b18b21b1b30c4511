"""The planned comparison of `grids/compression/encodec_mmd_32khz.py` can be made of the runs of that grid."""

import re
from itertools import product
from typing import Any

import pandas as pd

from audiotok.grids.compression import encodec_mmd_32khz as grid
from audiotok.results.statistics import compare


def test_the_planned_comparison_pairs_every_condition_with_the_placebo_in_all_blocks() -> None:
    rows: list[dict[str, Any]] = []
    for n_q, seed, condition in product(grid.CODEBOOKS, grid.SEEDS, grid.CONDITIONS):
        row = {"mmd.stream": "code", "mmd.sigmas": "median", **condition, "rvq.n_q": n_q, "seed": seed}
        row["mmd.sigmas"] = tuple(row["mmd.sigmas"]) if isinstance(row["mmd.sigmas"], list) else row["mmd.sigmas"]
        # Blocks differ by much, conditions by their share, with a little noise.
        rows.append(row | {"evaluate.mi_groups": n_q - condition["losses.mmd"] + 1e-3 * (len(rows) % 3)})
    runs = pd.DataFrame(rows)
    assert len(runs) == 64 and not runs.drop(columns="evaluate.mi_groups").duplicated().any()
    code = re.findall(r"^    (.*)$", grid.__doc__ or "", re.MULTILINE)
    assert len(code) == 4 and code[3].startswith("compare(")
    names: dict[str, Any] = {"runs": runs, "compare": compare}
    exec("\n".join(code[:3]), names)
    table = eval(code[3], names)
    assert len(table) == len(grid.CONDITIONS) - 1 and set(table["n"]) == {8}
    assert (table["difference"] - (1e-6 - table["losses.mmd"])).abs().max() < 2e-3

"""The tables of `dora grid`: last values, empty cells, and a history that is left as it was."""

import ast
import copy
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import treetable as tt

from audiotok import explorers
from audiotok.explorers import CompressionExplorer, LMExplorer, _log_ping

HISTORY: list[dict[str, dict[str, Any]]] = [
    {"train": {"adv": 2.0, "mmd": 0.5, "duration": 90.0}, "evaluate": {"sisdr": 4.25, "visqol": 3.5}},
    {"train": {"adv": 1.0, "duration": 120.0}, "valid": {"msspec": 0.75, "sisnr": -1.5}},
]


def _table(explorer: CompressionExplorer, lines: list[dict[str, Any]]) -> str:
    """What `dora.grid.monitor` makes of an explorer."""
    groups = [tt.group("Meta", explorer.get_grid_meta()), *explorer.get_grid_metrics()]
    return str(tt.treetable(lines, tt.table(shorten=True, groups=groups)))


@pytest.fixture
def explorer() -> CompressionExplorer:
    """An explorer of an empty grid."""
    return CompressionExplorer(lambda launcher: None)


def test_last_values_by_stage(explorer: CompressionExplorer) -> None:
    history = copy.deepcopy(HISTORY)
    parts = explorer.process_sheep(SimpleNamespace(log=None), history)
    assert parts == {
        "train": {"adv": 1.0, "mmd": 0.5, "duration": 2.0, "epoch": 2},
        "valid": {"msspec": 0.75, "sisnr": -1.5},
        "evaluate": {"sisdr": 4.25, "visqol": 3.5},
    }
    assert history == HISTORY
    assert explorer.process_sheep(SimpleNamespace(log=None), history) == parts  # minutes stay minutes


def test_the_table_shows_every_line(explorer: CompressionExplorer) -> None:
    broken: list[Any] = [{"train": {"adv": None, "mmd": [1]}, "valid": 3}, {"odd": {"x": 1.0}}]
    lines = []
    for index, history in enumerate(([], HISTORY, broken)):
        meta = {"index": index, "name": f"xp{index}", "state": "RUN", "sig": f"{index:08x}", "sid": ""}
        lines.append({"Meta": meta} | explorer.process_sheep(SimpleNamespace(log=None), history))
    header, *rows = _table(explorer, lines).splitlines()[1:]
    for name in ("epoch", "bandwidth", "d_loss", "msspec", "mel", "mi_groups", "usage"):
        assert name in header
    assert "visqol" not in header  # dozens of measures would bury the few that steer a grid; `audiotok results` has all
    assert [row.split()[:4] for row in rows] == [[str(i), f"xp{i}", "RUN", f"{i:08x}"] for i in range(3)]
    assert "4.25" in rows[1] and "0.7500" in rows[1]
    assert rows[0].replace("|", "").split()[4:] == ["0"]  # no epoch yet, all else empty


def test_a_language_model_shows_its_gap_beside_both_likelihoods() -> None:
    explorer = LMExplorer(lambda launcher: None)
    history = [
        {"train": {"ce": 5.5, "duration": 60.0}},
        {
            "train": {"ce": 4.25, "ppl": 70.1},
            "valid": {"ce": 4.125},
            "evaluate": {"gap": 0.0312, "gap_err": 0.0021, "bits_parallel": 18.5312, "bits_chain": 18.5},
            "generate": {"fmd": 1.25, "fmd_chain": 1.125},
        },
    ]
    lines = []
    for index in range(2):  # the first has nothing yet
        meta = {"index": index, "name": f"xp{index}", "state": "RUN", "sig": f"{index:08x}", "sid": ""}
        lines.append({"Meta": meta} | explorer.process_sheep(SimpleNamespace(log=None), history * index))
    header, *rows = _table(explorer, lines).splitlines()[1:]
    assert "msspec" not in header and rows[0].replace("|", "").split()[4:] == ["0"]
    order = [header.index(name) for name in ("gap", "gap_err", "bits_parallel", "bits_chain", "fmd", "fmd_chain")]
    assert order == sorted(order)
    values = ["2", "4.250", "70.1", "1.0", "4.125", "0.0312", "0.0021", "18.531", "18.500", "1.25", "1.12"]
    assert rows[1].replace("|", "").split()[4:] == values


def test_ping_is_the_age_of_the_log(explorer: CompressionExplorer, tmp_path: Path) -> None:
    log = tmp_path / "7_0_log.out"
    assert _log_ping(None) is None and _log_ping(log) is None
    log.touch()
    for age_s, text in ((5, "5s"), (90, "1.5m"), (5400, "1.5h"), (129600, "1.5d"), (-60, "0s")):
        os.utime(log, (time.time() - age_s,) * 2)
        assert _log_ping(log) == text
    parts = explorer.process_sheep(SimpleNamespace(log=log), [])
    assert {stage: part["ping"] for stage, part in parts.items()} == dict.fromkeys(parts, "0s")


def test_it_decorates_an_explore_function() -> None:
    calls: list[Any] = []
    launcher: Any = object()

    @CompressionExplorer
    def explorer(launcher: Any) -> None:
        calls.append(launcher)

    explorer(launcher)
    assert calls == [launcher]


def test_it_does_not_import_torch_itself() -> None:
    tree = ast.parse(Path(explorers.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"time", "collections.abc", "typing", "treetable", "dora.explore"}

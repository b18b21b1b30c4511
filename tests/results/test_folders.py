"""Folders to records: real links, copies, damage, names that try to escape."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiotok.cli import main
from audiotok.errors import ResultsError
from audiotok.results import load_grid, read_experiment
from audiotok.results.folders import (
    experiment_folders,
    grid_signatures,
    list_grids,
    list_signatures,
    output_root,
    output_roots,
    require_signatures,
)

GRID = "compression.encodec_mmd_demo"


def test_a_complete_experiment(make_experiment: Callable[..., Path], done: dict[str, Any]) -> None:
    history = [{"train": {"l1": 0.5}}, {"train": {"l1": 0.25}, "evaluate": {"sisnr": 3}}]
    folder = make_experiment("0a1b2c3d", ["rvq.n_q=4", "mmd.sigmas=[0.1, 1]"], history, status=done)
    experiment = read_experiment(folder)
    assert (experiment.sig, experiment.folder) == ("0a1b2c3d", folder)
    assert experiment.overrides == {"rvq.n_q": 4, "mmd.sigmas": [0.1, 1]}
    assert (experiment.state, experiment.problems) == ("COMPLETED", [])
    assert experiment.history == history
    assert experiment.status["host"] == "n1"


def test_states_without_an_end(make_experiment: Callable[..., Path], done: dict[str, Any]) -> None:
    running = done | {"state": "RUNNING", "ended": None, "updated": time.time()}
    stale = running | {"updated": time.time() - 30 * 86400}
    job = {"launcher": "slurm", "job_id": "7", "submitted": time.time()}
    folders = {
        "NOT_STARTED": make_experiment("00000001"),
        "PENDING": make_experiment("00000002", job=job),
        "RUNNING": make_experiment("00000003", job=job, status=running),
        "STALE": make_experiment("00000004", job=job, status=stale),
        "FAILED": make_experiment("00000005", status=done | {"state": "FAILED", "reason": "no memory"}),
    }
    read = {state: read_experiment(folder) for state, folder in folders.items()}
    assert {state: experiment.state for state, experiment in read.items()} == {s: s for s in folders}
    assert read["FAILED"].reason == "no memory"
    assert read["STALE"].reason


@pytest.mark.parametrize("text", ['[{"train": {"l1": 0.', "", "{}", '"x"', "\x00\xff", "[" * 100_000])
def test_a_damaged_history_is_a_problem(make_experiment: Callable[..., Path], text: str) -> None:
    experiment = read_experiment(make_experiment("0a1b2c3d", ["seed=1"], text))
    assert experiment.history == []
    assert experiment.overrides == {"seed": 1}
    assert len(experiment.problems) == 1 and experiment.problems[0].startswith("history.json")


def test_damaged_parts_of_a_history(make_experiment: Callable[..., Path]) -> None:
    text = '[{"train": {"a": NaN, "b": null, "c": "x", "d": 1, "e": 1' + "0" * 400 + '}, "valid": 3}, 5, {"v": {}}]'
    experiment = read_experiment(make_experiment("0a1b2c3d", [], text))
    train = experiment.history[0]["train"]
    assert math.isnan(train["a"]) and math.isnan(train["b"]) and train["d"] == 1.0
    assert set(train) == {"a", "b", "d"}
    assert experiment.history[1:] == [{}, {"v": {}}]  # epochs keep their numbers
    assert len(experiment.problems) == 4


def test_other_damaged_files(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment("0a1b2c3d", ["seed=1"], [{"train": {"l1": 1.0}}], status='{"state": "RUN')
    (folder / "job.json").write_text("[")
    (folder / ".argv.json").write_text('["seed=1", ')
    experiment = read_experiment(folder)
    assert experiment.history == [{"train": {"l1": 1.0}}]
    assert experiment.overrides == {} and experiment.status == {}
    assert [problem.split()[0] for problem in experiment.problems] == [
        "status.json",
        "job.json",
        ".argv.json",
    ]


@pytest.mark.parametrize("damage", ["deep", "very deep", "pipe", "folder", "loop", "huge", "a list", "not UTF-8"])
@pytest.mark.parametrize("name", ["history.json", "status.json", "job.json", "task.json", ".argv.json", "frozen.json"])
def test_a_damaged_file_costs_its_own_row_only(
    root: Path,
    make_experiment: Callable[..., Path],
    done: dict[str, Any],
    name: str,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for sig, argv in (("00000001", ["seed=1", "lr=2"]), ("00000002", ["seed=2"])):
        folder = make_experiment(sig, argv, [{"train": {"l1": 1.5}}], status=done)
    path = folder / name
    path.unlink(missing_ok=True)
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "folder":
        path.mkdir()
    elif damage == "loop":
        path.symlink_to(name)
    elif damage == "huge":
        path.touch()
        os.truncate(path, 2**30)
    else:
        deep = {"deep": b"[" * 400 + b"]" * 400, "very deep": b'{"a":' * 100_000}
        path.write_bytes({**deep, "a list": b"3", "not UTF-8": b'{"a": "\xff"}'}[damage])
    rows = load_grid(GRID, root).runs.set_index("sig").to_dict("index")
    whole = rows["00000001"]
    shown = (whole["seed"], whole["train.l1"], whole["state"], whole["epochs"], whole["problems"])
    assert shown == (1, 1.5, "COMPLETED", 1, "")
    problems = rows["00000002"]["problems"]
    assert problems.startswith(f"{name} cannot be read: ") and "\n" not in problems
    assert f"{folder}: {name} cannot be read: " in caplog.text
    assert main(["results", GRID, "--root", str(root)]) == 0
    assert f"{name} cannot be read" in capsys.readouterr().out


def test_a_grid_with_loops_of_links(root: Path, make_experiment: Callable[..., Path]) -> None:
    make_experiment("00000001", ["seed=1"], [])
    for folder, name in (("grids", "loop"), (f"grids/{GRID}", "00000002"), ("xps", "00000002")):
        (root / folder / name).symlink_to(name)
    assert list_grids(root) == [GRID]
    problems = load_grid(GRID, root).runs.set_index("sig")["problems"].to_dict()
    assert problems == {"00000001": "", "00000002": "no folder for this signature"}


def test_what_is_not_submitted_yet_is_no_problem(
    root: Path, make_experiment: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    make_experiment("00000001", ["seed=1"], [])
    for sig in ("00000002", "00000003"):
        (root / "grids" / GRID / sig).symlink_to(f"../../xps/{sig}")
    runs = load_grid(GRID, root).runs.set_index("sig")
    assert runs["problems"].tolist() == ["", "", ""] and not caplog.text
    assert runs.loc[["00000002", "00000003"], "state"].tolist() == ["NOT_STARTED"] * 2


def test_a_configuration_of_aliases_is_not_written_out(root: Path, make_experiment: Callable[..., Path]) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    make_experiment("00000001", ["a11=1", "other={a: &a [1], b: [*a, *a]}"], [])
    make_experiment("00000002", ["seed=" + "1" * 400], [], config=bomb)
    rows = load_grid(GRID, root).runs.set_index("sig").to_dict("index")
    assert rows["00000002"]["problems"] == "frozen.json cannot be read: it has YAML aliases"
    assert rows["00000002"]["seed"] == "1" * 400 and rows["00000001"]["other"] == "{a: &a [1], b: [*a, *a]}"


def test_overrides_that_are_no_overrides(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment("0a1b2c3d", [], [])
    (folder / ".argv.json").write_text(f'["seed=1", 5, {"1" * 400}]')
    experiment = read_experiment(folder)
    assert (experiment.overrides, experiment.problems) == ({"seed": 1}, [".argv.json: an override that is not text"])
    (folder / ".argv.json").write_text(json.dumps([f"k{n}=1" for n in range(1001)]))
    experiment = read_experiment(folder)
    assert experiment.overrides == {} and "more than 1000 overrides" in experiment.problems[0]


def test_more_metrics_than_a_table_can_hold(make_experiment: Callable[..., Path]) -> None:
    many = [{"train": {f"m{n}": 1.0 for n in range(50_001)}}]
    sparse = [{"train": {f"m{n}": 1.0}} for n in range(5000)]
    for sig, history in (("00000001", many), ("00000002", sparse)):
        experiment = read_experiment(make_experiment(sig, [], history))
        assert experiment.epochs == 0 and " metrics in " in experiment.problems[0]


def test_of_many_problems_the_first_are_named(make_experiment: Callable[..., Path]) -> None:
    experiment = read_experiment(make_experiment("0a1b2c3d", [], [{"train": {f"m{n}": "x" for n in range(20_000)}}]))
    assert experiment.problems[0] == "history.json: train.m0 is not a number"
    assert experiment.problems[5:] == ["history.json: and 19995 more like these"]


@pytest.mark.parametrize("updated", ["soon", [1], {"a": 1}, 10**400])
def test_a_status_that_makes_no_sense(make_experiment: Callable[..., Path], updated: object) -> None:
    folder = make_experiment("0a1b2c3d", ["seed=1"], [], status={"state": "RUNNING", "updated": updated})
    assert read_experiment(folder).state == "STALE"  # a heartbeat that is no time is none


def test_a_folder_without_anything(tmp_path: Path) -> None:
    assert read_experiment(tmp_path / "0a1b2c3d").problems == ["no folder for this signature"]
    (tmp_path / "0a1b2c3d").mkdir()
    assert read_experiment(tmp_path / "0a1b2c3d").problems == [".argv.json is missing: parameters unknown"]


def test_lone_surrogates_are_replaced(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment("0a1b2c3d", history='[{"train": {"x\\ud800": 1.5}}]')
    assert read_experiment(folder).history == [{"train": {"x?": 1.5}}]


def test_a_copy_from_another_machine(root: Path, make_experiment: Callable[..., Path], tmp_path: Path) -> None:
    make_experiment("0a1b2c3d", ["seed=1"], link="/nowhere/xps/0a1b2c3d")
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, symlinks=True)
    shutil.rmtree(root)
    assert grid_signatures(copy, GRID) == ["0a1b2c3d"]
    folder = experiment_folders(copy, ["0a1b2c3d"], GRID)["0a1b2c3d"]
    assert read_experiment(folder).overrides == {"seed": 1}


def test_the_copy_is_read_and_not_its_origin(root: Path, make_experiment: Callable[..., Path], tmp_path: Path) -> None:
    origin = make_experiment("0a1b2c3d", ["seed=1"])
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, symlinks=True)  # its link still leads to the origin
    (origin / ".argv.json").write_text(json.dumps(["seed=2"]))
    assert read_experiment(experiment_folders(copy, ["0a1b2c3d"], GRID)["0a1b2c3d"]).overrides == {"seed": 1}


def test_a_link_to_a_shared_folder_is_followed(root: Path, tmp_path: Path) -> None:
    shared = tmp_path / "elsewhere" / "0a1b2c3d"
    shared.mkdir(parents=True)
    (root / "grids" / GRID / "0a1b2c3d").symlink_to(shared)
    assert experiment_folders(root, ["0a1b2c3d"], GRID)["0a1b2c3d"].resolve() == shared.resolve()


def test_what_is_not_a_signature_is_left_out(root: Path, make_experiment: Callable[..., Path]) -> None:
    make_experiment("0a1b2c3d")
    (root / "grids" / GRID / ".DS_Store").touch()
    (root / "xps" / "0a1b2c3d_trash").mkdir()
    assert grid_signatures(root, GRID) == list_signatures(root) == ["0a1b2c3d"]


@pytest.mark.parametrize("sig", ["../0a1b2c3d", "", "..", "0a1b/2c3d", "0a1b2c3d\n", "XYZ12345", "/etc"])
def test_a_path_is_not_a_signature(root: Path, sig: str) -> None:
    with pytest.raises(ResultsError, match="is not a signature"):
        experiment_folders(root, [sig])


@pytest.mark.parametrize("name", ["../xps", "..", ".", "", "compression/encodec_mmd_demo", "/etc"])
def test_a_path_is_not_a_grid(root: Path, name: str) -> None:
    with pytest.raises(ResultsError, match="no grid"):
        grid_signatures(root, name)


def test_an_unknown_grid_is_told_the_nearest_first(root: Path) -> None:
    for name in ("aaa", "compression.encodec_mmd_32khz", "zzz"):
        (root / "grids" / name).mkdir()
    assert list_grids(root) == ["aaa", "compression.encodec_mmd_32khz", GRID, "zzz"]
    with pytest.raises(ResultsError) as caught:
        grid_signatures(root, "compression.encodec_mmd_dem")
    listed = str(caught.value).partition("there are: ")[2].rstrip(".").split(", ")
    assert listed[:2] == [GRID, "compression.encodec_mmd_32khz"]
    assert set(listed[2:]) == {"aaa", "zzz"}


def test_an_unknown_signature_is_told(root: Path, make_experiment: Callable[..., Path]) -> None:
    make_experiment("0a1b2c3d")
    assert require_signatures(root, ["0a1b2c3d", "0a1b2c3d"]) == ["0a1b2c3d"]
    with pytest.raises(ResultsError, match=r"no experiment '0a1b2c3e'.*0a1b2c3d"):
        require_signatures(root, ["0a1b2c3e"])


def test_where_results_are_looked_for(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIOTOK_OUTPUT_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert output_root() == Path("outputs")
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(root / "grids"))
    assert output_root() == root / "grids"
    assert output_root(root) == root
    with pytest.raises(ResultsError, match="AUDIOTOK_OUTPUT_DIR"):
        output_root(tmp_path / "absent")
    assert output_roots([root, str(root), root / "grids"]) == [root, root / "grids"]
    with pytest.raises(ResultsError, match="empty list"):
        output_roots([])


def test_a_key_that_stands_twice_is_told_and_the_last_one_counts(make_experiment: Callable[..., Path]) -> None:
    text = '[{"train": {"l1": 1.0, "l1": 2.0}}, {"train": {"l1": 3.0, "a:b": 1.0}}]'
    experiment = read_experiment(make_experiment("0a1b2c3d", [], text))
    assert experiment.history[0] == {"train": {"l1": 2.0}}
    assert experiment.problems == ["history.json: l1 stands twice in an epoch; the last one counts"]

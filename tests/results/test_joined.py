"""Language models joined with the codecs they are on: columns, a row per codec, and what counts as a replicate."""

import csv
import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiotok import cli
from audiotok.errors import ResultsError
from audiotok.results import load_all, load_grid
from audiotok.results.joined import code_lines, codec_rows, counts_codecs, replicates
from audiotok.results.metrics import known_metric, metric_direction, metric_values, several_codecs
from audiotok.results.plots import learning_curves, tradeoff
from audiotok.results.statistics import compare, summarize
from audiotok.results.tables import short_names
from tests.results.joined import CODECS, GRID, add_run, codec_sig, fill, measured


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six codecs (two weights × three seeds) with two language models each; tests may change it."""
    path = tmp_path / "outputs"
    fill(path)
    return path


def results(root: Path, *arguments: str) -> int:
    return cli.main(["results", GRID, "--root", str(root), *arguments])


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_run_has_the_columns_of_its_codec(root: Path) -> None:
    grid = load_grid(GRID, root)
    codecs = load_grid(CODECS, root).runs.set_index("sig")
    assert len(grid.runs) == 12
    for row in grid.runs.to_dict("records"):
        codec = codecs.loc[row["codec.sig"]]
        assert row["compression_model_checkpoint"] == f"//sig/{row['codec.sig']}"
        for name in ("losses.mmd", "seed", "solver", "state", "valid.msspec", "evaluate.sisdr", "evaluate.mi_groups"):
            assert row[f"codec.{name}"] == codec[name]
        assert row["evaluate.gap"] == measured(row["codec.losses.mmd"], row["codec.seed"], row["seed"])["gap"]
    assert "codec.losses.mmd" in grid.parameters and "codec.evaluate.sisdr" in grid.metrics
    assert grid.swept == ["codec.losses.mmd", "codec.seed", "seed"]  # the checkpoint is what they stand for
    order = grid.runs[["codec.losses.mmd", "codec.seed", "seed"]]
    pd.testing.assert_frame_equal(order, order.sort_values(list(map(str, order)), kind="stable"))
    assert [record.sig for record in grid.records] == grid.runs["sig"].tolist()
    assert grid.runs["best_epoch"].tolist() == [2] * 12  # by valid.ce, without any valid.msspec
    assert load_grid(GRID, root, best_by="train.ce").runs["best_epoch"].tolist() == [2] * 12
    assert set(grid.read_history(["generate"]).columns) == {"sig", "stage", "epoch", "fmd", "fmd_chain", "fmd_gap"}


def test_moved_and_cached_it_is_the_same(root: Path, tmp_path: Path) -> None:
    before = load_grid(GRID, root).runs
    pd.testing.assert_frame_equal(before, load_grid(GRID, root).runs)
    shutil.move(root, tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(before, load_grid(GRID, tmp_path / "elsewhere").runs)
    shutil.move(tmp_path / "elsewhere" / "xps" / codec_sig(0, 1), tmp_path / codec_sig(0, 1))
    (tmp_path / "other" / "xps").mkdir(parents=True)
    shutil.move(tmp_path / codec_sig(0, 1), tmp_path / "other" / "xps")
    pd.testing.assert_frame_equal(before, load_grid(GRID, [tmp_path / "elsewhere", tmp_path / "other"]).runs)


def test_without_the_folder_of_a_codec_its_columns_are_empty(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = load_grid(GRID, root).runs.set_index("sig")
    shutil.rmtree(root / "xps" / codec_sig(10, 2))
    caplog.clear()
    runs = load_grid(GRID, root).runs.set_index("sig")
    assert [record.message for record in caplog.records] == [
        f"{GRID}: no folder of the codec {codec_sig(10, 2)} in {root / 'xps'}: its columns, codec.*, are empty"
    ]
    lost = runs[runs["codec.sig"] == codec_sig(10, 2)]
    columns = [name for name in runs.columns if name.startswith("codec.") and name != "codec.sig"]
    assert len(lost) == 2 and lost[columns].isna().all(axis=None)
    rest = runs.index.difference(lost.index)
    pd.testing.assert_frame_equal(runs.loc[rest], whole.loc[rest], check_dtype=False)
    assert len(codec_rows(load_grid(GRID, root))) == 6


def test_a_codec_that_is_no_experiment_and_one_that_a_preset_names(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    history = [{"evaluate": {"gap": 0.1, "ce": 3.0}}]
    add_run(root, GRID, "00000001", ["compression_model_checkpoint=//pretrained/demo", "seed=1"], history, "COMPLETED")
    folder = add_run(root, GRID, "00000002", ["solver=lm/own", "seed=2"], history, "COMPLETED")
    (folder / "frozen.json").write_text('{"cfg": {"compression_model_checkpoint": "//sig/abcd", "seed": 2}}')
    add_run(root, CODECS, "abcd", ["seed=7"], [{"evaluate": {"sisdr": 4.0}}], "COMPLETED")
    first, second = load_grid(GRID, root).runs.sort_values("sig").to_dict("records")
    assert (first["codec.sig"], second["codec.sig"]) == ("//pretrained/demo", "abcd")
    assert (second["codec.seed"], second["codec.evaluate.sisdr"]) == (7, 4.0)
    assert first["codec.seed"] is None and np.isnan(first["codec.evaluate.sisdr"])


def test_a_run_with_keys_of_that_name_is_shown_as_it_is(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = f"compression_model_checkpoint=//sig/{codec_sig(0, 1)}"
    add_run(root, GRID, "00000009", [checkpoint, "codec.seed=5"], [], "COMPLETED")
    grid = load_grid(GRID, root)
    assert "codec.evaluate.sisdr" not in grid.runs and len(grid.runs) == 13 and "no codecs are shown" in caplog.text
    assert results(root, "--by", "codec.seed", "--metric", "evaluate.gap") == 0


def test_a_row_per_codec_holds_means_over_its_runs(root: Path) -> None:
    grid = load_grid(GRID, root)
    table = codec_rows(grid)
    assert table["codec.sig"].tolist() == [codec_sig(weight, seed) for weight in (0, 10) for seed in (1, 2, 3)]
    assert table["n"].tolist() == [2] * 6 and table["state"].tolist() == ["2 COMPLETED"] * 6
    for row in table.to_dict("records"):
        gaps = [measured(row["codec.losses.mmd"], row["codec.seed"], seed)["gap"] for seed in (1, 2)]
        assert row["evaluate.gap"] == pytest.approx((np.mean(gaps), np.std(gaps, ddof=1), 2))
        assert isinstance(row["codec.evaluate.sisdr"], float)
    same = summarize(grid.runs, ["codec.sig"], ["generate.fmd"])  # by the conventions of statistics.py
    assert [tuple(value) for value in table["generate.fmd"]] == [
        pytest.approx(values) for values in same[["mean", "std", "n"]].itertuples(index=False)
    ]


def test_runs_that_have_not_completed_keep_their_row(root: Path) -> None:
    (root / "xps" / "1a800100" / "status.json").write_text('{"state": "FAILED", "reason": "no disk"}')
    row = codec_rows(load_grid(GRID, root)).to_dict("records")[0]
    assert row["codec.sig"] == codec_sig(0, 1)
    assert row["n"] == 1 and row["state"] in ("1 COMPLETED, 1 FAILED", "1 FAILED, 1 COMPLETED")
    assert row["evaluate.gap"].mean == measured(0, 1, 2)["gap"] and np.isnan(row["evaluate.gap"].std)
    assert codec_rows(load_grid(GRID, root), unfinished=True)["n"].tolist() == [2] * 6
    (root / "xps" / "1a800100" / "history.json").write_text("[]")
    assert codec_rows(load_grid(GRID, root), unfinished=True)["n"].tolist() == [1, *[2] * 5]


def test_a_grid_that_waits_shows_its_codecs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (root / "xps").glob("1a*"):
        (folder / "history.json").unlink()
        (folder / "status.json").unlink()
    assert results(root, "--format", "csv") == 0
    rows = rows_of(capsys.readouterr().out)
    assert [(row["state"], row["n"], float(row["codec.evaluate.sisdr"])) for row in rows][:2] == [
        ("2 NOT_STARTED", "0", 5.1),
        ("2 NOT_STARTED", "0", 5.2),
    ]
    for arguments in (["--by", "codec.losses.mmd"], ["--by", "codec.losses.mmd", "--baseline", "codec.losses.mmd=0"]):
        assert results(root, *arguments) == 0
        assert "Traceback" not in capsys.readouterr().err


def test_codecs_not_their_runs_are_the_replicates_of_a_condition(root: Path) -> None:
    runs = load_grid(GRID, root).runs
    assert counts_codecs(runs, ["codec.losses.mmd"]) and not counts_codecs(runs, ["codec.sig"])
    found = replicates(runs, ["codec.losses.mmd"], ["evaluate.gap", "codec.evaluate.sisdr"], codecs=True)
    assert len(found) == 6
    summary = summarize(found, ["codec.losses.mmd"], ["evaluate.gap"], interval="t").set_index("codec.losses.mmd")
    for weight in (0, 10):
        means = [np.mean([measured(weight, codec, seed)["gap"] for seed in (1, 2)]) for codec in (1, 2, 3)]
        low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
        expected = (3, np.mean(means), np.std(means, ddof=1), low, high)
        assert tuple(summary.loc[weight, ["n", "mean", "std", "low", "high"]]) == pytest.approx(expected)
    row = compare(found, ["codec.losses.mmd"], ["evaluate.gap"], {"codec.losses.mmd": 0}, pair="codec.seed").to_dict(
        "records"
    )[0]
    assert row["n"] == 3 and row["difference"] == pytest.approx(-0.01)


def test_among_other_experiments_a_run_on_no_codec_stands_for_itself(root: Path) -> None:
    runs = load_all(root).runs  # the codecs too, whose `losses.mmd` is their own
    assert len(runs) == 18 and runs["codec.sig"].isna().sum() == 6
    by, metrics = ["losses.mmd"], ["evaluate.sisdr", "evaluate.gap"]
    counts = summarize(replicates(runs, by, metrics, codecs=counts_codecs(runs, by)), by, metrics)
    counts = counts[counts["n"] > 0][["losses.mmd", "metric", "n"]].fillna(-1)
    assert sorted(counts.itertuples(index=False, name=None), key=str) == [
        (-1, "evaluate.gap", 6), (0, "evaluate.sisdr", 3), (10, "evaluate.sisdr", 3),
    ]  # fmt: skip


def test_nesting_keeps_the_rate_of_false_findings(tmp_path: Path) -> None:
    """Codecs that differ while their runs do not: taking runs for replicates would find a difference that is none."""
    rng = np.random.default_rng(0)
    naive = nested = 0
    for _ in range(200):
        codecs = rng.normal(size=8)
        rows = [
            {"codec.sig": f"{index}", "codec.losses.mmd": index % 2, "codec.seed": index // 2, "seed": seed,
             "sig": f"{index}{seed}", "evaluate.gap": value + rng.normal() / 10}
            for index, value in enumerate(codecs) for seed in range(4)
        ]  # fmt: skip
        runs = pd.DataFrame(rows)
        means = replicates(runs, ["codec.losses.mmd"], ["evaluate.gap"], codecs=True)
        groups = [members["evaluate.gap"] for _, members in means.groupby("codec.losses.mmd")]
        every = [members["evaluate.gap"] for _, members in runs.groupby("codec.losses.mmd")]
        nested += stats.ttest_ind(*groups).pvalue < 0.05
        naive += stats.ttest_ind(*every).pvalue < 0.05
    assert stats.binomtest(nested, 200, 0.05).pvalue > 0.01
    assert naive > 60


def test_where_runs_are_the_replicates_a_codec_is_measured_once(root: Path) -> None:
    runs = load_grid(GRID, root).runs
    by = ["codec.losses.mmd", "codec.seed"]
    found = replicates(runs, by, ["evaluate.gap", "codec.evaluate.sisdr"], codecs=counts_codecs(runs, by))
    assert summarize(found, by, ["evaluate.gap"])["n"].tolist() == [2] * 6
    assert summarize(found, by, ["codec.evaluate.sisdr"])["n"].tolist() == [1] * 6


def test_the_command_shows_a_row_per_codec_gap_beside_both_likelihoods(
    root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert results(root, "--format", "markdown") == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    names = [name.strip() for name in header.strip("|").split("|")]
    assert names[:8] == [
        "codec.sig", "codec.losses.mmd", "codec.seed", "state", "n", "evaluate.gap", "evaluate.bits_parallel",
        "evaluate.bits_chain",
    ]  # fmt: skip
    assert "codec.evaluate.sisdr" in names and "generate.fmd" in names and len(rows) == 6
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][:5] == ["c0de0001", "0", "1", "2 COMPLETED", "2"] and "±" in cells[0][5]
    assert [row[5].startswith("**") for row in cells] == [False] * 3 + [True, False, False]  # the smallest gap
    assert not any("*" in cell for row in cells for cell in row[6:8])  # likelihoods of different codes: none is best
    assert any("of each codec's own codes" in record.message for record in caplog.records)
    assert results(root, "--format", "csv") == 0
    whole = rows_of(capsys.readouterr().out)
    assert float(whole[0]["evaluate.gap.mean"]) == pytest.approx(0.05115) and whole[0]["evaluate.gap.n"] == "2"
    assert results(root, "--runs", "--format", "csv") == 0
    assert len(rows_of(capsys.readouterr().out)) == 12


def test_the_command_averages_within_codecs_first(
    root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    metrics = "evaluate.gap,codec.evaluate.sisdr"
    assert results(root, "--by", "codec.losses.mmd", "--metric", metrics, "--format", "csv") == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row["codecs"] for row in rows] == ["3", "3"]
    assert [row["evaluate.gap.n"] for row in rows] == [row["codec.evaluate.sisdr.n"] for row in rows] == ["3", "3"]
    assert float(rows[0]["evaluate.gap.std"]) == pytest.approx(0.001)  # of codecs; that of all runs is 0.00092
    text = caplog.text
    assert "n counts codecs" in text and "averaged over" not in text
    baseline = ["--baseline", "codec.losses.mmd=0"]
    assert results(root, "--by", "codec.losses.mmd", *baseline, "--metric", "evaluate.gap", "--format", "csv") == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row["n"] == "3" and float(row["difference"]) == pytest.approx(-0.01)
    assert "evaluate.gap 3 pairs of codecs that differ alike, so no error is known (-0.01 bit)" in caplog.text
    assert results(root, "--by", "codec.losses.mmd", "--metric", "evaluate.gap", "--pooled", "--format", "csv") == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert (row["blocks"], row["n"], float(row["p"])) == ("3", "6", 2 / 2**3)  # blocks of a codec's seed


def test_a_baseline_alone_is_compared_with_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for codec_seed in (1, 2, 3):
        for seed in (1, 2):
            (root / "xps" / f"1a{9 - codec_seed}10{seed}00" / "status.json").write_text('{"state": "RUNNING"}')
    baseline = ["--by", "codec.losses.mmd", "--baseline", "codec.losses.mmd=0"]
    assert results(root, *baseline, "--metric", "evaluate.gap") == 0
    assert "nothing is compared yet" in caplog.text


def test_short_names_are_whole_where_two_would_be_the_same() -> None:
    names = ["codec.losses.mmd", "codec.seed", "seed"]
    assert short_names(names) == {"codec.losses.mmd": "mmd", "codec.seed": "codec.seed", "seed": "seed"}


def test_conditions_of_language_models_are_paired_by_codec(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for weight, codec_seed in ((0, 1), (0, 2), (10, 1)):
        for index, (pattern, gap) in enumerate((("delay", 0.05), ("parallel", 0.3))):
            argv = [f"compression_model_checkpoint=//sig/{codec_sig(weight, codec_seed)}", f"lm.pattern={pattern}"]
            sig = f"2b{weight:02d}{codec_seed}{index}00"
            add_run(root, "lm.patterns", sig, argv, [{"evaluate": {"gap": gap + codec_seed / 10}}], "COMPLETED")
    arguments = ["results", "lm.patterns", "--root", str(root), "--by", "lm.pattern", "--format", "csv"]
    assert cli.main([*arguments, "--metric", "evaluate.gap", "--baseline", "lm.pattern=delay"]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert (row["lm.pattern"], row["n"]) == ("parallel", "3") and float(row["difference"]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "codec.losses.mdm"], "no column codec.losses.mdm; there are: codec.losses.mmd"),
        (["--by", "codec.seed", "--metric", "codec.evaluate.sisdx"], "codec.evaluate.sisdr"),
        (["--columns", "codec.x"], "no column 'codec.x'"),
        (["--columns", "sig,host,codec.seed"], "--columns sig, host: of runs, not of codecs; --runs shows"),
        (["--by", "codec.losses.mmd", "--runs"], "give one of them"),
        (["--by", "codec.losses.mmd", "--baseline", "codec.losses.mmd=7"], "no run has it"),
        (["--by", "codec.losses.mmd", "--baseline", "codec.x=7"], "NAME=VALUE expected"),
        (["--by", "codec.losses.mmd", "--best-by", "codec.evaluate.gap_err"], "cannot choose a best epoch"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results(root, *arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error and len(error) < 1500


def test_a_codec_is_measured_once_whatever_the_epoch(root: Path) -> None:
    grid = load_grid(GRID, root)
    last = metric_values(grid, "codec.evaluate.sisdr")
    pd.testing.assert_series_equal(last, metric_values(grid, "codec.evaluate.sisdr", best_by="valid.ce"))
    with pytest.raises(ResultsError, match="no curve"):
        learning_curves(grid, "codec.evaluate.sisdr", [])
    axes = tradeoff(grid, "evaluate.gap", "codec.evaluate.sisdr", ["codec.losses.mmd"]).axes[0]
    assert axes.get_ylabel() == "codec.evaluate.sisdr, dB (↑ higher is better)"
    assert axes.get_xlabel() == "evaluate.gap, bit (closer to 0 is better)"


def test_what_follows_from_a_metric() -> None:
    assert known_metric("evaluate.gap_q2") == known_metric("evaluate.gap") == known_metric("codec.evaluate.gap")
    error = known_metric("evaluate.gap_q2_err")
    assert error is not None and (error.direction, error.unit) == ("neutral", "bit")
    assert known_metric("evaluate.odd") is None is known_metric("evaluate.odd_err")
    lower = ("evaluate.ce_q1", "valid.ce", "generate.fmd_chain", "evaluate.bits_chain")
    assert {metric_direction(name) for name in lower} == {"lower"}
    assert metric_direction("codec.evaluate.sisdr") == "higher"


def test_gaps_that_have_not_converged_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not any("not converged" in line for line in code_lines(load_grid(GRID, root)))
    for sig, converged in (("1a800100", 0.0), ("1a800200", 1.0)):
        (root / "xps" / sig / "history.json").write_text(
            json.dumps([{"evaluate": {"gap": 0.1, "gap_converged": converged}}])
        )
    caplog.set_level(logging.INFO)
    assert results(root, "--columns", "codec.seed") == 0
    assert [record.message.partition(";")[0] for record in caplog.records if "not converged" in record.message] == [
        "not converged, so that their gaps mean little: 1a800100"
    ]


def test_one_codec_has_a_best_likelihood(root: Path) -> None:
    runs = load_grid(GRID, root).runs
    assert several_codecs(runs) and not several_codecs(runs[runs["codec.sig"] == codec_sig(0, 1)])
    assert not several_codecs(runs[["sig", "evaluate.ce"]])

"""The command line: data on stdout, one line per mistake on stderr, exit codes that scripts can trust."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiotok import __version__, cli

GRID = "compression.encodec_mmd_demo"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Results of two experiments."""
    path = tmp_path / "outputs"
    (path / "grids" / GRID).mkdir(parents=True)
    for seed in (1, 2):
        folder = path / "xps" / f"0000000{seed}"
        folder.mkdir(parents=True)
        (folder / ".argv.json").write_text(json.dumps([f"seed={seed}", 'label="é\\u001b[31m"']))
        (folder / "history.json").write_text(json.dumps([{"valid": {"msspec": 1 / (seed + 2)}}]))
        (path / "grids" / GRID / folder.name).symlink_to(folder)
    return path


def _audiotok(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "audiotok.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environ,
        check=False,
    )


def test_results_as_csv(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["results", GRID, "--root", str(root), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["sig"], row["seed"]) for row in rows] == [("00000001", "1"), ("00000002", "2")]
    assert [float(row["valid.msspec"]) for row in rows] == [1 / 3, 1 / 4]


def test_results_as_a_table_to_a_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.md"
    arguments = ["results", GRID, "--root", str(root), "--format", "markdown", "--output", str(out)]
    assert cli.main([*arguments, "--columns", "sig, label,valid.*"]) == 0
    assert capsys.readouterr().out == ""
    assert out.read_text(encoding="utf-8").splitlines()[2] == "| 00000001 | é | 0.3333 |"
    assert cli.main([*arguments[:-1], str(tmp_path / "no" / "table.md")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cannot write")


def test_results_without_a_grid_lists_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUDIOTOK_OUTPUT_DIR", str(root))
    assert cli.main(["results"]) == 0
    assert capsys.readouterr().out == f"{GRID}\n"


def test_results_without_any_grid_say_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert cli.main(["results", "--root", str(tmp_path)]) == 0
    assert f"no grid has run in {tmp_path} yet; `audiotok plan` lists grids, `dora grid NAME` runs one" in caplog.text


@pytest.mark.parametrize("width", [40, 80])
def test_a_table_has_no_more_columns_than_fit(root: Path, width: int) -> None:
    done = _audiotok("results", GRID, "--root", str(root), COLUMNS=str(width))
    assert max(map(len, done.stdout.splitlines())) <= width and done.stdout.startswith("sig ")
    assert ("no room for " in done.stderr) == (width == 40)
    chosen = _audiotok("results", GRID, "--root", str(root), "--columns", "sig,seed,state,epochs", COLUMNS="9")
    assert chosen.stdout.splitlines()[0].split() == ["sig", "seed", "state", "epochs"]
    assert "\x1b" not in done.stdout + done.stderr


def test_an_unknown_grid_is_one_line_and_exit_code_2(root: Path) -> None:
    done = _audiotok("results", "compression.encodec", "--root", str(root))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no grid 'compression.encodec' in ") and GRID in done.stderr


def test_a_table_of_unicode_in_a_plain_locale(root: Path) -> None:
    done = _audiotok("results", GRID, "--root", str(root), "--columns", "label", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.splitlines()[2:] == ["e", "e"]


def test_a_reader_that_leaves_is_no_error(root: Path) -> None:
    command = [sys.executable, "-m", "audiotok.cli", "results", GRID, "--root", str(root)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_an_interrupt_is_130(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audiotok.results.experiments.load_named", interrupted)
    assert cli.main(["results", GRID, "--root", str(root)]) == 130


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"audiotok {__version__}\n"
    for arguments in ([], ["data"], ["results", "x", "--format", "html"], ["nothing"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    """Ten tracks of two seconds."""
    folder = tmp_path / "tracks"
    folder.mkdir()
    for index in range(10):
        noise = np.random.default_rng(index).normal(0, 0.1, 16000)
        soundfile.write(folder / f"{index}.wav", noise, 8000)
    return folder


def test_data_prepare(tracks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "manifests"
    arguments = ["data", "prepare", str(tracks), "--output", str(out), "--seed", "3"]
    assert cli.main([*arguments, "--split", "train=0.7", "--split", "valid=0.3"]) == 0
    assert "7 tracks" in capsys.readouterr().out
    assert sorted(path.name.partition(".")[0] for path in out.iterdir()) == ["train", "valid"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train=0.7", "--split", "train=0.3"], "twice"),
        (["--split", "tr/ain=1"], "tr/ain"),
        (["--", "{absent}"], "not a folder"),
    ],
)
def test_data_prepare_refuses(
    tracks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.format(absent=tmp_path / "absent") for argument in arguments]
    assert cli.main(["data", "prepare", "--output", str(tmp_path / "m"), *given, "--", str(tracks)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("split", ["train", "train=x", "=0.5", "train=0", "train=nan", "train=inf"])
def test_a_split_is_a_name_and_a_share(split: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "prepare", "x", "--output", "y", "--split", split])
    assert caught.value.code == 2
    assert "NAME=FRACTION" in capsys.readouterr().err


def test_data_demo_fetches_then_prepares(
    tracks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def fetch(output: Path) -> Path:
        asked.append(output)
        return tracks

    monkeypatch.setattr("audiotok.data.demo.fetch_demo", fetch)
    assert cli.main(["data", "demo", "--output", str(tmp_path / "demo")]) == 0
    assert asked == [tmp_path / "demo"]
    assert "10 at 8000 Hz" in capsys.readouterr().out
    assert len(list((tmp_path / "demo").iterdir())) == 4


def test_check_and_samples_name_what_failed_and_where_to_listen(
    root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    good, bad = root / "xps" / "00000001", root / "xps" / "00000002"
    for folder, state in ((good, "COMPLETED"), (bad, "FAILED")):
        status = {"state": state, "reason": "a reason", "updated": 0.0}
        (folder / "status.json").write_text(json.dumps(status))
    (good / "samples" / "epoch_0001").mkdir(parents=True)
    assert cli.main(["results", GRID, "--root", str(root), "--samples", "--check"]) == 1
    assert "not completed: 00000002 FAILED a reason" in caplog.text and "not completed: 00000001" not in caplog.text
    assert f"samples: {good / 'samples' / 'epoch_0001'}" in caplog.text
    (bad / "status.json").write_text(json.dumps({"state": "COMPLETED", "updated": 0.0}))
    assert cli.main(["results", GRID, "--root", str(root), "--check"]) == 0


@pytest.mark.parametrize(
    ("arguments", "usage", "advice"),
    [
        (["report", "demo", "--with-modle"], "usage: audiotok report ", "did you mean --with-model?"),
        (["data", "prepare", "a", "--output=b", "--convrt=flac"], "usage: audiotok data prepare ", "mean --convert?"),
        (["report", "demo", "more"], "usage: audiotok report ", "; audiotok report --help lists what there is"),
    ],
)
def test_a_mistyped_option_is_answered_by_its_command(
    arguments: list[str], usage: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith(usage) and "unrecognized arguments" in err and advice in err

"""How runs were evaluated, and published numbers beside the own ones."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiotok.cli import main
from audiotok.cli.results import _show_published
from audiotok.results import load_grid
from audiotok.results.protocols import describe, protocol_lines
from audiotok.results.published import PUBLISHED, published_table
from tests.results.conftest import GRID

MakeExperiment = Callable[..., Path]
PROTOCOL: dict[str, Any] = {
    "version": 1,
    "clips": 24,
    "recordings": 3,
    "seconds": 5.0,
    "digest": "0123abcd",
    "sample_rate": 32000,
    "channels": 1,
    "metrics": {
        "sisdr": "whole clips",
        "mel_distance": "-16 LUFS",
        "stft_distance": "-16 LUFS",
        "mmd": {"delay": True},
    },
}
A, B, C = "aaaaaaaa", "bbbbbbbb", "cccccccc"  # signatures
LINE = "24 clips of 5 s from 3 recording(s) at 32000 Hz; sisdr: whole clips; mel_distance, stft_distance: -16 LUFS"


def evaluated(make: MakeExperiment, sig: str, number: float | None, protocol: Any = None, **values: float) -> None:
    metrics = {"sisdr": 5.0, **values} | ({} if number is None else {"protocol": number})
    folder = make(sig, ["seed=1"], [{"evaluate": metrics}])
    if protocol is not None:
        (folder / "evaluate.json").write_text(protocol if isinstance(protocol, str) else json.dumps(protocol))


def test_runs_that_were_evaluated_alike_get_one_line(root: Path, make_experiment: MakeExperiment) -> None:
    evaluated(make_experiment, A, 7.0, PROTOCOL)
    evaluated(make_experiment, B, 7.0, PROTOCOL)
    make_experiment(C, [], [{"train": {"l1": 1.0}}])  # not evaluated yet
    assert protocol_lines(load_grid(GRID, root)) == [f"evaluate: {LINE}"]


def test_runs_that_were_not_are_named_with_what_differs(root: Path, make_experiment: MakeExperiment) -> None:
    evaluated(make_experiment, A, 7.0, PROTOCOL)
    evaluated(make_experiment, B, 8.0, PROTOCOL | {"clips": 12, "digest": "ffff0000"})
    evaluated(make_experiment, C, None)
    head, *lines = protocol_lines(load_grid(GRID, root))
    assert "do not compare" in head
    assert lines == [
        f"{A}: {LINE} (clips=24, digest=0123abcd)",
        f"{B}: {LINE.replace('24', '12')} (clips=12, digest=ffff0000)",
        f"{C}: in an unknown way, by an earlier version or with evaluate.json missing",
    ]


def test_a_metric_more_makes_no_other_protocol_and_another_setting_does(
    root: Path, make_experiment: MakeExperiment
) -> None:
    more = PROTOCOL | {"metrics": PROTOCOL["metrics"] | {"visqol": "audio mode"}}
    evaluated(make_experiment, A, 7.0, PROTOCOL)
    evaluated(make_experiment, B, 8.0, more)
    assert protocol_lines(load_grid(GRID, root)) == [f"evaluate: {LINE}"]
    evaluated(make_experiment, C, 9.0, more | {"metrics": {"mmd": {"delay": False}}})
    lines = protocol_lines(load_grid(GRID, root))
    assert lines[1].startswith(f"{A}, {B}: ") and lines[2].endswith("(metrics.mmd.delay=false)")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"metrics": 3, "clips": "\\u001b[2J"}', "{" * 1000])
def test_a_damaged_file_harms_nothing(text: str, root: Path, make_experiment: MakeExperiment) -> None:
    evaluated(make_experiment, A, 7.0, text)
    assert "\x1b" not in "".join(protocol_lines(load_grid(GRID, root)))


HUGE = [
    {f"k{number}": number for number in range(100_000)},
    PROTOCOL | {"clips": list(range(20_000))},
    PROTOCOL | {"metrics": {"m" * 10_000: "text", **{f"m{number}": f"t{number}" for number in range(1000)}}},
]


@pytest.mark.parametrize("huge", HUGE)
def test_a_huge_file_makes_no_huge_line(huge: dict[str, Any], root: Path, make_experiment: MakeExperiment) -> None:
    evaluated(make_experiment, A, 7.0, huge)
    evaluated(make_experiment, B, 8.0, {name: "other" for name in huge})
    lines = protocol_lines(load_grid(GRID, root))
    assert sum(map(len, lines)) < 5000


def test_many_ways_make_few_lines(root: Path, make_experiment: MakeExperiment) -> None:
    for number in range(20):
        evaluated(make_experiment, f"{number:08x}", number, PROTOCOL | {"clips": number})
    lines = protocol_lines(load_grid(GRID, root))
    assert len(lines) == 12 and lines[-1].endswith("5 more: in other ways")


def test_a_run_whose_file_is_missing_was_evaluated_as_those_with_its_number(
    root: Path, make_experiment: MakeExperiment
) -> None:
    evaluated(make_experiment, A, 7.0)
    evaluated(make_experiment, B, 7.0, PROTOCOL)
    assert protocol_lines(load_grid(GRID, root)) == [f"evaluate: {LINE}"]


def test_runs_of_earlier_versions_alone_get_no_line(root: Path, make_experiment: MakeExperiment) -> None:
    evaluated(make_experiment, A, None)
    assert protocol_lines(load_grid(GRID, root)) == [] and describe({}) == ""


def test_the_command_shows_the_protocol_and_published_rows(
    root: Path,
    make_experiment: MakeExperiment,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    evaluated(make_experiment, A, 7.0, PROTOCOL, mel_distance=1.5)
    assert main(["results", GRID, "--root", str(root), "--published"]) == 0
    found = capsys.readouterr().out
    assert re.search(r"EnCodec 24 kHz, 6 kb/s +5\.99 +1\.83", found) and "stft" not in found.split("published")[1]
    assert "Their test set" in caplog.text and "NeurIPS 2023" in caplog.text
    assert f"evaluate: {LINE}" in caplog.text
    assert main(["results", GRID, "--root", str(root), "--published", "--format", "csv"]) == 2


def test_published_rows_need_a_metric_of_theirs(
    root: Path, make_experiment: MakeExperiment, capsys: pytest.CaptureFixture[str]
) -> None:
    make_experiment(A, [], [{"evaluate": {"mmd": 1.0}}])
    assert main(["results", GRID, "--root", str(root), "--published"]) == 2
    assert "evaluate.sisdr" in capsys.readouterr().err
    _show_published(argparse.Namespace(watch=10.0, format="table"), load_grid(GRID, root))  # it may come
    assert capsys.readouterr().out == ""


def test_published_values_are_those_of_the_paper() -> None:
    rows = {row.name: row.values for row in PUBLISHED}
    names = ["evaluate.mel_distance", "evaluate.stft_distance", "evaluate.visqol", "evaluate.sisdr"]
    assert [rows["EnCodec 24 kHz, 6 kb/s"][name] for name in names] == [1.83, 4.10, 3.05, 5.99]
    assert [rows["DAC 44.1 kHz, 8 kb/s"][name] for name in names] == [0.93, 1.60, 4.18, 10.75]
    assert list(published_table(["evaluate.sisdr", "valid.l1"]).columns) == ["published", "evaluate.sisdr"]
    assert published_table(["valid.l1"]).empty

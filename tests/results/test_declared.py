"""Metrics that a user declares: by pyproject.toml or by option."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from audiotok.errors import ResultsError
from audiotok.results.declared import declare_options, declare_project
from audiotok.results.metrics import METRICS, declare, known_metric, metric_direction


@pytest.fixture(autouse=True)
def nothing_declared() -> Iterator[None]:
    yield
    declare({}, project=True)
    declare({}, project=False)


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def test_a_metric_of_the_project_has_its_direction_in_every_stage(tmp_path: Path) -> None:
    text = """[tool.audiotok.metrics]
brightness = "higher"
"valid.own" = "lower"
roughness = { direction = "near_zero", unit = "dB", depends_on = ["rough.*"] }
pesq = { direction = "neutral" }
"""
    inner = project(tmp_path, text) / "inner"
    inner.mkdir()
    declare_project(inner)
    assert metric_direction("evaluate.brightness") == metric_direction("codec.valid.brightness") == "higher"
    assert metric_direction("valid.own") == "lower" and known_metric("evaluate.own") is None
    rough = known_metric("evaluate.roughness")
    assert rough is not None and (rough.direction, rough.unit, rough.depends_on) == ("near_zero", "dB", ("rough.*",))
    pesq = known_metric("evaluate.pesq")
    assert pesq is not None and pesq.direction == "neutral" and pesq.unit == METRICS["pesq"].unit
    declare_project(project(tmp_path, "[tool.other]\n"))
    assert known_metric("evaluate.brightness") is None and metric_direction("evaluate.pesq") == "higher"


def test_an_option_comes_before_the_project(tmp_path: Path) -> None:
    declare_options(["own=higher", "evaluate.mmd = lower"])
    declare_project(project(tmp_path, "[tool.audiotok.metrics]\nown = 'lower'\n"))
    assert metric_direction("valid.own") == "higher" and metric_direction("evaluate.mmd") == "lower"
    declare_options([])
    assert metric_direction("valid.own") == "lower"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.audiotok.metrics]\nown = 'up'", r"own has the direction 'up', not one of: higher, lower, near_zero"),
        ("[tool.audiotok.metrics]\nown = { way = 'higher' }", r"own has way; allowed are: direction, unit"),
        ("[tool.audiotok.metrics]\nown = { direction = 'lower', unit = 3 }", r"own: unit and description are texts"),
        ("[tool.audiotok.metrics]\nown = { direction = 'lower', depends_on = 'x' }", r"depends_on is a list"),
        ("[tool.audiotok]\nmetrics = 3", r"a table expected"),
        ("[tool", r"cannot read .*pyproject.toml, whose \[tool.audiotok.metrics\]"),
    ],
)
def test_mistakes_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        declare_project(project(tmp_path, text))


@pytest.mark.parametrize("text", ["own", "own=up", "=higher"])
def test_mistakes_of_the_option(text: str) -> None:
    with pytest.raises(ResultsError, match="NAME=DIRECTION expected"):
        declare_options([text])

"""Overrides are read as Hydra reads them, and the saved configuration fills what was not overridden."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from audiotok.results.read import SavedConfig, parse_overrides, parse_value

TEXTS = [
    "3", "-2", "+4", "0", "010", "1_000", "1e-5", "1.", ".5", "2.50", "1e3", "-inf", "nan", "true", "False",
    "yes", "off", "null", "NULL", "2024-01-01", "12:30", "compression/encodec_mmd_32khz", '"a b"', "'a b'",
    '"a: [b]"', "[]", "[0.1, 1, 5]", "[1e-05,2]", "[a, 'b c', null, true]", "{a: 1, b: [2, x]}",
    "[[1,2],[3]]", "[yes, 010, 12:30]", "0x10",
]  # fmt: skip


def _plain(value: Any) -> Any:
    """Hydra's value without its own classes: a quoted string keeps its text apart."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)


@pytest.mark.parametrize("text", TEXTS)
def test_values_are_those_that_hydra_reads(text: str) -> None:
    expected = _plain(OverridesParser.create().parse_override(f"key={text}").value())
    value = parse_value(text)
    assert type(value) is type(expected)
    assert value == expected or (math.isnan(value) and math.isnan(expected))


def test_a_quoted_emoji_is_one_character() -> None:
    assert parse_value(json.dumps("a😀b")) == "a😀b"


@pytest.mark.parametrize("text", ["[1, 2", "{a:", '"open', "[*alias]", "[!!python/object:os.system x]"])
def test_what_cannot_be_parsed_stays_text(text: str) -> None:
    assert parse_value(text) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(JSON)
def test_what_dora_writes_for_a_value_gives_the_value_back(value: object) -> None:
    assert parse_value(json.dumps(value)) == value or value in (math.inf, -math.inf)


@given(st.text())
def test_no_text_is_fatal(text: str) -> None:
    parse_overrides([text, f"key={text}", f"key=[{text}", f"key={{{text}}}"])


def test_keys_lose_their_prefix_and_the_last_value_wins() -> None:
    argv = ["seed=1", "+new.key=a=b", "++force=2", "~gone", "~gone.too=1", "seed=3"]
    assert parse_overrides(argv) == {
        "seed": 3, "new.key": "a=b", "force": 2, "gone": None, "gone.too": None,
    }  # fmt: skip


def _save(folder: Path, config: str, choices: dict[str, str] | None = None) -> SavedConfig:
    (folder / "frozen.json").write_text(json.dumps({"cfg_yaml": config, "choices": choices or {}}))
    return SavedConfig(folder)


def test_saved_values_groups_and_references(tmp_path: Path) -> None:
    config = "solver: compression\nseed: 7\noptim: {lr: 3.0e-4}\na: ${optim.lr}\nb: ${c}\nc: ${b}\nd: x${seed}\n"
    saved = _save(tmp_path, config, {"solver": "compression/demo"})
    assert saved.get("optim.lr") == 3e-4
    assert saved.get("solver") == "compression/demo"  # the group that was chosen, not the key of the same name
    assert saved.get("a") == 3e-4
    assert saved.get("b") in ("${b}", "${c}")  # a circle ends
    assert saved.get("d") == "x${seed}"
    assert saved.get("optim.lr.x") is None and saved.get("nowhere.at.all") is None
    assert saved.problems == []


def test_a_damaged_configuration_is_a_problem_and_an_absent_one_is_not(tmp_path: Path) -> None:
    absent = SavedConfig(tmp_path)
    assert absent.get("a") is None and absent.problems == []
    saved = _save(tmp_path, "a: [1, 2")
    assert saved.get("a") is None
    assert len(saved.problems) == 1 and saved.problems[0].startswith("frozen.json cannot be read")


@pytest.mark.parametrize("text", [False, True])
def test_the_frozen_configuration_comes_first(tmp_path: Path, text: bool) -> None:
    cfg: dict[str, Any] = {"cfg": {"solver": "compression", "seed": 7, "optim": {"lr": 3e-4}}}
    if text:
        cfg = {"cfg_yaml": "solver: compression\nseed: 7\noptim: {lr: 3e-4}\n"}
    (tmp_path / "frozen.json").write_text(json.dumps({**cfg, "choices": {"solver": "compression/demo"}}))
    (tmp_path / ".hydra").mkdir()  # what Hydra leaves beside it is not read
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 8\nlabel: x\n")
    saved = SavedConfig(tmp_path)
    assert [saved.get(key) for key in ("seed", "optim.lr", "solver", "label")] == [7, 3e-4, "compression/demo", None]
    assert saved.problems == []


def test_a_damaged_frozen_configuration_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "frozen.json").write_text('{"cfg": ')
    saved = SavedConfig(tmp_path)
    assert saved.get("seed") is None
    assert len(saved.problems) == 1 and saved.problems[0].startswith("frozen.json cannot be read")

"""Plain containers follow OmegaConf's rules where they stand in for it."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from audiotok.config_text import escaped, value_at
from audiotok.experiments.overrides import (
    _differs,
    _is_plain,
    _with_values,
    aligned,
    dotted,
    leaves_of,
    parse_override,
)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, 1.0, float("nan")]), st.text("ab")
)
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text("xy", min_size=1), x), max_leaves=4
)


@given(one=values, other=values)
def test_values_differ_as_in_omegaconf(one: Any, other: Any) -> None:
    first, second = OmegaConf.create({"a": one}), OmegaConf.create({"a": other})
    assert _differs(one, other) == (first.a != second.a)


@given(text=st.text(alphabet="\\${}ab .", max_size=12))
def test_an_escaped_text_is_read_as_that_text(text: str) -> None:
    if text != "???":
        cfg = OmegaConf.create(escaped({"a": text, "b": [text]}))
        assert OmegaConf.to_container(cfg, resolve=True) == {"a": text, "b": [text]}


@given(value=values)
def test_plain_values_are_kept_as_they_are(value: Any) -> None:
    if _is_plain(value):
        assert repr(OmegaConf.to_container(OmegaConf.create({"a": value}))) == repr({"a": value})


@pytest.mark.parametrize("value", ["${a}", "x${a}", "???", ["${a}"], [["???"]], {"a": 1}, [{}]])
def test_what_omegaconf_reads_otherwise_is_not_plain(value: Any) -> None:
    assert not _is_plain(value)


def test_leaves_are_found_and_put_back() -> None:
    section: dict[str, Any] = {"a": {"b": 1, "c": {}}, "d": [1], "e": None}
    leaves = dict(leaves_of(section))
    assert [dotted(path) for path in leaves] == ["a.b", "a.c", "d", "e"]
    assert all(value_at(section, path) == value for path, value in leaves.items())
    assert value_at(_with_values(section, {("a", "b"): 2}), ("a", "b")) == 2 and value_at(section, ("d", "x")) is None


BASE: dict[str, Any] = {"f": 0.5, "i": 1, "s": "text", "fs": [1.0, 2.0], "mixed": [1.0, 2], "g": {"f": 1.0, "i": 1}}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("f=2", "f=2.0"),
        ("f=-1_000", "f=-1000.0"),
        ("++f=2", "++f=2.0"),
        ("f=" + "9" * 400, "f=" + "9" * 400),  # beyond floats
        ("f=true", "f=true"),
        ("f='2'", "f='2'"),
        ("f=[1]", "f=[1]"),
        ("i=2", "i=2"),
        ("i=2.0", "i=2.0"),
        ("s=2", "s=2"),
        ("fs=[1, 'a\\'b', 2.5]", "fs=[1.0,'a\\'b',2.5]"),
        ("mixed=[1]", "mixed=[1]"),
        ("g={f: 2, i: 2}", "g={f:2.0,i:2}"),
        ("new=2", "new=2"),
        ("f=1,2", "f=1,2"),
    ],
)
def test_ints_become_floats_where_the_base_has_floats(argument: str, expected: str) -> None:
    assert aligned(argument, BASE) == expected
    assert aligned(expected, BASE) == expected
    assert parse_override(expected).key_or_group == parse_override(argument).key_or_group


def test_other_values_leave_the_section_as_it_was() -> None:
    section = {"a": {"b": {"c": 1, "d": [2]}, "e": 3}, "f": {"g": 4}, "h": 5}
    before = copy.deepcopy(section)
    values = {("a", "b", "c"): [7], ("a", "e"): 8, ("a", "b", "d"): None, ("h",): 9}
    changed = _with_values(section, values)
    assert changed == {"a": {"b": {"c": [7], "d": None}, "e": 8}, "f": {"g": 4}, "h": 9}
    assert list(changed["a"]) == ["b", "e"] and section == before
    assert _with_values(section, {}) == before

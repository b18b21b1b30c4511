"""Rows by a condition typed by a person, `losses.mmd>0 and state==COMPLETED`, and their order.

The condition is parsed by the grammar below and only ever compares values: nothing of it is evaluated as code.

    condition  = both ("or" both)*
    both       = one ("and" one)*
    one        = "not" one | "(" condition ")" | column operator value | column "in" list
    operator   = "==" | "=" | "!=" | "<" | "<=" | ">" | ">="
    value      = word | "quoted text" | list
    list       = "[" value, ... "]"
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from audiotok.errors import ResultsError
from audiotok.results.metrics import known_metric
from audiotok.results.read import natural
from audiotok.results.tables import Estimate, format_value, number_of, require_columns
from audiotok.text import spoken_duration, spoken_seconds

_TOKEN = re.compile(r"""\s*(?:(==|!=|<=|>=|[=<>()\[\],])|"([^"]*)"|'([^']*)'|([^\s()\[\],<>=!"']+))""")
_KEYWORDS = ("and", "or", "not", "in")
_NULL = ("null", "none", "-")
_MAX_TOKENS, _MAX_DEPTH = 1000, 50
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}
_Mask = np.ndarray[Any, np.dtype[np.bool_]]


def where(runs: pd.DataFrame, text: str) -> "pd.Series[bool]":
    """Rows for which a condition holds.

    A missing value equals `null` and nothing else, and is neither less nor greater than a number.

    Raises:
        ResultsError: if the text is no condition, a column does not exist, or one without numbers is ordered.
    """
    return pd.Series(_Parser(runs, text).whole(), index=runs.index)


def is_value(value: Any, text: str) -> bool:
    """Whether a value of a run is the one that a person types: `0` is 0.0, `null` is missing, `[1, 5]` a list."""
    if value is None or value is pd.NA or value != value:
        return text.lower() in _NULL
    if text in (str(value), format_value(value)):
        return True
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int | float):
        return _number(text) == value
    if isinstance(value, tuple) and text.startswith("[") and text.endswith("]"):
        items = [item.strip() for item in text[1:-1].split(",")]
        return len(items) == len(value) and all(map(is_value, value, items))
    return False


def ordered(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Rows sorted by columns, the first one first; rows without a value come last.

    Args:
        table: of runs, or of conditions.
        names: columns, as `NAME`, `NAME:asc` or `NAME:desc`; by default the best value of a metric comes first, and the
            lowest of everything else.

    Raises:
        ResultsError: if a column or a direction does not exist.
    """
    order = list(range(len(table)))
    for name in reversed(names):
        column, separator, direction = (name, "", "") if name in table.columns else name.partition(":")
        if separator and direction not in ("asc", "desc"):
            raise ResultsError(f"--sort {name}: NAME, NAME:asc or NAME:desc expected.")
        require_columns(table, [column])
        order = _sorted(order, table[column].tolist(), direction or _best_first(column))
    return table.iloc[order]


def _best_first(column: str) -> str:
    known = known_metric(column)
    return {"higher": "desc", "near_zero": "near_zero"}.get(known.direction if known else "", "asc")


def _sorted(order: list[int], values: list[Any], direction: str) -> list[int]:
    there = [row for row in order if not _is_missing(values[row])]
    if direction == "near_zero":
        there.sort(key=lambda row: abs(number_of(values[row])))
    else:
        plain = [number_of(value) if isinstance(value, Estimate) else value for value in values]
        there.sort(key=lambda row: natural(plain[row]), reverse=direction == "desc")
    return there + [row for row in order if _is_missing(values[row])]


def _is_missing(value: Any) -> bool:
    value = value.mean if isinstance(value, Estimate) else value
    return bool(value is None or value is pd.NA or value != value)


class _Token(NamedTuple):
    """A piece of the condition."""

    kind: str  # word, quoted, keyword, end, or the operator itself
    text: str


class _Parser:
    """One pass over a condition; each rule of the grammar is a method that returns which rows it holds for."""

    def __init__(self, runs: pd.DataFrame, text: str) -> None:
        self._runs, self._text, self._place, self._depth = runs, text, 0, 0
        self._tokens = list(self._split())

    def whole(self) -> _Mask:
        found = self._either()
        if self._next.kind != "end":
            raise self._wrong("and, or, or the end")
        return found

    def _split(self) -> list[_Token]:
        tokens, place, text = list[_Token](), 0, self._text.strip()
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None or len(tokens) >= _MAX_TOKENS:
                raise ResultsError(f"--where: cannot read {text[place : place + 20]!r}, character {place + 1}.")
            symbol, double, single, word = found.groups()
            if symbol:
                tokens.append(_Token(symbol, symbol))
            elif word is not None:
                tokens.append(_Token("keyword" if word.lower() in _KEYWORDS else "word", word))
            else:
                tokens.append(_Token("quoted", double if double is not None else single))
            place = found.end()
        return [*tokens, _Token("end", "the end")]

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self, *kinds: str, keyword: str = "") -> str | None:
        """The next piece, if it is of one of these kinds, or this keyword."""
        token = self._next
        if token.kind not in kinds and not (keyword and token.kind == "keyword" and token.text.lower() == keyword):
            return None
        self._place += 1
        return token.text

    def _wrong(self, expected: str) -> ResultsError:
        found = self._next.text if self._next.kind == "end" else repr(self._next.text)
        example = "such as 'losses.mmd>0 and state==COMPLETED'"
        return ResultsError(f"--where {self._text!r}: {expected} expected, {found} found; {example}.")

    def _either(self) -> _Mask:
        found = self._both()
        while self._take(keyword="or"):
            found = found | self._both()
        return found

    def _both(self) -> _Mask:
        found = self._one()
        while self._take(keyword="and"):
            found = found & self._one()
        return found

    def _one(self) -> _Mask:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ResultsError(f"--where: more than {_MAX_DEPTH} parentheses or nots within each other.")
        if self._take(keyword="not"):
            found = ~self._one()
        elif self._take("("):
            found = self._either()
            if self._take(")") is None:
                raise self._wrong("and, or, or )")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> _Mask:
        column = self._take("word", "quoted")
        if column is None:
            raise self._wrong("the name of a column")
        require_columns(self._runs, [column])
        values = self._runs[column].tolist()
        if self._take(keyword="in"):
            items = self._list()
            return self._mask(any(_is(column, value, item) for item in items) for value in values)
        operator = self._take("==", "=", "!=", *_ORDERS)
        if operator is None:
            raise self._wrong("==, !=, <, <=, >, >= or in")
        text = f"[{', '.join(self._list())}]" if self._next.kind == "[" else self._value()
        if operator in _ORDERS:
            return self._compare(column, values, operator, text)
        equal = self._mask(_is(column, value, text) for value in values)
        return ~equal if operator == "!=" else equal

    def _compare(self, column: str, values: list[Any], operator: str, text: str) -> _Mask:
        numbers, limit = np.array([number_of(value) for value in values], np.float64), _number(text)
        if limit is None and _is_duration(column):
            limit = spoken_seconds(text)
        if limit is None:
            raise ResultsError(f"--where {column}{operator}{text}: a number expected after {operator}.")
        if len(values) and not np.isfinite(numbers).any() and not all(map(_is_missing, values)):
            raise ResultsError(f"--where {column}{operator}{text}: {column} has no numbers; use == or in.")
        return self._mask(_ORDERS[operator](number, limit) for number in numbers)

    def _value(self) -> str:
        text = self._take("word", "quoted", "keyword")
        if text is None:
            raise self._wrong("a value")
        return text

    def _list(self) -> list[str]:
        if self._take("[") is None:
            raise self._wrong("a list such as [4, 8]")
        items = [] if self._next.kind == "]" else [self._value()]
        while self._take(","):
            items.append(self._value())
        if self._take("]") is None:
            raise self._wrong(", or ]")
        return items

    @staticmethod
    def _mask(rows: Any) -> _Mask:
        return np.fromiter(rows, np.bool_)


def _is(column: str, value: Any, text: str) -> bool:
    """`is_value`; a duration is also the one that the table shows for it."""
    if is_value(value, text):
        return True
    seconds = spoken_seconds(text) if _is_duration(column) else None
    return seconds is not None and spoken_seconds(spoken_duration(number_of(value))) == seconds


def _is_duration(column: str) -> bool:
    return column.rpartition(".")[2] == "duration"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

"""How the numbers of evaluate were measured: a line for a grid whose runs compare, or what tells their protocols apart.

The history holds a number for a protocol; `evaluate.json`, beside it, what the number stands for.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from audiotok.results.experiments import Experiments
from audiotok.results.read import hashable, read_json_file
from audiotok.results.records import Experiment
from audiotok.results.tables import format_value
from audiotok.text import clean_text

PROTOCOL_FILE = "evaluate.json"
_COLUMN = "evaluate.protocol"
_MAX_SIGS = 5  # that are named
_MAX_TEXT = 200
_MAX_LINE = 1000
_MAX_GROUPS = 10  # of runs that were evaluated alike
_MAX_NAMES = 10  # of what differs
_MAX_BYTES = 2**16  # of a file, of which less than a hundredth is used

Protocol = Mapping[str, Any]


def read_protocol(record: Experiment) -> Protocol:
    """What the last evaluate stage of a run has kept; empty if nothing can be read, or too much."""
    content, raw = read_json_file(record.folder / PROTOCOL_FILE, dict, [])
    return content if content and len(raw) <= _MAX_BYTES else {}


def describe(protocol: Protocol) -> str:
    """A protocol in one line; empty for an empty one."""
    if not protocol:
        return ""
    known = {name: format_value(hashable(value)) for name, value in protocol.items() if name != "metrics"}
    length = f" of {known['seconds']} s" if protocol.get("seconds") is not None else ""
    clips = f"{known.get('clips', '?')} clips{length} from {known.get('recordings', '?')} recording(s)"
    parts = [f"{clips} at {known.get('sample_rate', '?')} Hz"]
    metrics = protocol.get("metrics")
    texts: dict[str, list[str]] = {}
    for name, text in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(text, str) and text:
            texts.setdefault(clean_text(text[:_MAX_TEXT]), []).append(clean_text(str(name)))
    return "; ".join([*parts, *(f"{', '.join(names)}: {text}" for text, names in texts.items())])[:_MAX_LINE]


def protocol_lines(experiments: Experiments) -> list[str]:
    """Lines about how the numbers of evaluate were measured: one if all runs compare, else one for each protocol.

    Protocols that differ in nothing but which metrics they have count as one.
    """
    groups = list(_groups(experiments))
    known = [group for group in groups if group[1]]
    if not known:
        return []
    if len(groups) == 1:
        return [f"evaluate: {describe(known[0][1])}"]
    lines = ["the numbers of evaluate do not compare between runs that measured them in different ways:"]
    differing = _differing([protocol for _, protocol in known])[:_MAX_NAMES]
    for sigs, protocol in groups[:_MAX_GROUPS]:
        if protocol:
            flat = _flat(protocol)
            marks = ", ".join(f"{clean_text(name)}={format_value(flat[name])}" for name in differing)[:_MAX_LINE]
            lines.append(f"{_named(sigs)}: {describe(protocol)}" + f" ({marks})" * bool(marks))
        else:
            lines.append(f"{_named(sigs)}: in an unknown way, by an earlier version or with evaluate.json missing")
    if rest := [sig for sigs, _ in groups[_MAX_GROUPS:] for sig in sigs]:
        lines.append(f"{_named(rest)}: in other ways")
    return lines


def _groups(experiments: Experiments) -> Iterator[tuple[list[str], Protocol]]:
    """Signatures of the runs that have been evaluated alike, and how; an empty protocol where that is unknown."""
    runs = experiments.runs
    measured = [name for name in experiments.metrics if name.startswith("evaluate.")]
    if not measured:
        return
    evaluated = runs[runs[measured].notna().any(axis=1)]
    numbers = evaluated[_COLUMN] if _COLUMN in measured else pd.Series(float("nan"), index=evaluated.index)
    records = {record.sig: record for record in experiments.records}
    found: list[tuple[list[str], Protocol]] = []
    for _, sigs in evaluated["sig"].groupby(numbers.fillna(-1.0), sort=False):
        protocol: Protocol = {}
        if numbers[sigs.index[0]] >= 0:  # a copy may lack the file of some runs
            protocol = next(filter(None, (read_protocol(records[sig]) for sig in sigs)), {})
        alike = next(
            (own for own, other in found if bool(protocol) == bool(other) and not _differ(protocol, other)), None
        )
        if alike is None and len(found) > _MAX_GROUPS:
            found[-1][0].extend(sigs)
        elif alike is None:
            found.append((list(sigs), protocol))
        else:
            alike.extend(sigs)
    yield from found


def _flat(protocol: Protocol) -> dict[str, Any]:
    """Values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in protocol.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": own for key, own in _flat(value).items()}
        else:
            flat[str(name)] = hashable(value)
    return flat


def _differ(one: Protocol, other: Protocol) -> bool:
    return bool(_differing([one, other]))


def _differing(protocols: list[Protocol]) -> list[str]:
    """Names of what protocols have in common, with different values."""
    flat = [_flat(protocol) for protocol in protocols]
    common = [name for name in flat[0] if all(name in other for other in flat)]
    return [name for name in common if len({repr(other[name]) for other in flat}) > 1]


def _named(sigs: list[str]) -> str:
    more = len(sigs) - _MAX_SIGS
    return ", ".join([*map(clean_text, sigs[:_MAX_SIGS]), *([f"{more} more"] if more > 0 else [])])

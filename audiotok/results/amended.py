"""Runs that were extended, or otherwise amended, since they were made: lines about what the tables hold of them."""

from typing import Any

from audiotok.results.experiments import Experiments
from audiotok.results.read import hashable
from audiotok.text import clean_text

_MAX_SIGS = 5  # that are named


def amended_lines(experiments: Experiments) -> list[str]:
    """Lines that name the runs that were amended with what was changed, and what they do not compare with.

    The length of a run is a parameter as soon as one run was extended, so that runs of different length are different
    conditions; what remains are runs that ended up with equal parameters in different ways.
    """
    if "amended" not in experiments.runs:
        return []
    texts: dict[str, list[str]] = {}
    for sig, text in zip(experiments.runs["sig"], experiments.runs["amended"], strict=True):
        if text:
            texts.setdefault(str(text), []).append(str(sig))
    lines = [f"amended since: {_named(sigs)} ({clean_text(text)})" for text, sigs in texts.items()]
    amended = {sig for sigs in texts.values() for sig in sigs}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in experiments.runs[["sig", *experiments.parameters]].itertuples(index=False, name=None):
        groups.setdefault(tuple(repr(hashable(value)) for value in row[1:]), []).append(str(row[0]))
    for sigs in groups.values():
        if len(sigs) > 1 and amended.intersection(sigs):
            some = _named([sig for sig in sigs if sig in amended])
            others = _named([sig for sig in sigs if sig not in amended])
            what = f"{some} and {others}" if others else some
            lines.append(f"{what} have equal parameters, but are no replicates of each other; --where leaves one out")
    return lines


def _named(sigs: list[str]) -> str:
    more = len(sigs) - _MAX_SIGS
    return ", ".join([*map(clean_text, sigs[:_MAX_SIGS]), *([f"{more} more"] if more > 0 else [])])

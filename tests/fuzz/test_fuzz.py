"""A short run of each fuzzer; a long one: `python -m tests.fuzz.campaign --inputs 1000`."""

import pytest

from tests.fuzz.campaign import KINDS, run

INPUTS = 60


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_hostile_gets_through(kind: str) -> None:
    counts, faults = run(kind, INPUTS, seed=1)
    assert not faults, "\n".join(faults)
    assert counts["right"] and counts["refused"], f"{counts}: a fuzzer that makes only good or only bad input"

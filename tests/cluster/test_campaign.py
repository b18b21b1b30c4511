"""The script of random faults, a short round of it on local jobs; the long one is run by hand."""

import subprocess as sp
import sys

import pytest

from tests.fakes.tiny import REPOSITORY

pytestmark = pytest.mark.slow


def test_a_short_campaign_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.cluster.campaign", "--engine", "local", "--faults", "6", "--seed", "1"]
    done = sp.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 doubled, 0 cancelled by mistake, 0 stuck" in done.stdout.splitlines()[-1]

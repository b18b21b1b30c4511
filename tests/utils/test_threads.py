"""Threads that wait for each other leave their cores soon, where nothing else was chosen."""

import os
import subprocess as sp
import sys

import pytest

from audiotok.utils.threads import spin_briefly, spinning

SCRIPT = "import os; from audiotok.utils.threads import spin_briefly; spin_briefly(os.environ); import torch"


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP of another vendor")
@pytest.mark.parametrize(("chosen", "turns"), [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_openmp_takes_the_number_of_turns(chosen: dict[str, str], turns: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environ |= {"OMP_DISPLAY_ENV": "verbose", **chosen}
    done = sp.run([sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr


def test_what_the_user_has_chosen_stays() -> None:
    for chosen in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "3"}):
        environ = dict(chosen)
        spin_briefly(environ)
        assert environ == chosen


@pytest.mark.parametrize(
    ("threads", "load", "environ", "advised"),
    [(4, 4.2, {}, True), (4, 3.0, {}, False), (1, 4.2, {}, False), (4, 4.2, {"GOMP_SPINCOUNT": "9"}, False)],
)
def test_advice_where_others_use_the_cores(
    threads: int, load: float, environ: dict[str, str], advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    line = spinning(threads, environ)
    assert bool(line) == advised and ("load 4.2 on 4" in line and "GOMP_SPINCOUNT=10000" in line) == advised


def test_no_advice_where_the_system_counts_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def getloadavg() -> tuple[float, float, float]:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr(os, "getloadavg", getloadavg)
    assert spinning(4, {}) == ""

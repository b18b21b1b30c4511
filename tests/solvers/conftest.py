"""Solvers inside experiments of a temporary Dora folder."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from audiotok import train
from audiotok.solvers import CompressionSolver

Enter = Callable[..., AbstractContextManager[CompressionSolver]]


@pytest.fixture
def solver_in(debug_overrides: list[str]) -> Enter:
    """Function of a Dora folder and overrides: a context with the solver of that experiment, inside it."""

    @contextmanager
    def enter(root: Path, *overrides: str) -> Iterator[CompressionSolver]:
        old, train.main.dora.dir = train.main.dora.dir, root
        try:
            xp = train.main.init_xp(train.main.get_xp([*debug_overrides, *overrides]))
            with xp.enter():
                solver = train.get_solver(xp.cfg)
                assert isinstance(solver, CompressionSolver)
                yield solver
        finally:
            train.main.dora.dir = old

    return enter

"""Grids over grids: what `experiments` gives a grid file, and what it says of mistakes."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dora.explore import Herd

from audiotok import train
from audiotok.errors import ConfigError
from audiotok.launchers.grid_file import experiments, explore, grid_of, load_explorer
from audiotok.launchers.profile import Profile, ProfileLauncher
from audiotok.launchers.sheep import GridSheep
from audiotok.launchers.shepherd import GridShepherd
from tests.launchers.test_shepherd import Main

HEAD = "from dora.explore import Explorer\nfrom audiotok.launchers.grid_file import experiments\n"
CODECS = """
explored = []
@Explorer
def explorer(launcher):
    explored.append(1)
    launcher.bind_("solver=compression/demo")
    for index in (2, 0, 1):
        launcher(f"index={index}", "losses.mmd=0.5")
    launcher("index=2", "losses.mmd=0.5")
"""
OVER = """
@Explorer
def explorer(launcher):
    for one in experiments("codecs"):
        launcher(f"continue_from={one.checkpoint}", f"index={one.overrides['index']}")
"""
_numbers = itertools.count()


@pytest.fixture
def grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Main]]:
    """Makes an entry point with grids of this text."""
    package = f"grids{next(_numbers)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def make(**texts: str) -> Main:
        folder = tmp_path / package
        folder.mkdir()
        for name, text in {"__init__": "", **texts}.items():
            (folder / f"{name}.py").write_text(HEAD + text)
        main = Main(tmp_path / "outputs")
        main.dora.grid_package = package
        return main

    yield make
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def explored(main: Main, grid: str) -> list[str]:
    """Signatures of the experiments of a grid, as `dora grid` reads it."""
    herd = Herd()
    explore(load_explorer(main, grid), grid, ProfileLauncher(GridShepherd(main), Profile(), herd))
    return list(herd.sheeps)


def test_the_experiments_of_a_grid_in_its_order_and_nothing_is_written(grids: Callable[..., Main]) -> None:
    main = grids(codecs=CODECS, over=OVER)
    found = experiments("codecs", main)
    assert [one.sig for one in found] == explored(main, "codecs")
    assert [one.overrides["index"] for one in found] == [2, 0, 1]
    assert found[0].overrides == {"solver": "compression/demo", "index": 2, "losses.mmd": 0.5}
    assert found[0].checkpoint == f"//sig/{found[0].sig}" and grid_of(found[0].sig) == "codecs"
    assert not (found[0].sig in sys.modules or Path("outputs").exists())
    assert len(explored(main, "over")) == 3


def test_a_grid_is_explored_once_however_often_it_is_named(grids: Callable[..., Main]) -> None:
    main = grids(codecs=CODECS, over=OVER + OVER.replace("Explorer\n", "Explorer\n"))
    experiments("codecs", main).clear()  # its own list
    explored(main, "over")
    assert len(experiments("codecs", main)) == 3
    assert len(sys.modules[f"{main.dora.grid_package}.codecs"].explored) == 1


@pytest.mark.parametrize("at_import", [True, False])
def test_a_grid_over_itself_is_one_line_with_its_place(grids: Callable[..., Main], at_import: bool) -> None:
    text = '\nfound = experiments("{0}")\n' if at_import else OVER.replace("codecs", "{0}")
    main = grids(first=text.format("second") if at_import else OVER.replace("codecs", "second"),
                 second=text.format("first") if at_import else OVER.replace("codecs", "first"))  # fmt: skip
    line = 4 if at_import else 6
    with pytest.raises(ConfigError, match="a grid over itself: first → second → first") as caught:
        explored(main, "first")
    assert f"second.py:{line}: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codecs", "said"),
    [
        ("", "has no `explorer`"),
        ("\ndef (", "codecs.py:4: it is not Python"),
        (CODECS.replace("launcher.bind_", "1 / 0\n    launcher.bind_"), "codecs.py:8: ZeroDivisionError"),
        (CODECS.replace("launcher.bind_", "launcher.slurm_(gpu=1)\n    launcher.bind_"), "codecs.py:8"),
    ],
)
def test_a_mistake_in_the_other_grid_names_both_places(grids: Callable[..., Main], codecs: str, said: str) -> None:
    main = grids(codecs=codecs, over=OVER)
    with pytest.raises(ConfigError) as caught:
        explored(main, "over")
    assert said in str(caught.value) and "over.py:6: " in str(caught.value)


def test_an_unknown_grid_names_those_there_are(grids: Callable[..., Main]) -> None:
    main = grids(over=OVER)
    with pytest.raises(ConfigError, match=r"over\.py:6: no grid 'codecs' in package grids\d+; choose one of: over"):
        explored(main, "over")
    with pytest.raises(ConfigError, match="outside of a grid file"):
        experiments("over")


@pytest.mark.parametrize(
    ("name", "codecs", "seeds"), [("debug", "debug", 1), ("mmd_on_off_demo", "mmd_on_off_demo", 2)]
)
def test_a_grid_of_language_models_has_each_codec_with_each_seed(name: str, codecs: str, seeds: int) -> None:
    herd, grid = Herd(), f"lm.{name}"
    explore(load_explorer(train.main, grid), grid, ProfileLauncher(GridShepherd(train.main), Profile(), herd))
    needed = [list(sheep.shepherd.needs(sheep.xp)) for sheep in herd.sheeps.values() if isinstance(sheep, GridSheep)]
    found = experiments(f"compression.{codecs}", train.main)
    assert needed == [[codec.sig] for codec in found for _ in range(seeds)]
    assert len(found) == (6 if codecs == "mmd_on_off_demo" else 4)

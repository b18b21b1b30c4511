"""The contract of the launchers, held by an engine that is no part of the package: docs/extending.md shows it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import test_commands, test_ends, test_over
from tests.contract.conftest import House
from tests.fakes.tiny import FAKES, REPOSITORY, TinyProject

pytestmark = pytest.mark.slow

REGISTER = """\
from audiotok.launchers.shepherd import ENGINES
from tinyxp.engine import FakeEngine

ENGINES[FakeEngine.name] = FakeEngine
"""

for module in (test_commands, test_ends, test_over):
    globals().update({name: value for name, value in vars(module).items() if name.startswith("test_")})


class HouseWithoutDaemon(House):
    """The tiny project with an engine that has no daemon, and no `can_wait_for`."""

    waits_in_queue = False

    def kill_daemon(self) -> None:
        """There is none."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    environ = {"AUDIOTOK_LAUNCHER": "fake", "CUDA_VISIBLE_DEVICES": "", "USER": "", "LOGNAME": ""}
    project = TinyProject(tmp_path / "project", environ)
    shutil.copy(FAKES / "third_engine.py", project.folder / "tinyxp" / "engine.py")
    train = project.folder / "tinyxp" / "train.py"
    train.write_text(REGISTER + train.read_text())
    yield HouseWithoutDaemon(project, None)
    project.close()


def test_the_documentation_shows_this_engine() -> None:
    text = (REPOSITORY / "docs" / "extending.md").read_text()
    engine = (FAKES / "third_engine.py").read_text()
    shown = text.partition("```python\nclass ")[2].partition("```")[0]
    assert shown and f"class {shown}".rstrip() in engine and REGISTER.splitlines()[-1] in text

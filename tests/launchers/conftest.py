"""The tiny project on the local launcher."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tiny import TinyProject


@pytest.fixture
def project(tmp_path: Path) -> Iterator[TinyProject]:
    tiny = TinyProject(
        tmp_path / "project",
        {
            "AUDIOTOK_LAUNCHER": "local",
            "AUDIOTOK_LOCAL_SLOTS": "2",
            "AUDIOTOK_LOCAL_GRACE_S": "0.5",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    yield tiny
    tiny.close()

"""`python -m benchmarks.gpu`: nothing to do without a GPU; every section runs, tiny and on the CPU."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from audiotok.solvers.randomness import set_deterministic
from benchmarks.gpu.__main__ import SECTIONS, make_music, section
from benchmarks.gpu.device import Setting

ROOT = Path(__file__).parents[1]


def test_without_a_gpu_it_says_so_and_that_is_no_failure() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No GPU here") and done.stdout.count("\n") == 1


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    music = tmp_path_factory.mktemp("music")
    make_music(music, tracks=8, length_s=3.0)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Setting(torch.device("cpu"), True, music)
    set_deterministic(False)
    root.handlers[:] = handlers
    root.setLevel(level)


FAST = ("mmd", "measures", "nccl", "language_model")
RESUMED = 670  # tensors of a checkpoint
LEFT_OUT = ("compiled", "beside_audiocraft")  # the one compiles for minutes, the other needs a clone


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SECTIONS if name not in LEFT_OUT],
)
def test_every_section_runs(name: str, setting: Setting) -> None:
    found = section(name, setting)
    lines = found if isinstance(found, list) else list(found)[-1]
    assert lines[1].startswith("| ---") and "failed" not in "".join(lines)
    if name in ("resume", "deterministic"):
        assert [line.split(" | ")[2] for line in lines[2:4]] == [f"0 of {RESUMED}"] * 2

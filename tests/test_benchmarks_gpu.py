"""`python -m benchmarks.gpu`: nothing to do without a GPU; every section runs, tiny and on the CPU."""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiotok.solvers.randomness import set_deterministic
from benchmarks.gpu.__main__ import SECTIONS, anchor, limit_of, make_music, pages, section
from benchmarks.gpu.device import Setting

ROOT = Path(__file__).parents[1]


def test_without_a_gpu_it_says_so_and_that_is_no_failure() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No GPU here") and done.stdout.count("\n") == 1


@given(parts_used=st.lists(st.floats(0, 1), min_size=len(SECTIONS), max_size=len(SECTIONS)), whole_s=st.floats(1, 1e4))
def test_no_section_takes_the_time_of_another(parts_used: list[float], whole_s: float) -> None:
    names, left_s = list(SECTIONS), whole_s
    total_s = sum(one.share_s for one in SECTIONS.values())
    assert total_s <= 480 - 20  # eight minutes, with the start and the music
    for index, (name, used) in enumerate(zip(names, parts_used, strict=True)):
        limit_s = limit_of(name, names[index + 1 :], left_s)
        assert limit_s >= whole_s * SECTIONS[name].share_s / total_s * (1 - 1e-9)
        left_s -= used * limit_s
    assert left_s >= -1e-9 * whole_s


def test_the_page_names_each_section_that_was_given_up() -> None:
    options = argparse.Namespace(device="cpu", tiny=True, audiocraft=None, only=["nccl", "loader"], limit=0.0)
    *_, page = pages(options)
    for name in ("loader", "nccl"):
        row = next(line for line in page.splitlines() if line.startswith(f"| [{name}]"))
        assert "given up after 0 s" in row and f"(#{anchor(SECTIONS[name].heading)})" in row
        assert f"## {SECTIONS[name].heading}\n" in page


@pytest.mark.parametrize(("gib", "clips"), [(24, 16), (80, 64)])
def test_a_card_of_little_memory_has_smaller_batches(
    gib: int, clips: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert Setting(torch.device("cuda"), False, tmp_path).clips(64) == clips


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
